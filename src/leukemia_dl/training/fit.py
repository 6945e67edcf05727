"""One fit: from a backbone, training images, a recipe and a seed to a trained model and its learning curves."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.errors import DataError, OutOfMemoryError, SettingsError
from leukemia_dl.identity import named_seed
from leukemia_dl.models.build import split_at_features
from leukemia_dl.models.classifier import logits_over_symmetries, predict_logits
from leukemia_dl.models.registry import BackboneSpec
from leukemia_dl.training.backends import ComputeConfig, Device, prepare
from leukemia_dl.training.batches import Images, Side, Subset
from leukemia_dl.training.batchnorm import batchnorm_layers
from leukemia_dl.training.cache import FeatureCache, ModelCache
from leukemia_dl.training.callbacks import CallbackFactory, FitContext, load_factory, make_callbacks
from leukemia_dl.training.loop import HEAD_BATCH, FitJob, Folds, Stopwatch, Training, predict_batch_size
from leukemia_dl.training.recipe import Recipe

__all__ = ["FitResult", "fit"]

# As shares of the loss of guessing: a net with a final training loss above the first has learned nothing; a fall over
# the last two epochs of more than the second is no convergence.
_GUESSING, _FALLING = 0.97, 0.05
_MOST_FOLDS = 5
_OUT_OF_MEMORY = ("ResourceExhausted", "RESOURCE_EXHAUSTED", "OutOfMemory", "out of memory", "MemoryError")


@dataclass(frozen=True, eq=False)
class FitResult:
    """The outcome of a fit.

    Attributes:
        model: Trained `keras.Model`, raw RGB to logits.
        recipe: The settings for this backbone, with the batch size that memory allowed.
        history: A row per epoch: `epoch` (from 1), `phase` ("head" or "full"), `loss` and `accuracy` (running, on
            training images as augmented, the loss as smoothed and weighted), `seconds`; with a val side `val_loss` and
            `val_accuracy` (plain); if an epoch was selected, `inner_val_loss`, the curve it was chosen by.
        device: Device that it ran on.
        batchnorm_layers: Number of layers with re-estimated statistics.
        notes: Differences from the request, in words.
        seconds: Build, training and validation together.
        prepare_seconds: Part of them for building and compiling, up to the end of the first step, and for features.
        stopped: Whether a callback ended it early.
        out_of_fold: Logits (n, classes) of the training images, each by a head that did not see its group; None unless
            the recipe trains a pooled head alone.
        features: Cache of the features, for `logits`.
    """

    model: Any
    recipe: Recipe
    history: pd.DataFrame
    device: Device
    batchnorm_layers: int
    notes: tuple[str, ...]
    seconds: float
    prepare_seconds: float = 0.0
    stopped: bool = False
    out_of_fold: NDArray[np.float64] | None = None
    features: FeatureCache | None = None

    def logits(self, images: Images) -> NDArray[np.float64]:
        """Return logits (n, classes) of uint8 `images` (n, size, size, 3), from cached features if there are any."""
        if self.features is None or self.recipe.epochs:
            return predict_logits(self.model, images, predict_batch_size(self.recipe))
        features, forms, head = self._frozen(self.features, images)
        return predict_logits(head, Subset.of(features, np.arange(len(images)) * forms), HEAD_BATCH)

    def logits_over_symmetries(self, images: Images) -> NDArray[np.float64]:
        """Return the logits (8, n, classes) of the eight symmetries of each of the `images`."""
        if self.features is None or self.recipe.epochs or not self.recipe.head_symmetries:
            return logits_over_symmetries(self.model, images, predict_batch_size(self.recipe))
        features, forms, head = self._frozen(self.features, images)
        return predict_logits(head, features, HEAD_BATCH).reshape(len(images), forms, -1).swapaxes(0, 1)

    def _frozen(self, cache: FeatureCache, images: Images) -> tuple[Subset, int, Any]:
        extractor, head = split_at_features(self.model)
        forms = 8 if self.recipe.head_symmetries else 1
        return cache.read(extractor, images, self.device, predict_batch_size(self.recipe), forms), forms, head


def fit(
    spec: BackboneSpec,
    images: Images,
    labels: NDArray[np.int64],
    classes: int,
    recipe: Recipe,
    *,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
    validation: Side | None = None,
    compute: ComputeConfig | None = None,
    checkpoints: Path | None = None,
    callbacks: CallbackFactory | Sequence[Any] | None = None,
    folder: Path | None = None,
    features: FeatureCache | None = None,
    models: ModelCache | None = None,
    on_epoch: Callable[[int, dict[str, Any]], None] | None = None,
) -> FitResult:
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
        checkpoints: Folder for the state after each epoch, from which a fit of the same settings, data and seed
            continues, to the same bits on a CPU. The caller removes it when the result is safe.
        callbacks: Keras callbacks, or a function of a `FitContext` that makes them; None for `recipe.callbacks`.
        folder: Folder that callbacks may write to.
        features: Cache of features, shared with other fits.
        models: Cache of the built and compiled net. The next fit of the same backbone and recipe uses the net again, so
            that the model of this result changes then.
        on_epoch: Called with the epoch, from 1, and its row of the history; while an epoch is being selected the row
            has the key `inner_fold`, such as "2/5".

    Raises:
        DataError: If images and labels do not fit together or to the recipe.
        SettingsError: If the image size is below the backbone's minimum, or an epoch cannot be selected.
        WeightsError, PluginError: As `leukemia_dl.models.build_model`.
        OutOfMemoryError: If memory runs out; it names the batch size.
        BackendError: If there is no such device.
        TrainingError: If the loss stops being a number.
    """
    wanted, recipe = recipe.weights_for(spec), recipe.for_backbone(spec)
    for side in ((images, labels), validation or (images, labels)):
        _check(side, classes, recipe)
    started, preparing = time.perf_counter(), Stopwatch()
    with preparing:
        device = prepare(recipe.precision, compute)
    factory = load_factory(recipe.callbacks if callbacks is None else callbacks)
    job = FitJob(
        spec, recipe, classes, seed, device, (images, labels), groups, validation, models or ModelCache(),
        features or FeatureCache(), checkpoints, factory, folder, on_epoch, preparing,
    )  # fmt: skip
    notes = [f"no {wanted} weights: from random ones"] if wanted and not recipe.weights else []
    notes += [] if recipe.weights or recipe.epochs else ["a head on features of random weights"]
    while True:
        try:
            training, curves, out_of_fold = _trained(job)
            break
        except BaseException as error:
            job.models.clear()  # its variables may be gone, if a step was interrupted
            if not any(sign in f"{type(error).__name__}: {error}" for sign in _OUT_OF_MEMORY):
                raise
            smaller = _with_smaller_batches(job, error)
            notes.append(f"out of memory with batches of {job.recipe.batch_size}: {smaller.batch_size}")
            job = dataclasses.replace(job, recipe=smaller)
    recipe, stop = job.recipe, training.stop
    made = [callback for phase in training.progress.callbacks.values() for callback in phase]
    history = pd.DataFrame(training.progress.rows)
    if curves is not None:
        history["inner_val_loss"] = curves.mean(axis=0)[history["epoch"] - 1]
        notes.append(f"epoch {stop} of {recipe.total_epochs} selected on {len(curves)} inner folds")
    early = len(history) < stop
    stopped = early or any(getattr(callback, "restore_best_weights", False) for callback in made)
    if stopped:
        notes.append(f"{'stopped' if early else 'weights chosen'} by a callback: {len(history)} of {stop} epochs")
    last_phase = history["loss"][history["phase"] == history["phase"].iloc[-1]].to_numpy()
    notes += _unconverged(last_phase, recipe, np.bincount(labels, minlength=classes) / len(labels))
    return FitResult(
        training.model, recipe, history, device, len(batchnorm_layers(training.model)) if recipe.epochs else 0,
        tuple(notes), time.perf_counter() - started, preparing.seconds, stopped, out_of_fold, job.features,
    )  # fmt: skip


