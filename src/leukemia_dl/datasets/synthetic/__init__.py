"""Synthetic cells: the data set that is always there, in C-NMC's layout and with subjects that matter as in reality.

`cohort` draws who and what is in it, `cells` paints one image, `writer` puts the files down.
No classifier, no reader and no real pixel lives here; what is measured on these cells is labelled synthetic.
"""

from leukemia_dl.datasets.synthetic.cells import draw_cell
from leukemia_dl.datasets.synthetic.cohort import SyntheticCohort, draw_cohort
from leukemia_dl.datasets.synthetic.writer import write_dataset

__all__ = ["SyntheticCohort", "draw_cell", "draw_cohort", "write_dataset"]
