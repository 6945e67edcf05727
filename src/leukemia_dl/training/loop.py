"""One training: the head on features of the frozen backbone, then every layer on images, by Keras's `fit`."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.atomic import new_file
from leukemia_dl.errors import TrainingError
from leukemia_dl.identity import digest, named_seed
from leukemia_dl.models.build import weights_identity
from leukemia_dl.models.classifier import predict_logits
from leukemia_dl.models.registry import BackboneSpec
from leukemia_dl.training.augmentation import training_model
from leukemia_dl.training.backends import Device, as_fit_input, as_numpy, assign
from leukemia_dl.training.batches import Batches, Side, Subset
from leukemia_dl.training.batchnorm import reestimate_batchnorm
from leukemia_dl.training.cache import FeatureCache, ModelCache, array_fingerprint, every_form, model_fingerprint
from leukemia_dl.training.callbacks import CallbackFactory
from leukemia_dl.training.optimizer import build_loss, build_optimizer, class_weights, rates_by_layer
from leukemia_dl.training.recipe import Recipe

__all__ = ["HEAD_BATCH", "FitJob", "Folds", "Stopwatch", "Training", "predict_batch_size"]

HEAD_BATCH = 256  # features per step of a prediction: a head is a small matrix
Folds = Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]  # row numbers, to train on and held out
# Images per batch for BatchNorm statistics, and the images of the estimate during training; after the last epoch all
# training images are used.
_BATCHNORM_IMAGES = 64
_STEP_HOOKS = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")
# A state that took longer than this to write is not written again before so many times its duration are over.
_CHEAP_SECONDS, _TIMES_ITS_COST = 0.2, 20
_log = logging.getLogger(__name__)


class Stopwatch:
    """Adds up the seconds of all `with` blocks that use it."""

    seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began


@dataclass(frozen=True, eq=False)
class FitJob:
    """The settings, data and caches of a fit, which its trainings share: those of inner folds and the last one."""

    spec: BackboneSpec
    recipe: Recipe
    classes: int
    seed: int
    device: Device
    train: Side
    groups: NDArray[np.int64] | None
    validation: Side | None
    models: ModelCache
    features: FeatureCache
    checkpoints: Path | None
    factory: CallbackFactory | None
    folder: Path | None
    on_epoch: Callable[[int, dict[str, Any]], None] | None
    preparing: Stopwatch  # building, compiling and computing features


@dataclass(eq=False)
class Progress:
    """The history of a training, the file from which it continues if it is killed, and the functions that follow it."""

    preparing: Stopwatch  # runs up to the end of each phase's first step
    callbacks: Mapping[str, list[Any]] = field(default_factory=dict)  # of the user, by phase
    on_epoch: Callable[[int, dict[str, Any]], None] | None = None
    path: Path | None = None
    identity: str = ""  # equal for trainings that may continue from each other's file
    rows: list[dict[str, Any]] = field(default_factory=list)  # a row per epoch
    done: int = 0  # epochs of both phases before those of this process
    optimizer: list[NDArray[Any]] = field(default_factory=list)  # its variables after them
    _saved_at: float = 0.0
    _seconds: float = 0.0

    def read(self) -> list[NDArray[Any]]:
        """Continue from the file, and return the variables of the model; none if there is no file of this training."""
        if self.path is None or not self.path.exists():
            return []
        try:
            with np.load(self.path, allow_pickle=False) as file:
                state = json.loads(str(file["state"]))
                model = [file[f"model_{i}"] for i in range(state["model"])]
                optimizer = [file[f"optimizer_{i}"] for i in range(state["optimizer"])]
        except Exception as error:  # a damaged archive raises about anything
            _log.warning("The checkpoint %s cannot be read and is not used: %s", self.path, error)
            return []
        if state["identity"] != self.identity:
            _log.info("The checkpoint %s is of another fit and is not used", self.path)
            return []
        self.rows, self.done, self.optimizer = state["rows"], state["epoch"], optimizer
        return model

    def save(self, epoch: int, model: Iterable[Any], optimizer: Iterable[Any], force: bool = False) -> None:
        """Write the state, unless that would take too much of the time and there is no `force`; report the epoch."""
        rested = time.perf_counter() - self._saved_at >= _TIMES_ITS_COST * self._seconds
        due = force or rested or self._seconds < _CHEAP_SECONDS
        if due:
            self._write(epoch, model, optimizer)
        if self.on_epoch is None or not self.rows:
            return
        try:
            self.on_epoch(self.rows[-1]["epoch"], self.rows[-1])
        except BaseException:  # the fit ends here, because the user or a limit stops it
            if not due:
                self._write(epoch, model, optimizer)
            raise

    def _write(self, epoch: int, model: Iterable[Any], optimizer: Iterable[Any]) -> None:
        """Write the state; a full disk costs the checkpoint, not the fit."""
        if self.path is None:
            return
        began = time.perf_counter()
        state: dict[str, Any] = {"identity": self.identity, "epoch": epoch, "rows": self.rows}
        arrays: dict[str, NDArray[Any]] = {}
        for kind, variables in (("model", model), ("optimizer", optimizer)):
            values = {f"{kind}_{i}": as_numpy(variable) for i, variable in enumerate(variables)}
            arrays, state[kind] = arrays | values, len(values)
        try:
            with new_file(self.path) as file:
                np.savez(file, allow_pickle=False, state=np.array(json.dumps(state)), **arrays)
        except OSError as error:
            _log.warning("No checkpoint could be written to %s: %s", self.path, error)
        self._saved_at = time.perf_counter()
        self._seconds = self._saved_at - began


@dataclass(eq=False)
class _Phase:
    """One phase of a training."""

    name: str  # "head" or "full"
    model: Any  # compiled
    variables: list[Any]  # every variable that the phase changes
    batches: Batches
    before: int  # epochs of the phase before this one
    epochs: int  # epochs of the recipe, which the learning rates are spread over
    stop: int  # epochs to train; fewer if an epoch was selected
    validate: Callable[[bool], dict[str, float]]  # given whether the epoch is the last, updates BatchNorm and validates
    progress: Progress
    _own: list[NDArray[Any]] = field(default_factory=list, init=False)
    _seconds: list[float] = field(default_factory=list, init=False)

    def run(self) -> None:
        """Train from where the state of a checkpoint ends."""
        import keras

        model, batches, progress = self.model, self.batches, self.progress
        model.optimizer.start(self.epochs * batches.steps)
        begin = max(0, progress.done - self.before)
        if begin:
            assign(model.optimizer.variables, progress.optimizer)
        others = progress.callbacks.get(self.name, [])
        # The steps of a head are so short that the time between them counts: a whole epoch is one execution then.
        grouped = self.name == "head" and keras.backend.backend() == "tensorflow" and not any(map(_uses_steps, others))
        steps = batches.steps if grouped else 1
        if model.steps_per_execution != steps:
            model.steps_per_execution, model.train_function = steps, None
        self._began: float | None = None if grouped else time.perf_counter()
        first = keras.callbacks.LambdaCallback(on_epoch_begin=self._begin_epoch, on_epoch_end=self._validate_epoch)
        last = keras.callbacks.LambdaCallback(on_epoch_end=self._save_epoch, on_train_batch_end=self._end_first_step)
        last.async_safe = True  # Keras then does not wait for the device after each step
        model.fit(
            as_fit_input(lambda: batches.stream(begin, grouped), next(batches.stream()), grouped=grouped),
            epochs=self.stop, initial_epoch=begin, steps_per_epoch=batches.steps, verbose=0, shuffle=False,
            callbacks=[first, *others, last],
        )  # fmt: skip
        if grouped and self._seconds:  # the first step has ended with the first epoch
            ordinary = self._seconds[1] if len(self._seconds) > 1 else 0.0
            progress.preparing.seconds += max(0.0, self._seconds[0] - ordinary)
        if others and progress.rows:
            # They may have stopped it, or put other weights in place at its very end.
            progress.rows[-1] |= self.validate(True)
        self._save(self.stop, force=True)

    def _end_first_step(self, step: int, logs: Any) -> None:
        if self._began is not None:
            self.progress.preparing.seconds += time.perf_counter() - self._began
            self._began = None

    def _begin_epoch(self, epoch: int, logs: Any) -> None:
        self._epoch_began = time.perf_counter()

    def _validate_epoch(self, epoch: int, logs: Any) -> None:
        """Put the averaged weights in place, validate and add a row to the history: callbacks of the user see these."""
        self._seconds.append(time.perf_counter() - self._epoch_began)
        number, loss, accuracy = self.before + epoch + 1, float(logs["loss"]), float(logs["accuracy"])
        if not math.isfinite(loss):
            rate = "head_learning_rate" if self.name == "head" else "learning_rate"
            raise TrainingError(f"The training loss became {loss} in epoch {number}. Lower {rate} or global_clipnorm.")
        if averages := self.model.optimizer.averages():
            self._own = [as_numpy(variable) for variable in self.model.trainable_variables]
            assign(self.model.trainable_variables, averages)
        found = self.validate(epoch + 1 == self.stop)
        logs.update(found)
        row = {"epoch": number, "phase": self.name, "loss": loss, "accuracy": accuracy} | found
        self.progress.rows.append(row | {"seconds": time.perf_counter() - self._epoch_began})

    def _save_epoch(self, epoch: int, logs: Any) -> None:
        """Put the trained weights back and save the state, but for the last epoch: `run` ends it."""
        if epoch + 1 == self.stop or self.model.stop_training:
            return
        if self._own:
            assign(self.model.trainable_variables, self._own)
        self._save(epoch + 1)

    def _save(self, epoch: int, force: bool = False) -> None:
        self.progress.save(self.before + epoch, self.variables, self.model.optimizer.variables, force)


def _uses_steps(callback: Any) -> bool:
    import keras

    plain = keras.callbacks.Callback  # `LambdaCallback` puts its functions into the instance
    return any(getattr(getattr(callback, hook), "__func__", None) is not getattr(plain, hook) for hook in _STEP_HOOKS)


class Training:
    """One net and its way through the phases of the recipe; `model` is trained in place."""

    def __init__(
        self,
        job: FitJob,
        train: Side,
        validation: Side | None,
        stop: int,
        callbacks: Mapping[str, list[Any]] | None = None,
        inner_fold: str = "",
    ) -> None:
        """Build the net. `stop` counts epochs of both phases; an `inner_fold`, "2/5", only helps to choose them."""
        self.job, self.recipe, self.train, self.validation, self.stop = job, job.recipe, train, validation, stop
        self.forms, self.is_inner = 8 if job.recipe.head_symmetries else 1, bool(inner_fold)
        with job.preparing:
            self.built = job.models.get(job.spec, job.recipe, job.classes, job.seed, job.device)
        self.model, report = self.built.model, job.on_epoch
        self.progress = Progress(job.preparing, callbacks or {}, report)
        if inner_fold and report is not None:
            self.progress.on_epoch = lambda epoch, row: report(epoch, row | {"inner_fold": inner_fold})
        if job.checkpoints is not None:
            name = f"inner-{inner_fold.split('/')[0]}" if inner_fold else "fit"
            self.progress.path, self.progress.identity = job.checkpoints / f"{name}.npz", self._identity()

    def _identity(self) -> str:
        job, recipe = self.job, self.recipe
        sides = [array_fingerprint(*side) for side in (self.train, self.validation) if side is not None]
        weights = weights_identity(job.spec, recipe.weights_for(job.spec))
        settings = [job.spec.name, recipe.to_dict(), weights, self.stop, job.classes, job.seed]
        return digest([*settings, model_fingerprint(self.model, job.device), sides])

    def run(self) -> None:
        """Train, from where a checkpoint of this fit ends."""
        if values := self.progress.read():
            in_head = self.progress.done <= self.recipe.head_epochs
            assign((self.built.head if in_head else self.model).variables, values)
        if self.progress.done < min(self.stop, self.recipe.head_epochs):
            watched = None if self.validation is None else self._as_features(self.validation)
            self._train_head(self._as_features(self.train), watched, self.progress)
        if max(self.progress.done, self.recipe.head_epochs) < self.stop:
            self._train_full(self.stop - self.recipe.head_epochs)

    def out_of_fold(self, folds: Folds) -> NDArray[np.float64]:
        """Return logits (n, classes) of the training images by heads that are trained on other folds than theirs."""
        import keras

        head, (features, labels) = self.built.head, self._as_features(self.train)
        trained, logits = [as_numpy(variable) for variable in head.variables], np.empty((len(labels), self.job.classes))
        for rows, held in folds:
            keras.utils.set_random_seed(named_seed(self.job.seed, "inner head"))
            assign(head.variables, keras.models.clone_model(head).variables)
            part = (Subset.of(features, every_form(rows, self.forms)), labels[rows])
            self._train_head(part, None, Progress(self.job.preparing), "inner head")
            logits[held] = predict_logits(head, Subset.of(features, held * self.forms), HEAD_BATCH)
        assign(head.variables, trained)
        return logits

    def _as_features(self, side: Side) -> Side:
        """Return (features (n * forms, width), labels (n,)) of a side."""
        job, size = self.job, predict_batch_size(self.recipe)
        with job.preparing:
            return job.features.read(self.built.extractor, side[0], job.device, size, self.forms), side[1]

    def _train_head(self, train: Side, watched: Side | None, progress: Progress, key: str = "head") -> None:
        """Train the head on features; the backbone stays as it is, BatchNorm statistics included."""
        import keras

        recipe, head, phases = self.recipe, self.built.head, self.built.phases
        if key not in phases:  # a step is compiled for one number of steps, which is lower for inner folds
            # Not the head itself, which predicts: steps per execution hold for predictions too.
            optimizer = build_optimizer(recipe, recipe.head_learning_rate, {})
            phases[key] = self._compiled(keras.Model(head.input, head.output), optimizer)
        if watched is not None:
            watched = (Subset.of(watched[0], np.arange(len(watched[1])) * self.forms), watched[1])
        _Phase(
            "head", phases[key], list(head.variables), self._batches(train, forms=self.forms), 0,
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

        _Phase(
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
