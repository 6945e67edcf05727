"""One training: the head on features of the frozen backbone, then every layer on images, by Keras's `fit`."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.atomic import new_file
from leukemia_dl.errors import TrainingError
from leukemia_dl.identity import digest, named_seed
from leukemia_dl.models.backbones import Spec
from leukemia_dl.models.build import batchnorm_layers
from leukemia_dl.models.classifier import predict_logits
from leukemia_dl.training.augmentation import training_model
from leukemia_dl.training.backends import Device, as_fit_input, as_numpy, assign
from leukemia_dl.training.batches import Batches, Images, Side, Subset
from leukemia_dl.training.cache import FeatureCache, ModelCache, array_fingerprint, model_fingerprint
from leukemia_dl.training.heads import Folds, folded, scaler_of, solve_logistic
from leukemia_dl.training.optimizer import build_loss, build_optimizer, class_weights, rates_by_layer
from leukemia_dl.training.recipe import Recipe

HEAD_BATCH = 256  # features per step of a prediction: a head is a small matrix
OnEpoch = Callable[[int, dict[str, Any]], None]
_Callbacks = Mapping[str, list[Any]]  # of the user, by phase
_Validate = Callable[[bool], dict[str, float]]  # given whether the epoch is the last of its phase
_BATCHNORM_IMAGES = 64  # per batch for statistics, and of their estimate before the last epoch
# A state that took longer than this to write is not written again before so many times its duration are over.
_CHEAP_SECONDS, _TIMES_ITS_COST = 0.2, 20
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Progress:
    """The history of a training, the file from which it continues if it is killed, and the functions that follow it."""

    callbacks: _Callbacks = field(default_factory=dict)
    on_epoch: OnEpoch | None = None
    path: Path | None = None
    identity: str = ""  # equal for trainings that may continue from each other's file
    rows: list[dict[str, Any]] = field(default_factory=list)  # a row per epoch
    done: int = 0  # epochs of both phases before those of this process
    optimizer: list[NDArray[Any]] = field(default_factory=list)  # its variables after them
    _next_write: float = 0.0

    def read(self) -> list[NDArray[Any]]:
        """Continue from the file, and return the variables of the model; none if there is no file of this training."""
        if self.path is None or not self.path.exists():
            return []
        try:
            with np.load(self.path, allow_pickle=False) as file:
                state = json.loads(str(file["state"]))
                arrays = {name: file[name] for name in file.files}
        except Exception as error:  # a damaged archive raises about anything
            _log.warning("The checkpoint %s cannot be read and is not used: %s", self.path, error)
            return []
        if state["identity"] != self.identity:
            return []
        self.rows, self.done = state["rows"], state["epoch"]
        self.optimizer = [array for name, array in arrays.items() if name.startswith("optimizer_")]
        return [array for name, array in arrays.items() if name.startswith("model_")]

    def save(self, epoch: int, model: list[Any], optimizer: list[Any], force: bool = False) -> None:
        """Write the state, unless that would take too much of the time and there is no `force`; report the epoch."""
        if force or time.perf_counter() >= self._next_write:
            self._write(epoch, model, optimizer)
        try:
            if self.on_epoch is not None:
                self.on_epoch(self.rows[-1]["epoch"], self.rows[-1])
        except BaseException:  # the fit ends here, because the user or a limit stops it
            self._write(epoch, model, optimizer)
            raise

    def _write(self, epoch: int, model: list[Any], optimizer: list[Any]) -> None:
        if self.path is None:
            return
        began = time.perf_counter()
        state = json.dumps({"identity": self.identity, "epoch": epoch, "rows": self.rows})
        arrays = {f"model_{i}": as_numpy(variable) for i, variable in enumerate(model)}
        arrays |= {f"optimizer_{i}": as_numpy(variable) for i, variable in enumerate(optimizer)}
        try:
            with new_file(self.path) as file:
                np.savez(file, allow_pickle=False, state=np.array(state), **arrays)
        except OSError as error:  # a full disk costs the checkpoint, not the fit
            _log.warning("No checkpoint could be written to %s: %s", self.path, error)
        seconds = time.perf_counter() - began
        self._next_write = began + (_TIMES_ITS_COST + 1) * seconds if seconds > _CHEAP_SECONDS else 0.0


@dataclass(eq=False)
class Trainer:
    """Trains the net of a fit in place, on inner folds and on the whole training side."""

    spec: Spec
    recipe: Recipe
    classes: int
    seed: int
    device: Device
    models: ModelCache
    features: FeatureCache
    checkpoints: Path | None
    on_epoch: OnEpoch | None
    prepare_seconds: float  # of building, compiling and features, up to the end of each phase's first execution
    folds: Folds  # inner folds of the training side, disjoint in groups
    notes: tuple[str, ...] = ()  # on a head that was solved, with its `solved` logits of images held out in folds
    solved: NDArray[np.float64] | None = None

    def train(
        self, train: Side, validation: Side | None, stop: int, callbacks: _Callbacks | None = None, inner_fold: str = ""
    ) -> list[dict[str, Any]]:
        """Train `stop` epochs of both phases, from where a checkpoint ends, and return the rows of the history."""
        recipe, net, report = self.recipe, self.models, self.on_epoch
        with self._preparing():
            net.get(self.spec, recipe, self.classes, self.seed, self.device)
        progress = Progress(callbacks or {}, report)
        if inner_fold and report is not None:
            progress.on_epoch = lambda epoch, row: report(epoch, row | {"inner_fold": inner_fold})
        if self.checkpoints is not None:
            progress.path = self.checkpoints / (f"inner-{inner_fold[0]}.npz" if inner_fold else "fit.npz")
            images = array_fingerprint(*train, *(validation or ()))
            settings = [self.spec.name, recipe.to_dict(), net.weights, stop, self.classes, self.seed]
            progress.identity = digest([*settings, model_fingerprint(net.model, self.device), images])
        row = None if recipe.head_solver == "adamw" else self._solve_head(train, validation)
        if values := progress.read():
            assign((net.head if progress.done <= recipe.head_epochs else net.model).variables, values)
        elif row is not None:
            progress.rows, progress.done = [row], 1
            if progress.on_epoch is not None:
                progress.on_epoch(1, row)
        if progress.done < min(stop, recipe.head_epochs):
            watched = None if validation is None else self._as_features(validation)
            self._train_head(self._as_features(train), watched, min(stop, recipe.head_epochs), progress)
        if recipe.standardize and progress.done <= recipe.head_epochs:
            self._fold_in(self._as_features(train)[0])
        if max(progress.done, recipe.head_epochs) < stop:
            self._train_full(train, validation, stop, progress, inner=bool(inner_fold))
        return progress.rows

    def out_of_fold(self, train: Side, stop: int, folds: Folds) -> NDArray[np.float64]:
        """Return logits (n, classes) of the training images by heads that are trained on other folds than theirs."""
        import keras

        head, (features, labels) = self.models.head, self._as_features(train)
        trained, logits = [as_numpy(variable) for variable in head.variables], np.empty((len(labels), self.classes))
        for rows, held in folds:
            keras.utils.set_random_seed(named_seed(self.seed, "inner head"))
            assign(head.variables, keras.models.clone_model(head).variables)
            self._train_head((Subset.of(features, rows), labels[rows]), None, stop, Progress(), "inner head")
            if self.recipe.standardize:
                self._fold_in(Subset.of(features, rows))
            logits[held] = predict_logits(head, Subset.of(features, held), HEAD_BATCH)
        assign(head.variables, trained)
        return logits

    def _solve_head(self, train: Side, validation: Side | None) -> dict[str, Any]:
        from threadpoolctl import threadpool_limits

        net, clock = self.models, time.perf_counter()
        features, labels = self._as_features(train)
        with threadpool_limits(self.device.threads):
            if self.recipe.head_solver == "logistic":
                balanced = self.recipe.class_balance == "weights"
                *weights, self.solved, self.notes = solve_logistic(features, labels, self.classes, self.folds, balanced)
                net.head.get_layer("logits").set_weights(weights)
            else:
                net.use_neighbours(features, labels, self.classes)
        fitted = self._validated(net.head, (features, labels), HEAD_BATCH)
        row = {"epoch": 1, "phase": "head"} | {name.removeprefix("val_"): value for name, value in fitted.items()}
        watched = None if validation is None else self._as_features(validation)
        return row | self._validated(net.head, watched, HEAD_BATCH) | {"seconds": time.perf_counter() - clock}

    def _fold_in(self, features: Images) -> None:
        layer = next(layer for layer in self.models.head.layers if layer.weights)
        layer.set_weights(folded(scaler_of(features), *layer.get_weights()))

    @contextlib.contextmanager
    def _preparing(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.prepare_seconds += time.perf_counter() - began

    def _as_features(self, side: Side) -> Side:
        with self._preparing():
            size = predict_batch_size(self.recipe)
            return self.features.read(self.models.extractor, side[0], self.device, size), side[1]

    def _train_head(self, train: Side, watched: Side | None, stop: int, progress: Progress, key: str = "head") -> None:
        import keras

        recipe, head, phases = self.recipe, self.models.head, self.models.phases
        if recipe.standardize:
            scaler = scaler_of(train[0])
            train = scaler.transform(train[0][:]), train[1]
            watched = None if watched is None else (scaler.transform(watched[0][:]), watched[1])
        if key not in phases:  # a step is compiled for one number of steps, which is lower for inner folds
            # Not the head itself, which predicts: steps per execution hold for predictions too.
            phases[key] = self._compiled(keras.Model(head.input, head.output), recipe.head_learning_rate, {})
        batches = Batches(train, recipe.batch_size, self.seed, None, class_weights(recipe, train[1], self.classes))
        self._run_phase(
            "head", phases[key], batches, stop, lambda last: self._validated(head, watched, HEAD_BATCH), progress
        )

    def _train_full(self, train: Side, validation: Side | None, stop: int, progress: Progress, inner: bool) -> None:
        recipe, model, phases = self.recipe, self.models.model, self.models.phases
        augmentation, weights = recipe if recipe.augments else None, class_weights(recipe, train[1], self.classes)
        if "full" not in phases:
            rates = rates_by_layer(model, recipe.input_lr_ratio)
            net = training_model(model, recipe) if augmentation else model
            phases["full"] = self._compiled(net, recipe.learning_rate, rates, recipe.ema_momentum)
        batches = Batches(train, recipe.batch_size, self.seed, augmentation, weights)

        def validate(last: bool) -> dict[str, float]:
            # Inner folds are compared epoch by epoch: there the last one is treated as the others are.
            whole = last and not inner
            if not whole and validation is None and not progress.callbacks:
                return {}
            images, parameters = batches.sample(len(batches.labels) if whole else _BATCHNORM_IMAGES)
            size = min(max(_BATCHNORM_IMAGES, recipe.batch_size), 4 * recipe.batch_size)
            reestimate_batchnorm(phases["full"], images, size, parameters)
            return self._validated(model, validation, predict_batch_size(recipe))

        self._run_phase("full", phases["full"], batches, stop - recipe.head_epochs, validate, progress)

    def _compiled(self, model: Any, rate: float, rates: Mapping[int, float], momentum: float = 0.0) -> Any:
        import keras

        # Variables made inside the first step would have TensorFlow trace it twice: half a minute for a deep net.
        with self._preparing():
            optimizer = build_optimizer(self.recipe, rate, rates, momentum)
            optimizer.build(model.trainable_variables)
            loss, metrics = build_loss(self.recipe, self.classes), [keras.metrics.SparseCategoricalAccuracy("accuracy")]
            model.compile(optimizer=optimizer, loss=loss, metrics=metrics, jit_compile=self.device.jit_compile)
        return model

    def _run_phase(
        self, name: str, model: Any, batches: Batches, stop: int, validate: _Validate, progress: Progress
    ) -> None:
        """Train a compiled `model` up to the epoch `stop` of a phase, from where a checkpoint ends."""
        import keras

        recipe, optimizer, others = self.recipe, model.optimizer, progress.callbacks.get(name, [])
        before, epochs = (0, recipe.head_epochs) if name == "head" else (recipe.head_epochs, recipe.epochs)
        variables = (self.models.head if name == "head" else self.models.model).variables
        begin, own, begun = max(0, progress.done - before), list[Any](), list[float]()
        optimizer.start(epochs * batches.steps)
        if begin:
            assign(optimizer.variables, progress.optimizer)

        def begin_epoch(epoch: int, logs: Any) -> None:
            begun.append(time.perf_counter())

        def end_epoch(epoch: int, logs: Any) -> None:
            # Callbacks of the user see the averaged weights, and their validation.
            number, loss, accuracy = before + epoch + 1, float(logs["loss"]), float(logs["accuracy"])
            if not math.isfinite(loss):
                raise TrainingError(f"The training loss became {loss} in epoch {number}. Lower the learning rate.")
            if averages := optimizer.averages():
                own[:] = [as_numpy(variable) for variable in model.trainable_variables]
                assign(model.trainable_variables, averages)
            found = validate(epoch + 1 == stop)
            logs.update(found)
            row = {"epoch": number, "phase": name, "loss": loss, "accuracy": accuracy} | found
            progress.rows.append(row | {"seconds": time.perf_counter() - begun[-1]})

        def save_epoch(epoch: int, logs: Any) -> None:
            if epoch + 1 < stop and not model.stop_training:  # the last one is saved below
                if own:
                    assign(model.trainable_variables, own)
                progress.save(before + epoch + 1, variables, optimizer.variables)

        def end_step(step: int, logs: Any) -> None:
            if started:
                self.prepare_seconds += time.perf_counter() - started.pop()

        # The steps of a head are so short that the time between them counts: a whole epoch is one execution then.
        grouped = name == "head" and keras.backend.backend() == "tensorflow" and not others
        steps = batches.steps if grouped else 1
        if model.steps_per_execution != steps:
            model.steps_per_execution, model.train_function = steps, None
        first = keras.callbacks.LambdaCallback(on_epoch_begin=begin_epoch, on_epoch_end=end_epoch)
        last = keras.callbacks.LambdaCallback(on_epoch_end=save_epoch, on_train_batch_end=end_step)
        last.async_safe = True  # Keras then does not wait for the device after each step
        started = [time.perf_counter()]
        model.fit(
            as_fit_input(lambda: batches.stream(begin, grouped), next(batches.stream()), grouped=grouped),
            epochs=stop, initial_epoch=begin, steps_per_epoch=batches.steps, verbose=0, shuffle=False,
            callbacks=[first, *others, last],
        )  # fmt: skip
        if others:  # they may have stopped it, or put other weights in place at its very end
            progress.rows[-1] |= validate(True)
        progress.save(before + stop, variables, optimizer.variables, force=True)

    def _validated(self, model: Any, side: Side | None, batch_size: int) -> dict[str, float]:
        from scipy.special import log_softmax

        if side is None:
            return {}
        if model.predict_function is None:  # Keras compiles it in the first prediction
            with self._preparing():
                predict_logits(model, side[0][:1], batch_size)
        logits, labels = predict_logits(model, side[0], batch_size), side[1]
        loss = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()
        return {"val_loss": float(loss), "val_accuracy": float((logits.argmax(axis=1) == labels).mean())}


def predict_batch_size(recipe: Recipe) -> int:
    """Return the images per step of a prediction: 32 or more, but few where memory forces batches to be small."""
    return min(max(32, recipe.batch_size), 2 * recipe.batch_size)


def reestimate_batchnorm(
    model: Any, images: Any, batch_size: int, parameters: NDArray[np.float32] | None = None
) -> int:
    """Replace the moving mean and variance of every trainable BatchNormalization layer; return their number.

    Moving averages lag behind the weights: after a dozen steps they mostly hold their initial values. Here batches of
    about `batch_size` images run in training mode, and statistics are pooled exactly ("precise BN", Wu and Johnson
    2021, arXiv:2105.07576). Images come in random order: a batch of one class has other statistics. With `parameters`
    of augmentation, `model` is a `training_model`.
    """
    import keras

    layers = batchnorm_layers(model)
    if not layers or not len(images):
        return 0
    batches = max(1, round(len(images) / batch_size))
    size = len(images) // batches  # equal ones: a remainder of fewer images than there are batches is left out
    momenta = [layer.momentum for layer in layers]
    # Seeds of dropout go on with every pass: whether statistics were looked at must not change what is trained.
    own = {id(variable) for layer in layers for variable in layer.variables}
    others = [variable for variable in model.non_trainable_variables if id(variable) not in own]
    before = [as_numpy(variable) for variable in others]
    sums: list[Any] = [0.0] * len(layers)  # of the means and of the mean squares of the batches
    for layer in layers:
        layer.momentum = 0.0  # the "moving" average then is the batch's own value
    for start in range(0, batches * size, size):
        batch = keras.ops.convert_to_tensor(images[start : start + size])
        if parameters is not None:
            batch = [batch, keras.ops.convert_to_tensor(parameters[start : start + size])]
        model(batch, training=True)
        for number, layer in enumerate(layers):
            mean, variance = (as_numpy(v).astype(float) for v in (layer.moving_mean, layer.moving_variance))
            sums[number] += np.stack([mean, variance + mean**2])
    assign(others, before)
    for layer, momentum, total in zip(layers, momenta, sums, strict=True):
        mean, square = total / batches
        layer.momentum = momentum
        layer.moving_mean.assign(mean.astype(np.float32))
        layer.moving_variance.assign(np.maximum(square - mean**2, 0.0).astype(np.float32))
    return len(layers)
