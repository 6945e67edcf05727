"""Trials as tasks of Ray, for users who outgrow one machine. The only module that imports ray (extra `ray`)."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from typing import Any

import numpy as np

from leukemia_dl.benchmark.executors import SubmitExecutor, packed, run_packed
from leukemia_dl.benchmark.plan import PlannedTrial
from leukemia_dl.benchmark.trial_runner import RunContext
from leukemia_dl.errors import SettingsError

__all__ = ["RayExecutor"]


class RayExecutor(SubmitExecutor):
    """Runs each trial as a task of Ray, in a process of its own, anywhere in a cluster.

    Ray decides where and when. The trials of a node that is lost are run again elsewhere; if the driver is lost, run it
    again: finished trials are in the store.

    Args:
        num_cpus: Cores that Ray reserves for a trial; None for all of the smallest node. `Benchmark(threads=...)` sets
            how many threads it uses, by default as many as its node has cores.
        num_gpus: GPUs that a trial takes, parts such as 0.5 included; None for one if the cluster has any, else none.
        shared_folders: Whether every node sees the store and the cache folder under the same paths. If not, pixels are
            sent once through Ray's object store, and an interrupted trial begins from its first epoch.
        max_retries: How often a trial is run again whose process or node was lost.
        address: Of a cluster, or "auto" for the one that this machine names (RAY_ADDRESS); None for a new one on this
            machine. A process that is connected to a cluster already stays connected to it.

    Raises:
        SettingsError: If Ray is not installed (extra `ray`).
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
        if importlib.util.find_spec("ray") is None:
            raise SettingsError("ray is not installed. Install it: pip install 'leukemia-dl[ray]'.")
        self._num_cpus, self._num_gpus, self._address = num_cpus, num_gpus, address
        self._shared_folders, self._max_retries = shared_folders, max_retries
        self._remote: Any = None

    def _share(self, context: RunContext) -> Any:
        """Put the context into Ray's object store, where the processes of a node read one copy of it."""
        import ray
        from ray.job_config import JobConfig

        if not ray.is_initialized():
            # Otherwise Ray puts the current folder onto the path of its workers, before all others.
            config = JobConfig(_client_job=True)
            ray.init(self._address or "local", job_config=config, log_to_driver=False, include_dashboard=False)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cores = min((node["CPU"] for node in nodes if node.get("CPU")), default=1.0)
        gpus = 1.0 if any(node.get("GPU") for node in nodes) else 0.0
        self._remote = ray.remote(
            num_cpus=cores if self._num_cpus is None else self._num_cpus,
            num_gpus=gpus if self._num_gpus is None else self._num_gpus,
            max_retries=self._max_retries,
            max_calls=1,  # a process per trial, so that its memory, and that of its GPU, is planned back
        )(run_packed)
        if not self._shared_folders:
            images = {size: images.in_memory() for size, images in context.images.items()}
            context = replace(context, images=images, store=None, scratch=None)
        buffers: list[Any] = []
        content = packed(context, buffers)
        return ray.put(content), ray.put([np.frombuffer(buffer, np.uint8) for buffer in buffers])

    def _submit(self, planned: PlannedTrial, shared: Any) -> Any:
        return self._remote.remote([*map(str, sys.path)], packed(planned), *shared).future()
