"""Cells drawn on the spot, in C-NMC's layout: the data set that is always there."""

from dataclasses import asdict
from pathlib import Path

from leukemia_dl import identity
from leukemia_dl.checks import whole_number
from leukemia_dl.datasets.cache import cache_dir, user_path
from leukemia_dl.datasets.sources.c_nmc_2019 import CLASS_NAMES, read_c_nmc
from leukemia_dl.datasets.table import DatasetInfo, Table

INFO = DatasetInfo(
    "synthetic", "Synthetic cells", "none needed: drawn by a program",
    "Drawn by leukemia_dl; no patient's cells. Results on them say nothing about real ones.",
    class_names=CLASS_NAMES, canvas=450, test_fold=2, synthetic=True,
)  # fmt: skip


def read_synthetic(
    root: Path | None = None, workers: int | None = None, show_progress: bool = True, **settings: int
) -> Table:
    """Return the table of synthetic cells, drawn unless they are there; `settings` are those of `SyntheticCohort`."""
    from leukemia_dl.datasets.synthetic import SyntheticCohort, write_dataset  # here, since it takes scipy

    if workers is not None:
        whole_number("workers", workers, 1)
    place = synthetic_folder(**settings) if root is None else user_path(root)
    drawn = write_dataset(place, SyntheticCohort(**settings), workers=workers, show_progress=show_progress)
    return read_c_nmc(drawn, INFO, linked=())  # its subjects H2 and H4, say, are two people


def synthetic_folder(**settings: int) -> Path:
    """Return the cache folder for cells drawn with these fields of `SyntheticCohort`, whether it exists or not."""
    from leukemia_dl.datasets.synthetic import GENERATOR_VERSION, SyntheticCohort

    values = asdict(SyntheticCohort(**settings))
    return cache_dir() / f"synthetic-{identity.digest([GENERATOR_VERSION, values])[:12]}"
