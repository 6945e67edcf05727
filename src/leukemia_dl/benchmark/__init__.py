"""The GRID: which trials there are, who runs them, and the folder that keeps what each left.

One fit is the business of `training/`, metrics of `evaluation/`, pictures of `reporting/`.
"""

from leukemia_dl.benchmark.benchmark import Benchmark
from leukemia_dl.benchmark.executors import SerialExecutor, SubmitExecutor
from leukemia_dl.benchmark.process_executor import ProcessExecutor
from leukemia_dl.benchmark.ray_executor import RayExecutor
from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.trial import Record, Trial

__all__ = [
    "Benchmark",
    "ProcessExecutor",
    "RayExecutor",
    "Record",
    "SerialExecutor",
    "Store",
    "SubmitExecutor",
    "Trial",
]
