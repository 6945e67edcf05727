"""Trials as tasks of Ray, for users who outgrow one machine. The only module that imports ray (extra `ray`)."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

from leukemia_dl.benchmark.executors import Submitted
from leukemia_dl.benchmark.runner import Shared, Task, run_task
from leukemia_dl.benchmark.worker import TrialLog
from leukemia_dl.errors import SettingsError

__all__ = ["Ray"]


class Ray(Submitted):
    """Runs each trial as a task of Ray, in a process of its own, anywhere in a cluster.

    Ray decides where and when. The trials of a node that is lost are run again elsewhere; if the driver is lost, run it
    again: finished trials are in the store.

    Args:
        num_cpus: Cores that a trial takes; None for all of the smallest node. How many threads a trial uses is said by
            `Benchmark.run(threads=...)`.
        num_gpus: GPUs that a trial takes, parts such as 0.5 included; None for one if the cluster has any, else none.
        shared_folders: Whether every node sees the store and the cache folder under the same paths. If not, pixels are
            sent once through Ray's object store, and an interrupted trial begins from its first epoch.
        max_retries: How often a trial is run again whose process or node was lost.
        address: Of the cluster; None for the one that this process is connected to, or RAY_ADDRESS, or a new one on
            this machine.
    """

    def __init__(
        self,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        *,
        shared_folders: bool = True,
        max_retries: int = 3,
        address: str | None = None,
    ) -> None:
        """Connect; needs the extra `ray`."""
        if importlib.util.find_spec("ray") is None:
            raise SettingsError("ray is not installed. Install it: pip install 'leukemia-dl[ray]'.")
        import ray

        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cores = min((node["CPU"] for node in nodes if node.get("CPU")), default=1.0)
        gpus = 1.0 if any(node.get("GPU") for node in nodes) else 0.0
        self._shared_folders = shared_folders
        self._remote: Any = ray.remote(
            num_cpus=cores if num_cpus is None else num_cpus,
            num_gpus=gpus if num_gpus is None else num_gpus,
            max_retries=max_retries,
            # One task per process: its memory, and that of its GPU, is given back.
            max_calls=1,
        )(_run)

    def _hand_over(self, shared: Shared) -> Any:
        import ray

        if not self._shared_folders:
            shared = replace(shared, images={size: images.in_memory() for size, images in shared.images.items()})
        return ray.put(shared)

    def _submit(self, task: Task, handed: Any) -> Any:
        if not self._shared_folders:
            task = replace(task, checkpoints=None, logs=None, stop_file=None)
        return _Pending(self._remote.remote(task, handed))


class _Pending:
    """A task of Ray, as `Submitted` asks of it."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def done(self) -> bool:
        import ray

        return bool(ray.wait([self._reference], timeout=0)[0])

    def result(self) -> Any:
        import ray

        return ray.get(self._reference)

    def cancel(self) -> None:
        import ray

        ray.cancel(self._reference, force=True)


def _run(task: Task, shared: Shared) -> Any:
    with TrialLog(task) as log:
        return run_task(task, shared, log)
