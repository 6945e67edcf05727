"""ONE fit: recipe, batches, augmentation, device, features, BatchNorm statistics and checkpoints."""

from leukemia_dl.training.augmentation import Augmentation, augment, augment_images
from leukemia_dl.training.backends import ComputeConfig
from leukemia_dl.training.batches import Subset, as_keras
from leukemia_dl.training.cache import FeatureCache, ModelCache
from leukemia_dl.training.callbacks import FitContext, load_factory
from leukemia_dl.training.fit import FitResult, fit
from leukemia_dl.training.recipe import Recipe

__all__ = [
    "Augmentation", "ComputeConfig", "FeatureCache", "FitContext", "FitResult", "ModelCache", "Recipe", "Subset",
    "as_keras", "augment", "augment_images", "fit", "load_factory",
]  # fmt: skip
