"""Keras callbacks of the user in each fit, from a factory or a list; factories for TensorBoard and MLflow."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leukemia_dl.errors import SettingsError
from leukemia_dl.training.recipe import Recipe

__all__ = ["CallbackFactory", "FitContext", "load_factory", "make_callbacks", "mlflow", "tensorboard"]


@dataclass(frozen=True)
class FitContext:
    """The argument of a callback factory: the fit that its callbacks are for.

    At the end of an epoch callbacks see the weights that are validated: the averages, if the recipe has any. If a fit
    is killed, the state of its callbacks is lost.

    Attributes:
        backbone: Its name.
        recipe: The settings for this backbone.
        seed: Of the trial.
        phase: "head" or "full": the factory is called for each phase, before the first epoch of the fit.
        folder: Folder for logs, one per trial, not made yet; None for a fit outside a benchmark.
    """

    backbone: str
    recipe: Recipe
    seed: int
    phase: str
    folder: Path | None


CallbackFactory = Callable[[FitContext], Iterable[Any]]
"""Makes Keras callbacks for one phase of a fit."""
_RATES = "the recipe sets the learning rates"
_WHOLE = "it would save the network as one phase trains it, not as it predicts: use save_weights_only=True"
_REFUSED = {
    "BackupAndRestore": "a fit resumes from its own checkpoints",
    "CallbackList": "pass its callbacks in a plain list",
    "LearningRateScheduler": _RATES,
    "ModelCheckpoint": _WHOLE,
    "OrbaxCheckpoint": _WHOLE,
    "ReduceLROnPlateau": _RATES,
    "SwapEMAWeights": "the recipe averages the weights: set its ema_momentum",
}


def load_factory(factory: CallbackFactory | Sequence[Any] | str | None) -> CallbackFactory | None:
    """Return a callback `factory` that is given as a function, as "module:function" or as a list of Keras callbacks.

    The callbacks of a list serve every phase of every fit in this process. None stays None.

    Raises:
        SettingsError: If it is none of these, or there is no such module or function.
    """
    found: Any = factory
    if isinstance(factory, (list, tuple)):
        found = _Given(factory)
    elif isinstance(factory, str):
        module, _, name = factory.partition(":")
        try:
            found = getattr(importlib.import_module(module), name)
        except Exception as error:  # an import may raise anything
            found = f"{factory}, which cannot be imported: {type(error).__name__}: {error}"
    if found is not None and not callable(found):
        raise SettingsError(
            'callbacks must be a function of a FitContext, its name as "module:function" or a list of callbacks. '
            f"Received: callbacks={found!r}."
        )
    result: CallbackFactory | None = found
    return result


class _Given(list[Any]):
    """A list of Keras callbacks as a factory, for this process only: other processes would use copies of them."""

    def __call__(self, context: FitContext) -> list[Any]:
        return list(self)

    def __reduce__(self) -> Any:
        raise TypeError("a list of callbacks serves this process alone; pass a function of a FitContext that makes it")


def make_callbacks(factory: CallbackFactory, context: FitContext) -> list[Any]:
    """Return the callbacks of a factory; SettingsError if they are no list, or one cannot be used in a fit."""
    import keras

    made: Any = factory(context)
    if not isinstance(made, (list, tuple)) or not all(isinstance(item, keras.callbacks.Callback) for item in made):
        raise SettingsError(
            f"The callbacks factory must return a list of keras.callbacks.Callback objects. Received: {made!r}."
        )
    for name, reason in _REFUSED.items():
        found = [item for item in made if isinstance(item, getattr(keras.callbacks, name))]
        if not all(name == "ModelCheckpoint" and item.save_weights_only for item in found):
            raise SettingsError(f"keras.callbacks.{name} cannot be used in a fit: {reason}.")
    return list(made)


def tensorboard(context: FitContext) -> list[Any]:
    """Return `keras.callbacks.TensorBoard`, which writes below the trial's folder, `context.folder`.

    Raises:
        SettingsError: If there is no such folder.
    """
    import keras

    if context.folder is None:
        raise SettingsError("tensorboard needs a folder to write to. Pass fit(..., folder=...), or run a Benchmark.")
    return [keras.callbacks.TensorBoard(str(context.folder / "tensorboard" / context.phase), write_graph=False)]


def mlflow(context: FitContext) -> list[Any]:
    """Return a callback that logs the settings of `context` and each epoch to MLflow: a run, below an active one.

    MLflow's own settings choose the place: MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, or the calling program.
    """
    import keras
    import mlflow as library

    class Log(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_begin(self, logs: Any = None) -> None:
            named = {"backbone": context.backbone, "seed": context.seed, "phase": context.phase}
            with library.start_run(run_name=" ".join(map(str, named.values())), nested=True) as run:
                library.log_params(named | context.recipe.to_dict())
            # Ended already, since a fit that fails would leave it open; epochs can still be logged to it.
            self._run, self._client = run.info.run_id, library.MlflowClient()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            for name, value in (logs or {}).items():
                self._client.log_metric(self._run, name, float(value), step=epoch + 1)

    return [Log()]
