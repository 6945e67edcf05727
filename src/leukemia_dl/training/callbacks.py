"""Keras callbacks of the user in each fit, from a factory or a list; factories for TensorBoard and MLflow."""

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
# Classes of Keras that would set the learning rate, average weights or save whole nets, which is done by the recipe.
_REFUSED = (
    "BackupAndRestore", "CallbackList", "LearningRateScheduler", "ModelCheckpoint", "OrbaxCheckpoint",
    "ReduceLROnPlateau", "SwapEMAWeights",
)  # fmt: skip


def load_factory(factory: CallbackFactory | Sequence[Any] | str | None) -> CallbackFactory | None:
    """Return a callback `factory` that is given as a function, as "module:function" or as a list of Keras callbacks.

    The callbacks of a list serve every phase of every fit in this process. None stays None. Raises SettingsError if it
    is none of these, or there is no such module or function.
    """
    found: Any = factory
    if isinstance(factory, str):
        module, _, name = factory.partition(":")
        try:
            found = getattr(importlib.import_module(module), name)
        except Exception as error:  # an import may raise anything
            found = f"{factory}, which cannot be imported: {type(error).__name__}: {error}"
    result: CallbackFactory | None = _Given(found) if isinstance(found, (list, tuple)) else found
    if result is not None and not callable(result):
        raise SettingsError(f'callbacks must be a function, "module:function" or a list. Received: callbacks={found}.')
    return result


class _Given(list[Any]):
    """A list of Keras callbacks as a factory, for this process only: other processes would use copies of them."""

    def __call__(self, context: FitContext) -> list[Any]:
        return list(self)

    def __reduce__(self) -> Any:
        raise TypeError("a list of callbacks serves this process alone; pass a function of a FitContext that makes it")


def make_callbacks(factory: CallbackFactory, context: FitContext) -> list[Any]:
    """Return the callbacks of a factory; SettingsError if one cannot be used in a fit."""
    import keras

    made = list(factory(context))
    for name in _REFUSED:
        found = [item for item in made if isinstance(item, getattr(keras.callbacks, name))]
        if not all(name == "ModelCheckpoint" and item.save_weights_only for item in found):
            raise SettingsError(
                f"keras.callbacks.{name} cannot be used in a fit: change the recipe, or use save_weights_only=True."
            )
    return made


def tensorboard(context: FitContext) -> list[Any]:
    """Return `keras.callbacks.TensorBoard`, which writes below the folder of the `context`, or the current one."""
    import keras

    folder = Path(context.folder or ".") / "tensorboard" / context.phase
    return [keras.callbacks.TensorBoard(str(folder), write_graph=False)]


def mlflow(context: FitContext) -> list[Any]:
    """Return a callback that logs the settings of `context` and each epoch to a run of MLflow, below an active one."""
    import keras
    import mlflow as library

    named = {"backbone": context.backbone, "seed": context.seed, "phase": context.phase}
    with library.start_run(run_name=" ".join(map(str, named.values())), nested=True) as run:
        library.log_params(named | context.recipe.to_dict())
    client = library.MlflowClient()  # logs to the run although it has ended: a fit that fails would leave it open

    def log(epoch: int, logs: Any) -> None:
        for name, value in logs.items():
            client.log_metric(run.info.run_id, name, float(value), step=epoch + 1)

    return [keras.callbacks.LambdaCallback(on_epoch_end=log)]
