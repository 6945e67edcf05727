"""The two phases of a fit, epoch by epoch: the head on features of a frozen backbone, then every layer on images."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.errors import OutOfMemoryError, TrainingError
from leukemia_dl.identity import named_seed
from leukemia_dl.models.classifier import predict_logits
from leukemia_dl.models.heads import split_at_features
from leukemia_dl.training.augmentation import training_model
from leukemia_dl.training.backends import Device
from leukemia_dl.training.batches import Batches, Subset
from leukemia_dl.training.batchnorm import reestimate_batchnorm
from leukemia_dl.training.checkpoints import FitState, read_checkpoint, write_checkpoint
from leukemia_dl.training.engines import choose_engine
from leukemia_dl.training.features import FeatureCache
from leukemia_dl.training.nets import Compiled, Net, Stopwatch, as_numpy, assign
from leukemia_dl.training.optimizer import build_loss, build_optimizer, class_weights, rates_by_layer
from leukemia_dl.training.recipe import Recipe
from leukemia_dl.training.scan import training_pass

__all__ = ["HEAD_BATCH", "Images", "Side", "Training", "every_form", "predict_batch_size"]

# BatchNorm statistics: so many images per batch, and one such batch for an honest curve while training goes on; after
# the last epoch all training images.
_BATCHNORM_IMAGES = 64
# A checkpoint that took longer than this is not written again before so many times its duration are over.
_CHEAP_SECONDS, _TIMES_ITS_COST = 0.2, 20
# Features per step of a prediction: a head is a small matrix.
HEAD_BATCH = 256
_log = logging.getLogger(__name__)
Images = NDArray[Any] | Subset
Side = tuple[Images, NDArray[np.int64]]
# Given whether the epoch is the last, brings statistics up to date and returns validation metrics.
_Look = Callable[[bool], dict[str, float]]


def predict_batch_size(recipe: Recipe) -> int:
    """Return how many images a prediction takes per step: more than in training, since no gradients are kept.

    Where memory forced the batches of training down, they follow.
    """
    return min(max(32, recipe.batch_size), 2 * recipe.batch_size)


def every_form(rows: NDArray[np.int64], forms: int) -> NDArray[np.int64]:
    """Return where all forms of some images lie among features."""
    return (rows[:, None] * forms + np.arange(forms)).ravel()


@dataclass(eq=False)
class Training:
    """A built model on its way through the phases of its recipe.

    Attributes:
        net: Its model, pixels to logits, is trained in place.
        train: uint8 images and class indices.
        validation: The same of the val side, watched after each epoch; or None.
        inner: Whether it only helps to choose an epoch.
        stop: Epochs of both phases to run; fewer than the recipe's where an epoch was selected. The rates are those of
            the whole.
        checkpoint: File of the state, and what identifies this fit; or None.
        on_step: Called with (epoch, step, steps), epochs of both phases counted from 0.
        on_epoch: Called with the epoch, from 1, and its row.
        callbacks: The user's Keras callbacks, by phase.
        preparing: Adds up the seconds of compiling, and of computing features.
    """

    net: Net
    recipe: Recipe
    train: Side
    validation: Side | None
    classes: int
    seed: int
    device: Device
    features: FeatureCache
    engine: str
    stop: int
    inner: bool = False
    checkpoint: tuple[Path, str] | None = None
    on_step: Callable[[int, int, int], None] | None = None
    on_epoch: Callable[[int, dict[str, Any]], None] | None = None
    callbacks: Mapping[str, list[Any]] = field(default_factory=dict)
    preparing: Stopwatch = field(default_factory=Stopwatch)
    rows: list[dict[str, Any]] = field(default_factory=list)
    _features: Subset | None = field(default=None, init=False)
    _resumed: FitState | None = field(default=None, init=False)
    _saved_at: float = field(default=0.0, init=False)
    _save_seconds: float = field(default=0.0, init=False)

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
                f"{self.device.name} ran out of memory training {self.net.model.name} with batch_size="
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
        assign(variables, found.model)
        self.rows = found.rows
        self._resumed = found

    def head_features(self) -> Subset:
        """Return what the head is given of the training images (n * forms, features), computed once."""
        if self._features is None:
            self._features = self.features_of(self.train[0])
        return self._features

    def features_of(self, images: Images) -> Subset:
        """Return what the head is given of images."""
        extractor, _ = split_at_features(self.net.model)
        size, on_step = predict_batch_size(self.recipe), self.on_step
        on_batch = None if on_step is None else lambda batch, batches: on_step(0, batch, batches)
        with self.preparing:
            return self.features.read(extractor, images, self.device, size, self._forms, on_batch)

    @property
    def _forms(self) -> int:
        return 8 if self.recipe.head_symmetries else 1

    def heads_trained_on(self, folds: Iterable[NDArray[np.int64]]) -> Iterator[Any]:
        """Yield for each fold, rows of the training images, a head trained on it as the first phase does.

        It maps features to logits; the next fold takes it back.
        """
        import keras

        _, head = split_at_features(self.net.model)
        features = self.head_features()
        for rows in folds:
            keras.utils.set_random_seed(named_seed(self.seed, "inner head"))
            new = keras.models.clone_model(head)
            if self.net.inner_head is None:
                self.net.inner_head = Net(new)
            else:
                assign(self.net.inner_head.model.variables, new.variables)
            net = self.net.inner_head
            part = (Subset.of(features, every_form(rows, self._forms)), self.train[1][rows])
            inner = Training(
                net, self.recipe, part, None, self.classes, self.seed, self.device, self.features, self.engine,
                self.stop, preparing=self.preparing,
            )  # fmt: skip
            inner._fit_head(net.model, part, None)
            yield net.model

    def _train_head(self) -> None:
        """Train the head on features computed once; the backbone stays as it is, BatchNorm statistics included."""
        if self._resumed is not None and (self._resumed.phase == "full" or self._resumed.epoch >= self._head_stop):
            return  # what it led to is in the weights already
        _, head = split_at_features(self.net.model)
        watched = None
        if self.validation is not None:
            images, labels = self.validation
            features = self.features_of(images)
            watched = (Subset.of(features, np.arange(len(labels)) * self._forms), labels)
        self._fit_head(head, (self.head_features(), self.train[1]), watched)

    def _fit_head(self, head: Any, train: Side, watched: Side | None) -> None:
        recipe = self.recipe
        balanced, weights = recipe.class_balance == "batches", class_weights(recipe, train[1], self.classes)
        batches = Batches(
            *train, recipe.batch_size, self.seed, balanced=balanced, forms=self._forms, weights=weights
        )  # fmt: skip

        if "head" not in self.net.phases:
            self.net.phases["head"] = self._compiled(head, build_optimizer(recipe, recipe.head_learning_rate, {}))
        compiled = self.net.phases["head"]  # maybe another object than `head`, of the same variables
        look = partial(self._validate, compiled.net, watched)
        self._train_phase("head", compiled, batches, recipe.head_epochs, self._head_stop, lambda last: look())

    @property
    def _head_stop(self) -> int:
        return min(self.stop, self.recipe.head_epochs)

    def _train_all(self, stop: int) -> None:
        """Train every layer on images."""
        recipe, (images, labels), model = self.recipe, self.train, self.net.model
        if self._resumed is not None and self._resumed.phase == "full" and self._resumed.epoch >= stop:
            return
        balanced, weights = recipe.class_balance == "batches", class_weights(recipe, labels, self.classes)
        augmentation = recipe if recipe.augments else None
        batches = Batches(
            images, labels, recipe.batch_size, self.seed, augmentation, balanced=balanced, weights=weights
        )  # fmt: skip
        if "full" not in self.net.phases:
            net = training_model(model, recipe) if recipe.augments else model
            rates = rates_by_layer(model, recipe.input_lr_ratio)
            optimizer = build_optimizer(recipe, recipe.learning_rate, rates, average=recipe.ema_momentum)
            self.net.phases["full"] = self._compiled(net, optimizer)
        net = self.net.phases["full"].net

        def look(last: bool) -> dict[str, float]:
            # Inner folds are compared epoch by epoch: there the last one is looked at as the others are.
            whole = last and not self.inner
            if not whole and self.validation is None and not self.callbacks:
                return {}  # nobody looks
            part, turned = batches.sample(len(labels) if whole else _BATCHNORM_IMAGES)
            size = min(max(_BATCHNORM_IMAGES, recipe.batch_size), 4 * recipe.batch_size)
            if self.net.forward is None and self.device.kind != "cpu" and self.device.backend != "torch":
                self.net.forward = training_pass(net)
            reestimate_batchnorm(net, part, size, self.net.forward, turned)
            return self._validate(model, self.validation)

        self._train_phase("full", self.net.phases["full"], batches, recipe.epochs, stop, look)

    def _compiled(self, net: Any, optimizer: Any) -> Compiled:
        import keras

        # Variables made inside the first step would have TensorFlow trace it twice: half a minute for a deep net.
        with self.preparing:
            optimizer.build(net.trainable_variables)
            loss, metrics = build_loss(self.recipe, self.classes), [keras.metrics.SparseCategoricalAccuracy("accuracy")]
            net.compile(optimizer=optimizer, loss=loss, metrics=metrics, jit_compile=self.device.jit_compile)
        return Compiled(net, optimizer)

    def _train_phase(
        self, phase: str, compiled: Compiled, batches: Batches, epochs: int, stop: int, look: _Look
    ) -> None:
        """Train one phase up to its epoch `stop`, with the learning rates of all its `epochs` in the recipe."""
        import keras

        done, net, optimizer = 0, compiled.net, compiled.optimizer
        optimizer.start(epochs * batches.steps)
        if self._resumed is not None and self._resumed.phase == phase:
            done = self._resumed.epoch
            assign(optimizer.variables, self._resumed.optimizer)
        before = 0 if phase == "head" else self.recipe.head_epochs
        if self.on_step is not None:
            report = self.on_step
            # Batches are handed out ahead of their training, also some of an epoch that never comes.
            batches.on_step = lambda epoch, step: report(before + epoch, step, batches.steps) if epoch < stop else None

        others = self.callbacks.get(phase, [])
        engine = choose_engine(self.engine, self.device, batches.images, phase, others)
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
                        f"The training loss of {training.net.model.name} became {loss} in epoch {number}. Lower "
                        f"{'head_learning_rate' if phase == 'head' else 'learning_rate'} or global_clipnorm."
                    )
                if averages:
                    own[:] = map(as_numpy, net.trainable_variables)
                    assign(net.trainable_variables, averages)
                seen = look(epoch + 1 == stop)
                logs.update(seen)
                row = {"epoch": number, "phase": phase, "engine": engine.name, "loss": loss, "accuracy": accuracy}
                training.rows.append(row | seen | {"seconds": time.perf_counter() - self.started})

        class Settle(keras.callbacks.Callback):  # type: ignore[misc]
            """After them: the averaged weights of the last epoch stay, as the result; the state is written down."""

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                ends = epoch + 1 == stop or net.stop_training
                if averages and not ends:
                    assign(net.trainable_variables, own)
                if not ends:
                    training._settle(phase, epoch + 1, optimizer)

        first_step = engine.train(compiled, batches, done, stop, [Look(), *others, Settle()])
        self.preparing.seconds += first_step  # read after it: validation adds its own compiling
        if others and self.rows:
            # They may have stopped it, or put other weights in place at its very end.
            self.rows[-1] |= look(True)
        self._settle(phase, stop, optimizer, ends=True)

    def _settle(self, phase: str, epoch: int, optimizer: Any, ends: bool = False) -> None:
        """Write the state down, unless that would take too much of the time, and tell of the epoch."""
        began = time.perf_counter()
        due = began - self._saved_at >= _TIMES_ITS_COST * self._save_seconds or self._save_seconds < _CHEAP_SECONDS
        if due or ends:
            self._save(phase, epoch, optimizer)
            self._saved_at = time.perf_counter()
            self._save_seconds = self._saved_at - began
        if self.on_epoch is None or not self.rows:
            return
        try:
            self.on_epoch(self.rows[-1]["epoch"], self.rows[-1])
        except BaseException:  # it ends here, by the user's wish or a limit
            if not due:
                self._save(phase, epoch, optimizer)
            raise

    def _changing(self, phase: str) -> list[Any]:
        """Return the variables that a phase changes, seeds of dropout included: in the first the backbone stays."""
        net = split_at_features(self.net.model)[1] if phase == "head" else self.net.model
        return list(net.variables)

    def _save(self, phase: str, epoch: int, optimizer: Any) -> None:
        if self.checkpoint is None:
            return
        path, identity = self.checkpoint
        state = ([as_numpy(v) for v in self._changing(phase)], [as_numpy(v) for v in optimizer.variables])
        write_checkpoint(path, identity, FitState(phase, epoch, self.rows, *state))

    def _validate(self, net: Any, side: Side | None) -> dict[str, float]:
        if side is None:
            return {}
        size = predict_batch_size(self.recipe) if net is self.net.model else HEAD_BATCH
        if net.predict_function is None:  # Keras compiles it in the first prediction
            with self.preparing:
                predict_logits(net, side[0][:1], size)
        logits, labels = predict_logits(net, side[0], size), side[1]
        peak = logits.max(axis=1)
        log_sum = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
        loss = log_sum - logits[np.arange(len(labels)), labels]
        return {"val_loss": float(loss.mean()), "val_accuracy": float((logits.argmax(axis=1) == labels).mean())}


def _is_out_of_memory(error: BaseException) -> bool:
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, MemoryError) or any(
        sign in text for sign in ("ResourceExhausted", "RESOURCE_EXHAUSTED", "OutOfMemory", "out of memory")
    )
