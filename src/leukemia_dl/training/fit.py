"""One fit: a backbone, training images, a recipe and a seed in; a trained model and its learning curves out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.errors import DataError, TrainingError
from leukemia_dl.identity import named_seed
from leukemia_dl.models.build import build_model
from leukemia_dl.models.classifier import predict_logits
from leukemia_dl.models.spec import BackboneSpec
from leukemia_dl.training.augmentation import training_model
from leukemia_dl.training.backends import Device, feed, prepare
from leukemia_dl.training.batches import Batches
from leukemia_dl.training.batchnorm import reestimate_batchnorm
from leukemia_dl.training.recipe import Recipe

__all__ = ["FitResult", "fit", "predict_batch_size"]

OnStep = Callable[[int, int, int], None]
OnEpoch = Callable[[int, dict[str, float]], None]
# BatchNorm statistics: so many images per batch, and one such batch for an honest curve while training goes on; after
# the last epoch all training images.
_BATCHNORM_IMAGES = 64


@dataclass(frozen=True, eq=False)
class FitResult:
    """What a fit leaves.

    Attributes:
        model: Trained `keras.Model`, raw RGB to logits.
        history: A row per epoch: `epoch` (from 1), `loss` and `accuracy` (running, on training images as augmented),
            `val_loss` and `val_accuracy` where there is a val side, `seconds`.
        device: Where it ran.
        batchnorm_layers: How many had their statistics re-estimated.
        seconds: Build, training and validation together; the first step, with its compilation, is in it.
    """

    model: Any
    history: pd.DataFrame
    device: Device
    batchnorm_layers: int
    seconds: float


def fit(
    spec: BackboneSpec,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    classes: int,
    recipe: Recipe,
    seed: int = 0,
    validation: tuple[NDArray[np.uint8], NDArray[np.int64]] | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> FitResult:
    """Train one classifier.

    Args:
        spec: The backbone.
        images: uint8 (n, size, size, 3), RGB, `size` = recipe.image_size. Never changed.
        labels: Class indices (n,), 0 <= label < classes.
        classes: Number of classes.
        recipe: The settings.
        seed: Of weights, order, augmentation and dropout. On one CPU model the result is bitwise repeatable.
        validation: Images and labels that are watched after each epoch, and never used.
        on_step: Called with (epoch, step, steps), from 0, as a batch is handed out; maybe from another thread.
        on_epoch: Called with the epoch, from 1, and its row of the history.

    Raises:
        DataError: If images and labels do not fit together or to the recipe.
        SettingsError: If the image size is below the backbone's minimum.
        TrainingError: If the loss stops being a number, or memory runs out.
    """
    _check(images, labels, classes, recipe)
    started = time.perf_counter()
    device = prepare(recipe.precision)
    import keras

    keras.utils.set_random_seed(named_seed(seed, "fit"))
    model = build_model(
        spec,
        recipe.image_size,
        classes,
        weights=recipe.weights,
        dropout=recipe.dropout,
        dtype_policy=device.dtype_policy,
    )
    trained = training_model(model, recipe) if recipe.augments else model
    batches = Batches(images, labels, recipe.batch_size, seed, recipe if recipe.augments else None)
    if on_step is not None:
        report = on_step
        batches.on_step = lambda epoch, step: report(epoch, step, batches.steps) if epoch < recipe.epochs else None
    optimizer = _optimizer(recipe, batches.steps)
    # Variables made inside the first step would have TensorFlow trace it twice: half a minute for a deep net on a CPU.
    optimizer.build(trained.trainable_variables)
    trained.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        jit_compile=device.jit_compile,
    )
    rows: list[dict[str, float]] = []
    count = {"layers": 0}

    class EpochEnd(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.started = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            row = {"epoch": epoch + 1, "loss": float(logs["loss"]), "accuracy": float(logs["accuracy"])}
            if not math.isfinite(row["loss"]):
                raise TrainingError(
                    f"The training loss of {spec.name} became {row['loss']} in epoch {epoch + 1}. "
                    f"Lower learning_rate (now {recipe.learning_rate:g}) or clip_norm (now {recipe.clip_norm:g})."
                )
            last = epoch + 1 == recipe.epochs
            part = images if last else images[batches.sample(_BATCHNORM_IMAGES)]
            count["layers"] = reestimate_batchnorm(model, part, max(_BATCHNORM_IMAGES, recipe.batch_size))
            if validation is not None:
                row |= _validate(model, *validation, batch_size=predict_batch_size(recipe))
            row["seconds"] = time.perf_counter() - self.started
            rows.append(row)
            if on_epoch is not None:
                on_epoch(epoch + 1, row)

    try:
        trained.fit(
            feed(batches.__iter__, batches.example()),
            epochs=recipe.epochs,
            steps_per_epoch=batches.steps,
            callbacks=[EpochEnd()],
            verbose=0,
            shuffle=False,
        )
    except Exception as error:
        if _is_out_of_memory(error):
            raise TrainingError(
                f"{device.name} ran out of memory training {spec.name} with batch_size={recipe.batch_size} at "
                f"{recipe.image_size} pixels. Try batch_size={max(recipe.batch_size // 2, 1)}."
            ) from error
        raise
    return FitResult(model, pd.DataFrame(rows), device, count["layers"], time.perf_counter() - started)


def predict_batch_size(recipe: Recipe) -> int:
    """Return how many images a prediction takes per step: more than in training, since no gradients are kept."""
    return max(32, recipe.batch_size)


def _check(images: NDArray[np.uint8], labels: NDArray[np.int64], classes: int, recipe: Recipe) -> None:
    shape = (recipe.image_size, recipe.image_size, 3)
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        raise DataError(
            f"Training images must be uint8 of shape (n, {recipe.image_size}, {recipe.image_size}, 3), n > 0. "
            f"Received: {images.dtype} of shape {images.shape}."
        )
    if labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"Labels must be {len(images)} class indices from 0 to {classes - 1}. Received: shape {labels.shape}, "
            f"from {labels.min() if labels.size else 'none'} to {labels.max() if labels.size else 'none'}."
        )


def _optimizer(recipe: Recipe, steps: int) -> Any:
    import keras

    total = recipe.epochs * steps
    warmup = round(recipe.warmup * total)
    rate = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=recipe.learning_rate / max(warmup, 1) if warmup else recipe.learning_rate,
        decay_steps=max(total - warmup, 1),
        warmup_target=recipe.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    optimizer = keras.optimizers.AdamW(
        learning_rate=rate, weight_decay=recipe.weight_decay, global_clipnorm=recipe.clip_norm
    )
    # Decay pulls towards zero, which is not where the gain of a normalisation or a bias belongs.
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return optimizer


def _validate(model: Any, images: NDArray[np.uint8], labels: NDArray[np.int64], batch_size: int) -> dict[str, float]:
    logits = predict_logits(model, images, batch_size)
    peak = logits.max(axis=1)
    log_sum = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
    loss = log_sum - logits[np.arange(len(labels)), labels]
    return {"val_loss": float(loss.mean()), "val_accuracy": float((logits.argmax(axis=1) == labels).mean())}


def _is_out_of_memory(error: BaseException) -> bool:
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, MemoryError) or any(
        sign in text for sign in ("ResourceExhausted", "RESOURCE_EXHAUSTED", "OutOfMemory", "out of memory")
    )
