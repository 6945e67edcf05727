"""Cells drawn on the spot, in C-NMC's layout: the data set that is always there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from leukemia_dl import identity
from leukemia_dl.checks import whole_number
from leukemia_dl.datasets.cache import cache_dir, user_path
from leukemia_dl.datasets.info import DatasetInfo, DatasetSource, Table
from leukemia_dl.datasets.sources.c_nmc_2019 import CLASS_NAMES, read_c_nmc
from leukemia_dl.plugins import hookimpl

INFO = DatasetInfo(
    name="synthetic",
    title="Synthetic cells",
    licence="none needed: drawn by a program",
    citation="Drawn by leukemia_dl; no patient's cells. Results on them say nothing about real ones.",
    class_names=CLASS_NAMES,
    canvas=450,
    test_fold=2,
    synthetic=True,
)
_OPTIONS = {
    "subjects": "number of training subjects, default 73 as in C-NMC 2019",
    "images": "number of training images, default 360",
    "preliminary_images": "number of labelled test images of other subjects, default 60",
    "final_images": "number of images without label, default 12",
    "seed": "another seed is another data set, default 0",
    "workers": "threads that draw, default one per processor",
    "show_progress": "whether to show progress, default true",
}


def read_synthetic(
    root: Path | None = None, workers: int | None = None, show_progress: bool = True, **settings: int
) -> Table:
    """Return the table of synthetic cells, drawn unless they are there; `settings` are those of `SyntheticCohort`."""
    from leukemia_dl.datasets.synthetic import SyntheticCohort, write_dataset  # here, since it takes scipy

    if workers is not None:
        whole_number("workers", workers, 1)
    cohort = SyntheticCohort(**settings)
    root = synthetic_folder(**settings) if root is None else user_path(root)
    # Its subjects H2 and H4, say, are two people: the linked names of C-NMC mean nothing here.
    return read_c_nmc(write_dataset(root, cohort, workers=workers, show_progress=show_progress), INFO, linked=())


def synthetic_folder(**settings: int) -> Path:
    """Return the cache folder for cells drawn with these fields of `SyntheticCohort`, whether it exists or not."""
    from leukemia_dl.datasets.synthetic.cohort import GENERATOR_VERSION, SyntheticCohort

    values = dataclasses.asdict(SyntheticCohort(**settings))
    return cache_dir() / f"synthetic-{identity.digest([GENERATOR_VERSION, values])[:12]}"


@hookimpl
def leukemia_dl_datasets() -> Iterable[DatasetSource]:
    """Yield the source."""
    yield DatasetSource("synthetic", read_synthetic, INFO, needs_root=False, options=_OPTIONS)
