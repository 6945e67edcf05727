"""The GRID: which trials there are, who runs them, and the folder that keeps what each left.

One fit is the business of `training/`, metrics of `evaluation/`, pictures of `reporting/`.
"""

from leukemia_dl.benchmark.benchmark import Benchmark
from leukemia_dl.benchmark.executors import InProcess, Submitted
from leukemia_dl.benchmark.processes import Processes
from leukemia_dl.benchmark.ray_executor import Ray
from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.trial import Record, Trial

__all__ = ["Benchmark", "InProcess", "Processes", "Ray", "Record", "Store", "Submitted", "Trial"]
