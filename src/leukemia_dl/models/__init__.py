"""Backbones and what is made of them: the registry, the built-in ones, the classifier.

Scaling is part of the built model. Training lives in `training/`; keras is imported inside functions only.
"""

from leukemia_dl.models.backbones import application
from leukemia_dl.models.build import Head, build_model
from leukemia_dl.models.classifier import Classifier, load_classifier
from leukemia_dl.models.registry import (
    BackboneSpec,
    backbone_table,
    get_backbone,
    list_backbones,
    register_backbone,
)

__all__ = [
    "BackboneSpec", "Classifier", "Head", "application", "backbone_table", "build_model", "get_backbone",
    "list_backbones", "load_classifier", "register_backbone",
]  # fmt: skip
