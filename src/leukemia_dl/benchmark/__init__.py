"""The GRID: which trials there are, running them one by one, and the folder that keeps what each left.

One fit is the business of `training/`, metrics of `evaluation/`, pictures of `reporting/`.
"""

from leukemia_dl.benchmark.benchmark import Benchmark
from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.trial import Record, Trial

__all__ = ["Benchmark", "Record", "Store", "Trial"]