def _with_smaller_batches(job: FitJob, error: BaseException) -> Recipe:
    """Return the recipe with half the batch size, or raise OutOfMemoryError if that was not asked for."""
    recipe, smaller = job.recipe, max(job.recipe.batch_size // 2, 1)
    if not recipe.halve_batch or recipe.batch_size == 1:
        raise OutOfMemoryError(
            f"{job.device.name} ran out of memory training {job.spec.name} with batch_size={recipe.batch_size} at "
            f"{recipe.image_size} pixels. Try batch_size={smaller}, or halve_batch=True to have that done."
        ) from error
    return dataclasses.replace(recipe, batch_size=smaller)


def _check(side: Side, classes: int, recipe: Recipe) -> None:
    (images, labels), size = side, recipe.image_size
    if images.dtype != np.uint8 or images.shape != (len(labels), size, size, 3) or not len(labels):
        raise DataError(
            f"Images must be uint8 (n, {size}, {size}, 3), at least one, with n labels. Received: {images.dtype} "
            f"{images.shape}, {len(labels)} labels."
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


def _trained(job: FitJob) -> tuple[Training, NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Return the training, the validation losses of inner folds (folds, epochs) or None, and out-of-fold logits."""
    recipe, factory, (images, labels) = job.recipe, job.factory, job.train
    phases = [name for name, epochs in (("head", recipe.head_epochs), ("full", recipe.epochs)) if epochs]
    contexts = [FitContext(job.spec.name, recipe, job.seed, phase, job.folder) for phase in phases]
    callbacks = {} if factory is None else {context.phase: make_callbacks(factory, context) for context in contexts}
    head_alone = not recipe.epochs and recipe.head == "pooled"
    folds = _inner_folds(labels, job.groups, job.seed) if recipe.select_epoch or head_alone else []
    stop, curves = recipe.total_epochs, None
    if recipe.select_epoch:
        if not folds:
            raise SettingsError("select_epoch needs two groups (subjects) of each class in the training side.")
        losses = []
        for number, (rows, held) in enumerate(folds, 1):
            inner, other = ((Subset.of(images, part), labels[part]) for part in (rows, held))
            training = Training(job, inner, other, stop, inner_fold=f"{number}/{len(folds)}")
            training.run()
            losses.append([row["val_loss"] for row in training.progress.rows])
        curves = np.array(losses)
        first = recipe.head_epochs if recipe.epochs else 0
        stop = first + int(curves.mean(axis=0)[first:].argmin()) + 1
    training = Training(job, job.train, job.validation, stop, callbacks)
    training.run()
    return training, curves, training.out_of_fold(folds) if folds and head_alone else None


def _inner_folds(labels: NDArray[np.int64], groups: NDArray[np.int64] | None, seed: int) -> Folds:
    """Return (train, held out) row numbers of up to five folds of disjoint groups, stratified by class.

    There are as many folds as the class with the fewest groups has groups, and none if that is one.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    units = np.arange(len(labels)) if groups is None else groups
    folds = min([_MOST_FOLDS, *(len(np.unique(units[labels == label])) for label in np.unique(labels))])
    if folds < 2:
        return []
    # With a group for every image, the splitter for groups takes longer than the heads that it is for.
    alone = len(np.unique(units)) == len(units)
    kind = StratifiedKFold if alone else StratifiedGroupKFold
    splitter = kind(folds, shuffle=True, random_state=named_seed(seed, "inner folds"))
    return list(splitter.split(np.zeros(len(labels)), labels, None if alone else units))
