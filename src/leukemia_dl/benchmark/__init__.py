"""The grid of a comparison: which trials there are, what runs them, and the folder that keeps their records."""

from leukemia_dl.benchmark.benchmark import Benchmark
from leukemia_dl.benchmark.best import load_classifier
from leukemia_dl.benchmark.executors import ProcessExecutor, RayExecutor, SerialExecutor, SubmitExecutor
from leukemia_dl.benchmark.plan import Trial
from leukemia_dl.benchmark.records import Record
from leukemia_dl.benchmark.store import Store

__all__ = [
    "Benchmark", "ProcessExecutor", "RayExecutor", "Record", "SerialExecutor", "Store", "SubmitExecutor", "Trial",
    "load_classifier",
]  # fmt: skip
