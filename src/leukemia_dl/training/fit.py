"""One fit: a backbone, training images, a recipe and a seed in; a trained model and its learning curves out."""

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
from leukemia_dl.identity import digest
from leukemia_dl.models.build import weights_identity
from leukemia_dl.models.classifier import logits_over_symmetries, predict_logits
from leukemia_dl.models.heads import split_at_features
from leukemia_dl.models.spec import BackboneSpec
from leukemia_dl.training.backends import ComputeConfig, Device, prepare
from leukemia_dl.training.batches import Subset
from leukemia_dl.training.batchnorm import batchnorm_layers
from leukemia_dl.training.callbacks import CallbackFactory, FitContext, load_factory, make_callbacks
from leukemia_dl.training.features import FeatureCache
from leukemia_dl.training.fingerprints import array_fingerprint, backend_fingerprint, net_fingerprint, shapes
from leukemia_dl.training.folds import inner_folds
from leukemia_dl.training.nets import Nets, Stopwatch
from leukemia_dl.training.phases import HEAD_BATCH, Images, Side, Training, predict_batch_size
from leukemia_dl.training.recipe import Recipe

__all__ = ["FitResult", "fit"]

# As shares of the loss of guessing: a net with a final training loss above the first has learned nothing; a fall over
# the last two epochs of more than the second is no convergence.
_GUESSING, _FALLING = 0.97, 0.05
OnStep = Callable[[int, int, int], None]
OnEpoch = Callable[[int, dict[str, Any]], None]


