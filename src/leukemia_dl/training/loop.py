"""The loop of one phase of a fit: Keras's `fit` with validation, averaged weights, history and checkpoint per epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from leukemia_dl.errors import TrainingError
from leukemia_dl.models.backend import backend_name
from leukemia_dl.training.backends import as_fit_input
from leukemia_dl.training.batches import Batches
from leukemia_dl.training.checkpoints import Checkpoint, FitState
from leukemia_dl.training.model_cache import as_numpy, assign

__all__ = ["PhaseLoop", "Progress", "Stopwatch"]

_STEP_HOOKS = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")


class Stopwatch:
    """Adds up the seconds of all `with` blocks that use it."""

    seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began


@dataclass(eq=False)
class Progress:
    """History of a training, a row per epoch, and the objects that follow it."""

    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    callbacks: Mapping[str, list[Any]] = field(default_factory=dict)  # of the user, by phase
    on_epoch: Callable[[int, dict[str, Any]], None] | None = None
    preparing: Stopwatch = field(default_factory=Stopwatch)  # up to the end of each phase's first step
    rows: list[dict[str, Any]] = field(default_factory=list)
    resumed: FitState | None = None  # state of the checkpoint


@dataclass(eq=False)
class PhaseLoop:
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

        model, batches, progress, begin = self.model, self.batches, self.progress, 0
        model.optimizer.start(self.epochs * batches.steps)
        if progress.resumed is not None and progress.resumed.phase == self.name:
            begin = progress.resumed.epoch
            assign(model.optimizer.variables, progress.resumed.optimizer)
        others = progress.callbacks.get(self.name, [])
        # The steps of a head are so short that the time between them counts: a whole epoch is one execution then.
        grouped = self.name == "head" and backend_name() == "tensorflow" and not any(map(_uses_steps, others))
        steps = batches.steps if grouped else 1
        if model.steps_per_execution != steps:
            model.steps_per_execution, model.train_function = steps, None
        stream = batches.grouped if grouped else batches.stream
        self._began: float | None = None if grouped else time.perf_counter()
        first = keras.callbacks.LambdaCallback(on_epoch_begin=self._begin_epoch, on_epoch_end=self._validate_epoch)
        last = keras.callbacks.LambdaCallback(on_epoch_end=self._save_epoch, on_train_batch_end=self._end_first_step)
        last.async_safe = True  # Keras then does not wait for the device after each step
        model.fit(
            as_fit_input(lambda: stream(begin), batches.example(), grouped=grouped),
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
        """Save the state, unless that would take too much of the time, and report the epoch."""
        progress = self.progress

        def state() -> FitState:
            values = [[as_numpy(v) for v in group] for group in (self.variables, self.model.optimizer.variables)]
            return FitState(self.name, epoch, progress.rows, *values)

        is_saved = progress.checkpoint.save(state, force)
        if progress.on_epoch is None or not progress.rows:
            return
        try:
            progress.on_epoch(progress.rows[-1]["epoch"], progress.rows[-1])
        except BaseException:  # the fit ends here, because the user or a limit stops it
            if not is_saved:
                progress.checkpoint.save(state, force=True)
            raise


def _uses_steps(callback: Any) -> bool:
    import keras

    plain = keras.callbacks.Callback  # `LambdaCallback` puts its functions into the instance
    return any(getattr(getattr(callback, hook), "__func__", None) is not getattr(plain, hook) for hook in _STEP_HOOKS)
