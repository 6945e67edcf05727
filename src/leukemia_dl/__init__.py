"""leukemia_dl: an honest, repeatable comparison of image classifiers on leukemia cells. Not a medical device.

Names are loaded when they are first used: importing this package imports neither keras nor any of its backends.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from leukemia_dl.benchmark import Benchmark, load_classifier
    from leukemia_dl.datasets import (  # isort: skip
        Dataset, DatasetInfo, DatasetSource, PixelStore, Split, dataset_table, list_datasets, make_splits,
    )  # fmt: skip
    from leukemia_dl.evaluation import compare, evaluate, inflation, leaderboard, published_results, score
    from leukemia_dl.models import (  # isort: skip
        BackboneSpec, Classifier, Embeddings, EncoderSpec, Ensemble, backbone_table, get_backbone, list_backbones,
        register_backbone,
    )  # fmt: skip
    from leukemia_dl.plugins import hookimpl, plugin_problems
    from leukemia_dl.preprocess import Pipeline
    from leukemia_dl.training import Augmentation, Recipe, as_keras

__all__ = [
    "Augmentation", "BackboneSpec", "Benchmark", "Classifier", "Dataset", "DatasetInfo", "DatasetSource", "Embeddings",
    "EncoderSpec", "Ensemble", "Pipeline", "PixelStore", "Recipe", "Split", "__version__", "as_keras", "backbone_table",
    "compare", "dataset_table", "evaluate", "get_backbone", "hookimpl", "inflation", "leaderboard", "list_backbones",
    "list_datasets", "load_classifier", "make_splits", "plugin_problems", "published_results", "register_backbone",
    "score",
]  # fmt: skip
# In the order of their imports; `plugin_problems` needs the registries of datasets and models.
_PACKAGES = ("preprocess", "datasets", "models", "plugins", "training", "evaluation", "benchmark")
_SUBPACKAGES = ("errors", "evaluation", "preprocess", "reporting")  # `leukemia_dl.errors` needs no import


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    for package in _PACKAGES if name in __all__ else ():
        module = importlib.import_module(f"{__name__}.{package}")
        if name in module.__all__:
            return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBPACKAGES})