@dataclass(frozen=True, eq=False)
class FitResult:
    """What a fit leaves.

    Attributes:
        model: Trained `keras.Model`, raw RGB to logits.
        recipe: The settings as they were for this backbone, with the batch size that memory allowed.
        history: A row per epoch: `epoch` (from 1), `phase` ("head" or "full"), `engine` (see `ComputeConfig`), `loss`
            and `accuracy` (running, on training images as augmented, the loss as smoothed and weighted), `val_loss` and
            `val_accuracy` where there is a val side (plain), `seconds`; where an epoch was selected, `inner_val_loss`,
            the curve it was chosen by.
        device: Where it ran.
        batchnorm_layers: How many had their statistics re-estimated; 0 with loaded weights, which keep theirs.
        notes: What differs from what was asked for, in words.
        seconds: Build, training and validation together.
        prepare_seconds: The part of them for building and compiling, up to the end of the first step, and for the
            features of a frozen backbone; a later fit may reuse both.
        stopped: Whether a callback ended it early.
        out_of_fold: Logits (n, classes) of the training images, each by a head that did not see its group; None unless
            the recipe trains a pooled head alone.
        features: What `logits` looks features up in.
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
        """Return logits (n, classes), float64, of `images`, uint8 (n, size, size, 3), or a `Subset` of such.

        Where the backbone stayed frozen, from features that the fit's cache may hold already.
        """
        batch = predict_batch_size(self.recipe)
        if self.features is None or self.recipe.epochs:
            return predict_logits(self.model, images, batch)
        features, forms, head = self._frozen(self.features, images)
        return predict_logits(head, Subset.of(features, np.arange(len(images)) * forms), HEAD_BATCH)

    def logits_over_symmetries(self, images: Images) -> NDArray[np.float64]:
        """Return the logits of the eight symmetries of each of `images`: (8, n, classes), float64, likewise."""
        batch = predict_batch_size(self.recipe)
        if self.features is None or self.recipe.epochs or not self.recipe.head_symmetries:
            return logits_over_symmetries(self.model, images, batch)
        features, forms, head = self._frozen(self.features, images)
        return predict_logits(head, features, HEAD_BATCH).reshape(len(images), forms, -1).swapaxes(0, 1)

    def _frozen(self, cache: FeatureCache, images: Images) -> tuple[Subset, int, Any]:
        extractor, head = split_at_features(self.model)
        forms = 8 if self.recipe.head_symmetries else 1
        batch = predict_batch_size(self.recipe)
        return cache.read(extractor, images, self.device, batch, forms), forms, head


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
    nets: Nets | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> FitResult:
    """Train a backbone with a fresh head, and return the net with its learning curves.

    Args:
        spec: The backbone.
        images: Training images, uint8 (n, size, size, 3), RGB, or a `Subset` of such; never changed.
        labels: Class indices (n,), 0 <= label < classes.
        classes: Number of classes.
        recipe: The settings.
        seed: Of weights, order, augmentation and dropout. On one CPU model the result is bitwise repeatable.
        groups: A number per image (n,): images of one group stay together in inner folds. None if nothing is known.
        validation: Images and labels that are watched after each epoch, and never used.
        compute: Device, threads, engine; None for all defaults.
        checkpoints: Folder for the state after each epoch. A fit of the same settings, data and seed goes on from what
            it finds there, to the same bits on a CPU. The folder is left; the caller removes it when the result is
            safe.
        callbacks: Keras callbacks, or a function of a `FitContext` that makes them; None for `recipe.callbacks`.
        folder: Where these may write.
        features: Where what frozen backbones make of images is kept, for other fits; None for this one alone.
        nets: Where the built and compiled net is kept, for the next fit of the same backbone and recipe; that one takes
            it back, so that the model of this result then is the next one's. None for a net of this fit's own.
        on_step: Called with (epoch, step, steps), from 0, as a batch is handed out; maybe from another thread.
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
    asked, recipe = recipe, recipe.for_backbone(spec)
    notes = (
        [f"no {wanted} weights: from random ones"] if (wanted := asked.weights_for(spec)) and not recipe.weights else []
    )
    if not recipe.weights and not recipe.epochs:
        notes.append("a head on features of random weights")
    _check((images, labels), classes, recipe, groups)
    if validation is not None:
        _check(validation, classes, recipe)
    started = time.perf_counter()
    compute = compute or ComputeConfig()
    preparing = Stopwatch()
    with preparing:
        found = prepare(recipe.precision, compute)
    factory = load_factory(recipe.callbacks if callbacks is None else callbacks)
    cache, nets = features or FeatureCache(), nets or Nets()
    once = _Fit(
        spec, classes, seed, found, checkpoints, factory, folder, cache, nets, compute.engine, on_step, on_epoch,
        preparing,
    )  # fmt: skip
    while True:
        try:
            others = once.made_callbacks(recipe)  # before the first epoch: some are refused
            stop, curves = once.select_epoch(recipe, (images, labels), groups)
            training = once.train(recipe, (images, labels), validation, stop, callbacks=others)
            out_of_fold = None
            if not recipe.epochs and recipe.head == "pooled":
                out_of_fold = once.out_of_fold(recipe, training, labels, groups)
            break
        except OutOfMemoryError:
            nets.forget()
            if not recipe.halve_batch or recipe.batch_size == 1:
                raise
            half = recipe.batch_size // 2
            notes.append(f"out of memory with batches of {recipe.batch_size}: {half}")
            recipe = dataclasses.replace(recipe, batch_size=half)
        except BaseException:
            nets.forget()  # its variables may be gone, if a step was interrupted
            raise
    history = pd.DataFrame(training.rows)
    if curves is not None:
        history["inner_val_loss"] = curves.mean(axis=0)[history["epoch"] - 1]
        notes.append(f"epoch {stop} of {recipe.total_epochs} selected on {len(curves)} inner folds")
    stopped = len(history) < stop
    if stopped:
        notes.append(f"stopped by a callback: {len(history)} of {stop} epochs")
    model = training.net.model
    count = len(batchnorm_layers(model)) if recipe.epochs else 0
    shares = np.bincount(labels, minlength=classes) / len(labels)
    notes += _unconverged(history["loss"][history["phase"] == history["phase"].iloc[-1]].to_numpy(), recipe, shares)
    seconds, prepared = time.perf_counter() - started, once.preparing.seconds
    return FitResult(
        model, recipe, history, found, count, tuple(notes), seconds, prepared, stopped, out_of_fold, cache
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Fit:
    """What stays the same in the one or several trainings of a fit."""

    spec: BackboneSpec
    classes: int
    seed: int
    device: Device
    checkpoints: Path | None
    callbacks: CallbackFactory | None
    folder: Path | None
    features: FeatureCache
    nets: Nets
    engine: str
    on_step: OnStep | None
    on_epoch: OnEpoch | None
    preparing: Stopwatch

    def train(
        self, recipe: Recipe, train: Side, validation: Side | None, stop: int, inner: str = "", callbacks: Any = None
    ) -> Training:
        """Build and train a net; `inner` names the fold, "2/5", of a training that only helps to choose."""
        with self.preparing:
            net = self.nets.get(self.spec, recipe, self.classes, self.seed, self.device)
        checkpoint = None
        if self.checkpoints is not None:
            name = f"inner-{inner.split('/')[0]}" if inner else "fit"
            checkpoint = (self.checkpoints / f"{name}.npz", self._identity(net.model, recipe, train, validation, stop))
        training = Training(
            net, recipe, train, validation, self.classes, self.seed, self.device, self.features, self.engine, stop,
            inner=bool(inner), checkpoint=checkpoint, on_step=self.on_step, on_epoch=self._told(inner),
            callbacks=callbacks or {}, preparing=self.preparing,
        )  # fmt: skip
        training.run()
        return training

    def select_epoch(
        self, recipe: Recipe, train: Side, groups: NDArray[np.int64] | None
    ) -> tuple[int, NDArray[np.float64] | None]:
        """Return how many epochs to train, and, if that was selected, the validation losses (folds, epochs)."""
        if not recipe.select_epoch:
            return recipe.total_epochs, None
        images, labels = train
        folds = inner_folds(labels, groups, self.seed)
        if not folds:
            raise SettingsError(
                "select_epoch needs two groups (subjects) of each class in the training side at least, to hold one out."
            )
        curves = []
        for number, (rows, held) in enumerate(folds, 1):
            sides = ((Subset.of(images, rows), labels[rows]), (Subset.of(images, held), labels[held]))
            training = self.train(recipe, *sides, recipe.total_epochs, inner=f"{number}/{len(folds)}")
            curves.append([row["val_loss"] for row in training.rows])
        losses = np.array(curves)
        first = recipe.head_epochs if recipe.epochs else 0
        return first + int(losses.mean(axis=0)[first:].argmin()) + 1, losses

    def out_of_fold(
        self, recipe: Recipe, training: Training, labels: NDArray[np.int64], groups: NDArray[np.int64] | None
    ) -> NDArray[np.float64] | None:
        """Return the logits of heads that did not see an image's group; None where no group can be left out."""
        folds = inner_folds(labels, groups, self.seed)
        if not folds:
            return None
        logits, features = np.empty((len(labels), self.classes)), training.head_features()
        forms = 8 if recipe.head_symmetries else 1
        heads = training.heads_trained_on(rows for rows, _ in folds)
        for head, (_, held) in zip(heads, folds, strict=True):
            logits[held] = predict_logits(head, Subset.of(features, held * forms), HEAD_BATCH)
        return logits

    def _identity(self, model: Any, recipe: Recipe, train: Side, validation: Side | None, stop: int) -> str:
        """Return what two fits have in common that may go on from each other's checkpoints."""
        sides = [array_fingerprint(*side) for side in (train, validation) if side is not None]
        weights = weights_identity(self.spec, recipe.weights_for(self.spec))
        known = net_fingerprint(model) or shapes(model)
        where = [backend_fingerprint(self.device), self.engine]
        return digest([self.spec.name, recipe.to_dict(), weights, self.classes, self.seed, stop, known, sides, where])

    def _told(self, inner: str) -> OnEpoch | None:
        told = self.on_epoch
        if told is None or not inner:
            return told
        return lambda epoch, row: told(epoch, row | {"inner_fold": inner})

    def made_callbacks(self, recipe: Recipe) -> dict[str, list[Any]]:
        """Return the user's Keras callbacks by phase."""
        phases = [name for name, epochs in (("head", recipe.head_epochs), ("full", recipe.epochs)) if epochs]
        contexts = [FitContext(self.spec.name, recipe, self.seed, phase, self.folder) for phase in phases]
        return {} if self.callbacks is None else {c.phase: make_callbacks(self.callbacks, c) for c in contexts}


def _unconverged(losses: NDArray[np.float64], recipe: Recipe, shares: NDArray[np.float64]) -> list[str]:
    """Return a note if the training losses of the last phase end at those of guessing, or still fall; else none."""
    shares = shares[shares > 0] if recipe.class_balance == "none" else np.full(np.count_nonzero(shares), 1.0)
    guessing = -float((shares / shares.sum() * np.log(shares / shares.sum())).sum())
    last = [f"{loss:.3f}" for loss in losses[-3:]]
    if losses[-1] > _GUESSING * guessing:
        return [f"not converged: the training loss ({last[-1]}) is no better than guessing ({guessing:.3f})"]
    falls = len(losses) > 2 and losses[-3] > losses[-2] > losses[-1] and losses[-3] - losses[-1] > _FALLING * guessing
    return [f"not converged: the training loss still fell ({', '.join(last)})"] if falls else []


def _check(side: Side, classes: int, recipe: Recipe, groups: NDArray[np.int64] | None = None) -> None:
    images, labels = side
    shape = (recipe.image_size, recipe.image_size, 3)
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        raise DataError(
            f"Images must be uint8 of shape (n, {recipe.image_size}, {recipe.image_size}, 3), n > 0. "
            f"Received: {images.dtype} of shape {images.shape}."
        )
    if labels.shape != (len(images),) or labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"Labels must be {len(images)} class indices from 0 to {classes - 1}. Received: shape {labels.shape}, "
            f"from {labels.min() if labels.size else 'none'} to {labels.max() if labels.size else 'none'}."
        )
    if groups is not None and np.shape(groups) != labels.shape:
        raise DataError(
            f"groups must be a number for each of {len(images)} images. Received: shape {np.shape(groups)}."
        )
