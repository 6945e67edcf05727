"""leukemia_dl: an honest, repeatable comparison of image classifiers on leukemia cells.

Names are loaded when they are first used: importing this package imports neither keras nor any of its backends.
For research use only; not a medical device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from leukemia_dl.benchmark import Benchmark
    from leukemia_dl.datasets import (
        Dataset,
        DatasetInfo,
        DatasetSource,
        PixelStore,
        Split,
        dataset_table,
        list_datasets,
        make_splits,
    )
    from leukemia_dl.evaluation import compare, evaluate, inflation, leaderboard, published_results, score
    from leukemia_dl.models import (
        BackboneSpec,
        Classifier,
        backbone_table,
        get_backbone,
        list_backbones,
        load_classifier,
        register_backbone,
    )
    from leukemia_dl.plugins import hookimpl, plugin_problems
    from leukemia_dl.preprocess import Pipeline
    from leukemia_dl.training import Augmentation, Recipe, as_keras

__all__ = [
    "Augmentation", "BackboneSpec", "Benchmark", "Classifier", "Dataset", "DatasetInfo", "DatasetSource", "Pipeline",
    "PixelStore", "Recipe", "Split", "__version__", "as_keras", "backbone_table", "compare", "dataset_table",
    "evaluate", "get_backbone", "hookimpl", "inflation", "leaderboard", "list_backbones", "list_datasets",
    "load_classifier", "make_splits", "plugin_problems", "published_results", "register_backbone", "score",
]  # fmt: skip
# Where each name lives. Besides these, the subpackages of the last line can be reached without an import.
_WHERE = {
    "benchmark": "Benchmark",
    "datasets": "Dataset DatasetInfo DatasetSource PixelStore Split dataset_table list_datasets make_splits",
    "evaluation": "compare evaluate inflation leaderboard published_results score",
    "models": "BackboneSpec Classifier backbone_table get_backbone list_backbones load_classifier register_backbone",
    "plugins": "hookimpl plugin_problems",
    "preprocess": "Pipeline",
    "training": "Augmentation Recipe as_keras",
}
_SUBPACKAGES = ("errors", "evaluation", "preprocess", "reporting")


def __getattr__(name: str) -> Any:
    if name == "plugin_problems":  # both registries have to be there, to be asked
        importlib.import_module(f"{__name__}.models.registry")
        importlib.import_module(f"{__name__}.datasets.registry")
    package = next((package for package, names in _WHERE.items() if name in names.split()), None)
    if package is not None:
        value = getattr(importlib.import_module(f"{__name__}.{package}"), name)
    elif name in _SUBPACKAGES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBPACKAGES})
