"""Which executor a user has named."""

from __future__ import annotations

from typing import Any

from leukemia_dl.benchmark.executors import Executor, InProcess, Submitted
from leukemia_dl.benchmark.processes import Processes
from leukemia_dl.errors import SettingsError

__all__ = ["executor_of"]


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
