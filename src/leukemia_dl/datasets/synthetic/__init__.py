"""Synthetic cells in C-NMC's layout: `cohort` draws subjects and cells, `cells` paints them, `writer` writes files."""

from leukemia_dl.datasets.synthetic.cells import draw_cell
from leukemia_dl.datasets.synthetic.cohort import SyntheticCohort, draw_cohort
from leukemia_dl.datasets.synthetic.writer import write_dataset

__all__ = ["SyntheticCohort", "draw_cell", "draw_cohort", "write_dataset"]
