"""The two phases of a fit: a head on features of the frozen backbone, then every layer on images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.identity import digest, named_seed
from leukemia_dl.models.build import weights_identity
from leukemia_dl.models.classifier import predict_logits
from leukemia_dl.models.spec import BackboneSpec
from leukemia_dl.training import fingerprints
from leukemia_dl.training.augmentation import training_model
from leukemia_dl.training.backends import Device
from leukemia_dl.training.batches import Batches, Subset
from leukemia_dl.training.batchnorm import reestimate_batchnorm
from leukemia_dl.training.checkpoints import Checkpoint
from leukemia_dl.training.features import FeatureCache, every_form
from leukemia_dl.training.loop import PhaseLoop, Progress, Stopwatch
from leukemia_dl.training.model_cache import BuiltModel, ModelCache, assign
from leukemia_dl.training.optimizer import build_loss, build_optimizer, class_weights, rates_by_layer
from leukemia_dl.training.recipe import Recipe

__all__ = ["HEAD_BATCH", "FitJob", "Images", "Side", "Training", "predict_batch_size"]

# Images per batch for BatchNorm statistics, and the images of the estimate during training; after the last epoch all
# training images are used.
_BATCHNORM_IMAGES = 64
HEAD_BATCH = 256  # features per step of a prediction: a head is a small matrix
Images = NDArray[Any] | Subset
Side = tuple[Images, NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class FitJob:
    """Everything that the trainings of one fit have in common: those of inner folds and the last one."""

    spec: BackboneSpec
    recipe: Recipe
    classes: int
    seed: int
    device: Device
    models: ModelCache
    features: FeatureCache
    checkpoints: Path | None = None
    callbacks: Mapping[str, list[Any]] = field(default_factory=dict)  # by phase, for the last training only
    on_epoch: Callable[[int, dict[str, Any]], None] | None = None
    preparing: Stopwatch = field(default_factory=Stopwatch)  # building, compiling and computing features


class Training:
    """One net and its way through the phases of the recipe; `model` is trained in place."""

    def __init__(self, job: FitJob, train: Side, validation: Side | None, stop: int, inner_fold: str = "") -> None:
        """Build the net. `stop` counts epochs of both phases; an `inner_fold`, "2/5", only helps to choose them."""
        self.job, self.recipe, self.train, self.validation, self.stop = job, job.recipe, train, validation, stop
        self.forms, self.is_inner = 8 if job.recipe.head_symmetries else 1, bool(inner_fold)
        with job.preparing:
            self.built = job.models.get(job.spec, job.recipe, job.classes, job.seed, job.device)
        self.model = self.built.model
        self.progress = Progress(Checkpoint(), job.callbacks, job.on_epoch, job.preparing)
        if inner_fold:
            self.progress.callbacks = {}
            if (report := job.on_epoch) is not None:
                self.progress.on_epoch = lambda epoch, row: report(epoch, row | {"inner_fold": inner_fold})
        if job.checkpoints is not None:
            name = f"inner-{inner_fold.split('/')[0]}" if inner_fold else "fit"
            self.progress.checkpoint = Checkpoint(job.checkpoints / f"{name}.npz", self._identity())

    def _identity(self) -> str:
        job, recipe = self.job, self.recipe
        sides = [fingerprints.array_fingerprint(*side) for side in (self.train, self.validation) if side is not None]
        net = [fingerprints.net_fingerprint(self.model), fingerprints.weights_fingerprint(self.model)]
        settings = [recipe.to_dict(), weights_identity(job.spec, recipe.weights_for(job.spec)), self.stop]
        where = [*fingerprints.backend_fingerprint(job.device), job.classes, job.seed]
        return digest([job.spec.name, settings, net, sides, where])

    def run(self) -> None:
        """Train, from where a checkpoint of this fit ends."""
        found = self.progress.resumed = self.progress.checkpoint.read()
        if found is not None:
            assign((self.built.head if found.phase == "head" else self.model).variables, found.model)
            self.progress.rows = found.rows
        in_head, in_full = min(self.stop, self.recipe.head_epochs), self.stop - self.recipe.head_epochs
        if in_head and (found is None or (found.phase == "head" and found.epoch < in_head)):
            watched = None if self.validation is None else self._as_features(self.validation)
            self._train_head(self.built, self._as_features(self.train), watched, self.progress)
        if in_full > 0 and (found is None or found.phase == "head" or found.epoch < in_full):
            self._train_full(in_full)

    def out_of_fold(self, folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> NDArray[np.float64]:
        """Return logits (n, classes) of the training images by heads that are trained on other folds than theirs."""
        import keras

        features, labels = self._as_features(self.train)
        logits = np.empty((len(labels), self.job.classes))
        for rows, held in folds:
            keras.utils.set_random_seed(named_seed(self.job.seed, "inner head"))
            head = keras.models.clone_model(self.built.head)
            if self.built.inner_head is None:
                self.built.inner_head = BuiltModel(head, None, head)
            inner = self.built.inner_head
            assign(inner.head.variables, head.variables)
            part = (Subset.of(features, every_form(rows, self.forms)), labels[rows])
            self._train_head(inner, part, None, Progress(preparing=self.job.preparing))
            logits[held] = predict_logits(inner.head, Subset.of(features, held * self.forms), HEAD_BATCH)
        return logits

    def _as_features(self, side: Side) -> Side:
        """Return (features (n * forms, width), labels (n,)) of a side."""
        job, size = self.job, predict_batch_size(self.recipe)
        with job.preparing:
            return job.features.read(self.built.extractor, side[0], job.device, size, self.forms), side[1]

    def _train_head(self, built: BuiltModel, train: Side, watched: Side | None, progress: Progress) -> None:
        """Train a head on features; the backbone stays as it is, BatchNorm statistics included."""
        import keras

        recipe, head = self.recipe, built.head
        if "head" not in built.phases:
            # Not the head itself, which predicts: steps per execution hold for predictions too.
            optimizer = build_optimizer(recipe, recipe.head_learning_rate, {})
            built.phases["head"] = self._compiled(keras.Model(head.input, head.output), optimizer)
        if watched is not None:
            watched = (Subset.of(watched[0], np.arange(len(watched[1])) * self.forms), watched[1])
        PhaseLoop(
            "head", built.phases["head"], list(head.variables), self._batches(train, forms=self.forms), 0,
            recipe.head_epochs, min(self.stop, recipe.head_epochs),
            lambda last: self._validated(head, watched, HEAD_BATCH), progress,
        ).run()  # fmt: skip

    def _train_full(self, stop: int) -> None:
        """Train every layer on images."""
        recipe, model, phases = self.recipe, self.model, self.built.phases
        batches = self._batches(self.train, augmentation=recipe if recipe.augments else None)
        if "full" not in phases:
            rates = rates_by_layer(model, recipe.input_lr_ratio)
            optimizer = build_optimizer(recipe, recipe.learning_rate, rates, recipe.ema_momentum)
            phases["full"] = self._compiled(training_model(model, recipe) if recipe.augments else model, optimizer)

        def validate(last: bool) -> dict[str, float]:
            # Inner folds are compared epoch by epoch: there the last one is treated as the others are.
            whole = last and not self.is_inner
            if not whole and self.validation is None and not self.progress.callbacks:
                return {}
            images, parameters = batches.sample(len(batches.labels) if whole else _BATCHNORM_IMAGES)
            size = min(max(_BATCHNORM_IMAGES, recipe.batch_size), 4 * recipe.batch_size)
            reestimate_batchnorm(phases["full"], images, size, parameters)
            return self._validated(model, self.validation, predict_batch_size(recipe))

        PhaseLoop(
            "full", phases["full"], list(model.variables), batches, recipe.head_epochs, recipe.epochs, stop, validate,
            self.progress,
        ).run()  # fmt: skip

    def _batches(self, side: Side, **settings: Any) -> Batches:
        recipe = self.recipe
        balanced, weights = recipe.class_balance == "batches", class_weights(recipe, side[1], self.job.classes)
        return Batches(*side, recipe.batch_size, self.job.seed, balanced=balanced, weights=weights, **settings)

    def _compiled(self, model: Any, optimizer: Any) -> Any:
        import keras

        # Variables made inside the first step would have TensorFlow trace it twice: half a minute for a deep net.
        with self.job.preparing:
            optimizer.build(model.trainable_variables)
            loss = build_loss(self.recipe, self.job.classes)
            metrics = [keras.metrics.SparseCategoricalAccuracy("accuracy")]
            model.compile(optimizer=optimizer, loss=loss, metrics=metrics, jit_compile=self.job.device.jit_compile)
        return model

    def _validated(self, model: Any, side: Side | None, batch_size: int) -> dict[str, float]:
        from scipy.special import log_softmax

        if side is None:
            return {}
        if model.predict_function is None:  # Keras compiles it in the first prediction
            with self.job.preparing:
                predict_logits(model, side[0][:1], batch_size)
        logits, labels = predict_logits(model, side[0], batch_size), side[1]
        loss = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()
        return {"val_loss": float(loss), "val_accuracy": float((logits.argmax(axis=1) == labels).mean())}


def predict_batch_size(recipe: Recipe) -> int:
    """Return the images per step of a prediction: more than in training, since no gradients are kept.

    Where memory forces the batches of training to be small, they are small too.
    """
    return min(max(32, recipe.batch_size), 2 * recipe.batch_size)
