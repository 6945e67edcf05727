"""One fit: from a backbone, training images, a recipe and a seed to a trained model and its learning curves."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.datasets.splits import draw_folds
from leukemia_dl.errors import DataError, OutOfMemoryError, SettingsError
from leukemia_dl.identity import generator
from leukemia_dl.models.backbones import Spec
from leukemia_dl.models.classifier import predict_logits
from leukemia_dl.models.embeddings import Embeddings
from leukemia_dl.training.backends import ComputeConfig, Device, prepare
from leukemia_dl.training.batches import Images, Side, Subset
from leukemia_dl.training.cache import FeatureCache, ModelCache
from leukemia_dl.training.callbacks import CallbackFactory, FitContext, load_factory, make_callbacks
from leukemia_dl.training.heads import Folds
from leukemia_dl.training.loop import HEAD_BATCH, OnEpoch, Trainer, predict_batch_size
from leukemia_dl.training.recipe import Recipe

# As shares of the loss of guessing: a net with a final training loss above the first has learned nothing; a fall over
# the last two epochs of more than the second is no convergence.
_GUESSING, _FALLING = 0.97, 0.05
_MOST_FOLDS = 5
_OUT_OF_MEMORY = ("ResourceExhausted", "RESOURCE_EXHAUSTED", "OutOfMemory", "out of memory", "MemoryError")


@dataclass(frozen=True, eq=False)
class FitResult:
    """The outcome of a fit.

    Attributes:
        model: Trained `keras.Model`, raw RGB to logits, or an `EncodedNet`.
        extractor: The part of it up to the features, with its `head` from features to logits.
        recipe: The settings for this backbone.
        history: A row per epoch: `epoch` (from 1), `phase` ("head", "full"), running `loss` and `accuracy`, `seconds`;
            `val_loss` and `val_accuracy` of a val side; `inner_val_loss`, the curve by which an epoch was selected.
        device: Device that it ran on.
        notes: Differences from the request, in words.
        seconds: Build, training and validation together.
        prepare_seconds: Part of them for building, compiling, the first execution of each phase, and for features.
        stopped: Whether a callback ended it early.
        out_of_fold: Logits (n, classes) of the training images, each by a head that did not see its group; None unless
            the recipe trains a pooled head alone.
        features: Cache of the features, for `logits`.
    """

    model: Any
    extractor: Any
    head: Any
    recipe: Recipe
    history: pd.DataFrame
    device: Device
    notes: tuple[str, ...]
    seconds: float
    prepare_seconds: float
    stopped: bool
    out_of_fold: NDArray[np.float64] | None
    features: FeatureCache

    def logits(self, images: Images) -> NDArray[np.float64]:
        """Return logits (n, classes) of uint8 `images` (n, size, size, 3), of a head alone by cached features."""
        size = predict_batch_size(self.recipe)
        if self.recipe.epochs:
            return predict_logits(self.model, images, size)
        return predict_logits(self.head, self.features.read(self.extractor, images, self.device, size), HEAD_BATCH)


def fit(
    spec: Spec, images: Images, labels: NDArray[np.int64], classes: int, recipe: Recipe, *, seed: int = 0,
    groups: NDArray[np.int64] | None = None, validation: Side | None = None, compute: ComputeConfig | None = None,
    checkpoints: Path | None = None, callbacks: CallbackFactory | Sequence[Any] | None = None,
    folder: Path | None = None, features: FeatureCache | None = None, models: ModelCache | None = None,
    on_epoch: OnEpoch | None = None,
) -> FitResult:  # fmt: skip
    """Train a backbone with a new head, and return the net with its learning curves.

    Args:
        spec: The backbone.
        images: Training images, uint8 (n, size, size, 3), RGB, or a `Subset` of such; never changed.
        labels: Class indices (n,), 0 <= label < classes.
        classes: Number of classes.
        recipe: The settings.
        seed: Seed of weights, order, augmentation and dropout. On one CPU model the result is bitwise repeatable.
        groups: A number per image (n,): images of one group stay together in inner folds.
        validation: Images and labels that are watched after each epoch, and never used.
        compute: Device and threads.
        checkpoints: Folder for the state after each epoch, with which an equal fit goes on to the same bits.
        callbacks: Keras callbacks, or a function of a `FitContext` that makes them; None for `recipe.callbacks`.
        folder: Folder that callbacks may write to.
        features: Cache of features, shared with other fits.
        models: Cache of the compiled net, which the next fit of the same backbone and recipe trains anew.
        on_epoch: Called with the epoch, from 1, and its row of the history, which in inner folds has `inner_fold`.

    Raises:
        DataError, SettingsError, WeightsError, PluginError, BackendError: For data or settings that cannot be used.
        OutOfMemoryError, TrainingError: If memory runs out (it names the batch size), or the loss is no number.
    """
    wanted, recipe = recipe.weights_for(spec), recipe.for_backbone(spec)
    train, started, stop, curve = (images, labels), time.perf_counter(), recipe.total_epochs, None
    pixels = (recipe.image_size, recipe.image_size, 3)
    shape = spec.features.shape[1:] if isinstance(spec, Embeddings) else pixels
    _check([train, validation or train], classes, shape, np.float32 if isinstance(spec, Embeddings) else np.uint8)
    device = prepare(recipe.precision, compute)
    callbacks = recipe.callbacks if callbacks is None else callbacks
    factory = None if callbacks is None else load_factory(callbacks)
    phases = [name for name, epochs in (("head", recipe.head_epochs), ("full", recipe.epochs)) if epochs]
    contexts = [] if factory is None else [FitContext(spec.name, recipe, seed, phase, folder) for phase in phases]
    made = {context.phase: make_callbacks(factory, context) for context in contexts if factory is not None}
    head_alone, solved = not recipe.epochs and recipe.head == "pooled", recipe.head_solver != "adamw"
    folds = _inner_folds(labels, groups, seed) if recipe.select_epoch or head_alone or solved else []
    trainer = Trainer(
        spec, recipe, classes, seed, device, models or ModelCache(), features or FeatureCache(), checkpoints, on_epoch,
        time.perf_counter() - started, folds,
    )  # fmt: skip
    notes = [f"no {wanted} weights: from random ones"] if wanted and not recipe.weights else []
    notes += [] if recipe.weights or recipe.epochs else ["a head on features of random weights"]
    try:
        if recipe.select_epoch:
            stop, curve = _selected_epoch(trainer, train, folds)
            notes.append(f"epoch {stop} of {recipe.total_epochs} selected on {len(folds)} inner folds")
        history = pd.DataFrame(trainer.train(train, validation, stop, made))
        out_of_fold = trainer.solved if head_alone else None
        if folds and head_alone and not solved:
            out_of_fold = trainer.out_of_fold(train, stop, folds)
    except BaseException as error:
        trainer.models.clear()  # its variables may be gone, if a step was interrupted
        if any(sign in f"{type(error).__name__}: {error}" for sign in _OUT_OF_MEMORY):
            raise OutOfMemoryError(
                f"{device.name} ran out of memory training {spec.name} with batch_size={recipe.batch_size} at "
                f"{recipe.image_size} pixels. Try batch_size={max(recipe.batch_size // 2, 1)}."
            ) from error
        raise
    if curve is not None:
        history["inner_val_loss"] = curve[history["epoch"] - 1]
    early = len(history) < stop
    stopped = early or any(getattr(item, "restore_best_weights", False) for phase in made.values() for item in phase)
    if stopped:
        notes.append(f"{'stopped' if early else 'weights chosen'} by a callback: {len(history)} of {stop} epochs")
    last_phase = history["loss"][history["phase"] == history["phase"].iloc[-1]].to_numpy()
    notes += trainer.notes
    notes += [] if solved and head_alone else _unconverged(last_phase, recipe, np.bincount(labels) / len(labels))
    net = trainer.models
    return FitResult(
        net.model, net.extractor, net.head, recipe, history, device, tuple(notes), time.perf_counter() - started,
        trainer.prepare_seconds, stopped, out_of_fold, trainer.features,
    )  # fmt: skip


def _check(sides: Sequence[Side], classes: int, shape: tuple[Any, ...], dtype: Any) -> None:
    for images, labels in sides:
        first = images[:1]
        if first.dtype != dtype or first.shape != (1, *shape) or len(images) != len(labels):
            wanted = f"{np.dtype(dtype)} (n, {', '.join(map(str, shape))})"
            raise DataError(
                f"Images must be {wanted}, at least one, with n labels. Received: {first.dtype} "
                f"{(len(images), *first.shape[1:])}, {len(labels)} labels."
            )
        if labels.min() < 0 or labels.max() >= classes:
            raise DataError(f"Labels must be from 0 to {classes - 1}. Received: {np.unique(labels)}.")


def _unconverged(losses: NDArray[np.float64], recipe: Recipe, shares: NDArray[np.float64]) -> list[str]:
    """Return a note if the training losses of the last phase end at those of guessing, or still fall; else none."""
    shares = shares[shares > 0] if recipe.class_balance == "none" else np.full(np.count_nonzero(shares), 1.0)
    guessing = -float((shares / shares.sum() * np.log(shares / shares.sum())).sum())
    last = [f"{loss:.3f}" for loss in losses[-3:]]
    if losses[-1] > _GUESSING * guessing:
        return [f"not converged: the training loss ({last[-1]}) is no better than guessing ({guessing:.3f})"]
    falls = len(losses) > 2 and losses[-3] > losses[-2] > losses[-1] and losses[-3] - losses[-1] > _FALLING * guessing
    return [f"not converged: the training loss still fell ({', '.join(last)})"] if falls else []


def _selected_epoch(trainer: Trainer, train: Side, folds: Folds) -> tuple[int, NDArray[np.float64]]:
    """Return the epoch of the last phase with the lowest mean validation loss of inner folds, and all losses."""
    if not folds:
        raise SettingsError("select_epoch needs two groups (subjects) of each class in the training side.")
    (images, labels), recipe, losses = train, trainer.recipe, []
    for number, parts in enumerate(folds, 1):
        inner, other = ((Subset.of(images, part), labels[part]) for part in parts)
        rows = trainer.train(inner, other, recipe.total_epochs, inner_fold=f"{number}/{len(folds)}")
        losses.append([row["val_loss"] for row in rows])
    curve, first = np.mean(losses, axis=0), recipe.head_epochs if recipe.epochs else 0
    return first + int(curve[first:].argmin()) + 1, curve


def _inner_folds(labels: NDArray[np.int64], groups: NDArray[np.int64] | None, seed: int) -> Folds:
    """Return up to five folds of disjoint groups, as many as the rarest class has groups; none if that is one."""
    units = np.arange(len(labels)) if groups is None else groups
    folds = min([_MOST_FOLDS, *(len(np.unique(units[labels == label])) for label in np.unique(labels))])
    if folds < 2:
        return []
    fold = draw_folds(labels, units, folds, generator(seed, "inner folds"))
    return [(np.flatnonzero(fold != number), np.flatnonzero(fold == number)) for number in range(folds)]
