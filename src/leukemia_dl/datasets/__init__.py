"""Data sets: the sample table, its sources (one file each), synthetic cells, and splits that keep patients apart."""

from leukemia_dl.datasets.cache import cache_dir
from leukemia_dl.datasets.dataset import Dataset
from leukemia_dl.datasets.pixels import PixelStore
from leukemia_dl.datasets.registry import DatasetSource, dataset_table, get_source, list_datasets, load_dataset
from leukemia_dl.datasets.splits import PROTOCOLS, Split, make_splits
from leukemia_dl.datasets.table import DatasetInfo

__all__ = [
    "PROTOCOLS", "Dataset", "DatasetInfo", "DatasetSource", "PixelStore", "Split", "cache_dir", "dataset_table",
    "get_source", "list_datasets", "load_dataset", "make_splits",
]  # fmt: skip
