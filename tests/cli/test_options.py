"""Options that several commands share."""

import numpy as np
import pytest

from leukemia_dl import Dataset, DatasetInfo, Recipe
from leukemia_dl.cli import options
from leukemia_dl.preprocess import Macenko


@pytest.mark.parametrize("canvas", [None, 40])
@pytest.mark.parametrize(("background", "percentile"), [(0, 50.0), (235, 99.0)])
def test_macenko_measures_whether_cells_lie_on_black(canvas, background, percentile):
    """20.12: `--stain macenko` took a canvas for cells on black, and cells without one for smears."""
    images = np.full((12, 30, 30, 3), background, np.uint8)
    images[:, 10:20, 10:20] = 120, 60, 150
    images[0] = 235 - background  # one image of another kind changes nothing
    info = DatasetInfo("one", "One", "none", "none", canvas=canvas)
    dataset = Dataset.from_arrays(images, np.arange(12) % 2, ("a", "b"), info)
    for crop in (False, True):
        pipeline = options.pipeline(dataset, Recipe.preset("quick"), 32, "macenko", crop)
        assert pipeline.steps[-1] == Macenko(percentile=percentile)
