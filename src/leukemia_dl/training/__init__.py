"""ONE fit: its recipe, batches and their augmentation, the devices it runs on, BatchNorm statistics to be trusted.

Which trials there are is the business of `benchmark/`; what a net looks like that of `models/`.
"""

from leukemia_dl.training.augmentation import Augmentation, augment, augment_images
from leukemia_dl.training.backends import ComputeConfig
from leukemia_dl.training.batches import Subset
from leukemia_dl.training.callbacks import FitContext, load_factory
from leukemia_dl.training.features import FeatureCache
from leukemia_dl.training.fit import FitResult, fit
from leukemia_dl.training.nets import Nets
from leukemia_dl.training.pydataset import as_keras
from leukemia_dl.training.recipe import Recipe

__all__ = [
    "Augmentation", "ComputeConfig", "FeatureCache", "FitContext", "FitResult", "Nets", "Recipe", "Subset", "as_keras",
    "augment", "augment_images", "fit", "load_factory",
]  # fmt: skip
