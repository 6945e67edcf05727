"""What a benchmark and its runs are given, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from leukemia_dl.benchmark.executors import Executor, InProcess, Submitted
from leukemia_dl.benchmark.processes import Processes
from leukemia_dl.datasets.splits import whole_numbers
from leukemia_dl.errors import SettingsError
from leukemia_dl.identity import plain_number
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.training.recipe import Recipe

__all__ = ["checked_seeds", "chosen_pipeline", "executor_of", "plain_folds", "unique_names"]


def executor_of(executor: Any, workers: int | None, trials: int) -> Executor:
    """Return the executor that a user has named.

    Args:
        executor: "auto" (processes from two trials on), "in-process", "processes", "ray", "ray:ADDRESS", or an object.
        workers: Of processes.
        trials: How many there are to run.

    Raises:
        SettingsError: If it is none of these, or workers are given to one that has none.
    """
    if executor == "auto":
        executor = "processes" if trials > 1 or workers is not None else "in-process"
    if executor == "processes":
        return Processes(workers)
    known = not isinstance(executor, str) or executor == "in-process" or executor.partition(":")[0] == "ray"
    if workers is not None and known:
        raise SettingsError(f"workers belongs to executor='processes'. Received: executor={executor!r}.")
    if executor == "in-process":
        return InProcess()
    if isinstance(executor, str) and known:
        from leukemia_dl.benchmark.ray_executor import Ray

        return Ray(address=executor.partition(":")[2] or None)
    if isinstance(executor, (InProcess, Processes, Submitted)):
        return executor
    return Submitted(executor)


def chosen_pipeline(
    given: Pipeline | Callable[[int], Pipeline] | None, recipe: Recipe, size: int, canvas: int | None
) -> Pipeline:
    """Return the pipeline for images of a size, of what `Benchmark` was given."""
    if given is None:
        return recipe.pipeline(size, canvas)
    pipeline = given if isinstance(given, Pipeline) else given(size)
    if not isinstance(pipeline, Pipeline):
        raise SettingsError(f"pipeline must be a Pipeline or a function from a size to one. Received: {pipeline!r}.")
    if pipeline.output_size not in (None, size):
        raise SettingsError(
            f"The pipeline ends in {pipeline.output_size} pixels and the recipe's image_size is {size}: make them "
            "equal, or pass a function from the size to a pipeline, such as dataset.default_pipeline."
        )
    return pipeline


def unique_names(what: str, names: Sequence[str], empty: bool = False) -> tuple[str, ...]:
    """Return names as a tuple; SettingsError if it is one string, repeats one, or is empty where it must not be."""
    if isinstance(names, str):
        raise SettingsError(f"{what} must be a list of names. Received: {names!r}; write [{names!r}].")
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise SettingsError(f"{what} must be a list of names. Received: {names!r}.")
    if not names and not empty:
        raise SettingsError(f"{what} must name at least one. Received: {names!r}.")
    if len(set(names)) < len(names):
        raise SettingsError(f"{what} must not repeat a name. Received: {list(names)!r}.")
    return tuple(names)


def plain_folds(folds: Any) -> Any:
    """Return folds as numbers of Python's in a list, as settings hold them; None and "all" as they are."""
    wanted = whole_numbers(folds)
    return folds if wanted is None else wanted


def checked_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Return seeds as a tuple, or raise SettingsError."""
    values = tuple(map(plain_number, seeds)) if isinstance(seeds, (list, tuple, range, np.ndarray)) else ()
    if not values or any(isinstance(s, bool) or not isinstance(s, int) or not 0 <= s < 2**32 for s in values):
        raise SettingsError(f"seeds must be whole numbers from 0 to 2**32 - 1, at least one. Received: {seeds!r}.")
    if len(set(values)) < len(values):
        raise SettingsError(f"seeds must not repeat. Received: {list(values)!r}.")
    return values
