"""ONE fit: its recipe, its batches, the devices it runs on, and BatchNorm statistics that can be trusted afterwards.

Which trials there are is the business of `benchmark/`; what a net looks like that of `models/`.
"""

from leukemia_dl.training.fit import FitResult, fit
from leukemia_dl.training.recipe import Recipe

__all__ = ["FitResult", "Recipe", "fit"]
