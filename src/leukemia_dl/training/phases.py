"""The two phases of a fit, epoch by epoch: the head on features of a frozen backbone, then every layer on images."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.errors import OutOfMemoryError, TrainingError
from leukemia_dl.identity import named_seed
from leukemia_dl.models.classifier import predict_in_batches, predict_logits
from leukemia_dl.models.heads import split_at_features
from leukemia_dl.training.augmentation import training_model
from leukemia_dl.training.backends import Device, feed
from leukemia_dl.training.batches import Batches
from leukemia_dl.training.batchnorm import reestimate_batchnorm
from leukemia_dl.training.checkpoints import FitState, read_checkpoint, write_checkpoint
from leukemia_dl.training.optimizer import build_loss, build_optimizer, rates_by_layer
from leukemia_dl.training.recipe import Recipe

__all__ = ["Side", "Training", "predict_batch_size"]

# BatchNorm statistics: so many images per batch, and one such batch for an honest curve while training goes on; after
# the last epoch all training images.
_BATCHNORM_IMAGES = 64
_log = logging.getLogger(__name__)
Side = tuple[NDArray[Any], NDArray[np.int64]]


def predict_batch_size(recipe: Recipe) -> int:
    """Return how many images a prediction takes per step: more than in training, since no gradients are kept.

    Where memory forced the batches of training down, they follow.
    """
    return min(max(32, recipe.batch_size), 2 * recipe.batch_size)


@dataclass(eq=False)
class Training:
    """A built model on its way through the phases of its recipe.

    Attributes:
        model: `keras.Model`, pixels to logits; trained in place.
        recipe: As it is for this backbone.
        train: uint8 images and class indices.
        validation: Likewise, watched after each epoch; or None.
        classes: Number of classes.
        seed: Of order and augmentation.
        device: Where it runs.
        inner: Whether it only helps to choose an epoch.
        stop: Epochs of both phases to run; fewer than the recipe's where an epoch was selected. The rates are those of
            the whole.
        checkpoint: File of the state, and what identifies this fit; or None.
        on_step: Called with (epoch, step, steps), epochs of both phases counted from 0.
        on_epoch: Called with the epoch, from 1, and its row.
        callbacks: Given the phase's name, returns further Keras callbacks.
        rows: The history.
    """

    model: Any
    recipe: Recipe
    train: Side
    validation: Side | None
    classes: int
    seed: int
    device: Device
    stop: int
    inner: bool = False
    checkpoint: tuple[Path, str] | None = None
    on_step: Callable[[int, int, int], None] | None = None
    on_epoch: Callable[[int, dict[str, Any]], None] | None = None
    callbacks: Callable[[str], list[Any]] | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    _features: NDArray[np.float32] | None = field(default=None, init=False)
    _resumed: FitState | None = field(default=None, init=False)

    def run(self) -> None:
        """Train, from where a checkpoint of this fit left off.

        Raises:
            OutOfMemoryError: If memory runs out, here or while features are computed; it names the batch size.
        """
        try:
            self._resume()
            if self.recipe.head_epochs:
                self._train_head()
            if self.stop > self.recipe.head_epochs:
                self._features = None
                self._train_all(self.stop - self.recipe.head_epochs)
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"{self.device.name} ran out of memory training {self.model.name} with batch_size="
                f"{self.recipe.batch_size} at {self.recipe.image_size} pixels. Try batch_size="
                f"{max(self.recipe.batch_size // 2, 1)}, or halve_batch=True to have that done."
            ) from error

    def _resume(self) -> None:
        found = read_checkpoint(*self.checkpoint) if self.checkpoint else None
        if found is None:
            return
        variables = self._changing(found.phase)
        if [tuple(v.shape) for v in variables] != [value.shape for value in found.model]:
            _log.warning("The checkpoint is of a net of other shapes and is not used")
            return
        _assign(variables, found.model)
        self.rows = found.rows
        self._resumed = found

    def head_features(self) -> NDArray[np.float32]:
        """Return what the head is given of the training images (n, features), computed once."""
        if self._features is None:
            extractor, _ = split_at_features(self.model)
            self._features = predict_in_batches(extractor, self.train[0], predict_batch_size(self.recipe))
        return self._features

    def head_trained_on(self, rows: NDArray[np.int64]) -> Any:
        """Return a new head, trained as the first phase does on some of the training images: features to logits."""
        import keras

        keras.utils.set_random_seed(named_seed(self.seed, "inner head"))
        _, head = split_at_features(self.model)
        new = keras.models.clone_model(head)
        part = (self.head_features()[rows], self.train[1][rows])
        inner = Training(new, self.recipe, part, None, self.classes, self.seed, self.device, self.stop)
        inner._fit_head(new, part, None)
        return new

    def _train_head(self) -> None:
        """Train the head on features computed once; the backbone stays as it is, BatchNorm statistics included."""
        if self._resumed is not None and (self._resumed.phase == "all" or self._resumed.epoch >= self._head_stop):
            return  # what it led to is in the weights already
        extractor, head = split_at_features(self.model)
        watched = None
        if self.validation is not None:
            images, labels = self.validation
            watched = (predict_in_batches(extractor, images, predict_batch_size(self.recipe)), labels)
        self._fit_head(head, (self.head_features(), self.train[1]), watched)

    def _fit_head(self, head: Any, train: Side, watched: Side | None) -> None:
        recipe = self.recipe
        batches = Batches(*train, recipe.batch_size, self.seed, balanced=recipe.class_balance == "batches")
        optimizer = build_optimizer(recipe, recipe.head_learning_rate, recipe.head_epochs * batches.steps, {})
        look = partial(self._validate, head, watched)
        self._train_phase("head", head, batches, optimizer, self._head_stop, lambda last: look())

    @property
    def _head_stop(self) -> int:
        return min(self.stop, self.recipe.head_epochs)

    def _train_all(self, stop: int) -> None:
        """Train every layer on images."""
        recipe, (images, labels) = self.recipe, self.train
        if self._resumed is not None and self._resumed.phase == "all" and self._resumed.epoch >= stop:
            return
        net = training_model(self.model, recipe) if recipe.augments else self.model
        augmentation = recipe if recipe.augments else None
        balanced = recipe.class_balance == "batches"
        batches = Batches(images, labels, recipe.batch_size, self.seed, augmentation, balanced=balanced)
        rates = rates_by_layer(self.model, recipe.rate_at_input)
        optimizer = build_optimizer(
            recipe, recipe.learning_rate, recipe.epochs * batches.steps, rates, average=recipe.average
        )

        def look(last: bool) -> dict[str, float]:
            # Inner folds are compared epoch by epoch: there the last one is looked at as the others are.
            part = images if last and not self.inner else images[batches.sample(_BATCHNORM_IMAGES)]
            size = min(max(_BATCHNORM_IMAGES, recipe.batch_size), 4 * recipe.batch_size)
            reestimate_batchnorm(self.model, part, size)
            return self._validate(self.model, self.validation)

        self._train_phase("all", net, batches, optimizer, stop, look)

    def _train_phase(
        self,
        phase: str,
        net: Any,
        batches: Batches,
        optimizer: Any,
        stop: int,
        look: Callable[[bool], dict[str, float]],
    ) -> None:
        """Train one phase up to epoch `stop`.

        Args:
            phase: Its name.
            net: What is fitted to the batches.
            batches: Inputs and labels.
            optimizer: Not built yet.
            stop: Epochs of this phase, from its beginning.
            look: Given whether the epoch is the last, brings statistics up to date and returns validation metrics.
        """
        import keras

        done = 0
        # Variables made inside the first step would have TensorFlow trace it twice: half a minute for a deep net.
        optimizer.build(net.trainable_variables)
        if self._resumed is not None and self._resumed.phase == phase:
            done = self._resumed.epoch
            _assign(optimizer.variables, self._resumed.optimizer)
        net.compile(
            optimizer=optimizer,
            loss=build_loss(self.recipe, self.train[1], self.classes),
            metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
            jit_compile=self.device.jit_compile,
        )
        before = 0 if phase == "head" else self.recipe.head_epochs
        if self.on_step is not None:
            report = self.on_step
            # Batches are handed out ahead of their training, also some of an epoch that never comes.
            batches.on_step = lambda epoch, step: report(before + epoch, step, batches.steps) if epoch < stop else None

        training, averages = self, optimizer.averages()
        own: list[NDArray[Any]] = []

        class Look(keras.callbacks.Callback):  # type: ignore[misc]
            """Before the callbacks of others: puts the averaged weights in place, validates and tells them."""

            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                self.started = time.perf_counter()

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                number = before + epoch + 1
                loss, accuracy = float(logs["loss"]), float(logs["accuracy"])
                if not math.isfinite(loss):
                    raise TrainingError(
                        f"The training loss of {training.model.name} became {loss} in epoch {number}. Lower "
                        f"{'head_learning_rate' if phase == 'head' else 'learning_rate'} or clip_norm."
                    )
                if averages:
                    own[:] = map(_numpy, net.trainable_variables)
                    _assign(net.trainable_variables, map(_numpy, averages))
                seen = look(epoch + 1 == stop)
                logs.update(seen)
                row = {"epoch": number, "phase": phase, "loss": loss, "accuracy": accuracy}
                training.rows.append(row | seen | {"seconds": time.perf_counter() - self.started})

        class Settle(keras.callbacks.Callback):  # type: ignore[misc]
            """After them: the averaged weights of the last epoch stay, as the result; the state is written down."""

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                ends = epoch + 1 == stop or net.stop_training
                if averages and not ends:
                    _assign(net.trainable_variables, own)
                if not ends:
                    training._save(phase, epoch + 1, optimizer)
                    training._tell()

        others = self.callbacks(phase) if self.callbacks else []
        net.fit(
            feed(lambda: batches.stream(done), batches.example()),
            epochs=stop,
            initial_epoch=done,
            steps_per_epoch=batches.steps,
            callbacks=[Look(), *others, Settle()],
            verbose=0,
            shuffle=False,
        )
        if others and self.rows:
            # They may have stopped it, or put other weights in place at its very end.
            self.rows[-1] |= look(True)
        self._save(phase, stop, optimizer)
        self._tell()

    def _tell(self) -> None:
        if self.on_epoch is not None and self.rows:
            self.on_epoch(self.rows[-1]["epoch"], self.rows[-1])

    def _changing(self, phase: str) -> list[Any]:
        """Return the variables that a phase changes, seeds of dropout included: in the first the backbone stays."""
        net = split_at_features(self.model)[1] if phase == "head" else self.model
        return list(net.variables)

    def _save(self, phase: str, epoch: int, optimizer: Any) -> None:
        if self.checkpoint is None:
            return
        path, identity = self.checkpoint
        state = ([_numpy(v) for v in self._changing(phase)], [_numpy(v) for v in optimizer.variables])
        write_checkpoint(path, identity, FitState(phase, epoch, self.rows, *state))

    def _validate(self, net: Any, side: Side | None) -> dict[str, float]:
        if side is None:
            return {}
        logits, labels = predict_logits(net, side[0], predict_batch_size(self.recipe)), side[1]
        peak = logits.max(axis=1)
        log_sum = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
        loss = log_sum - logits[np.arange(len(labels)), labels]
        return {"val_loss": float(loss.mean()), "val_accuracy": float((logits.argmax(axis=1) == labels).mean())}


def _numpy(variable: Any) -> NDArray[Any]:
    import keras

    # A copy: on a CPU the array may be the variable's own memory, which the next step overwrites.
    return np.array(keras.ops.convert_to_numpy(variable))


def _assign(variables: Any, values: Any) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _is_out_of_memory(error: BaseException) -> bool:
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, MemoryError) or any(
        sign in text for sign in ("ResourceExhausted", "RESOURCE_EXHAUSTED", "OutOfMemory", "out of memory")
    )
