"""Backbones and what is made of them: the registry, the built-in ones (one file each), the classifier.

Scaling is part of the built model. Training lives in `training/`; keras is imported inside functions only.
"""

from leukemia_dl.models.build import build_model
from leukemia_dl.models.classifier import Classifier, load_classifier
from leukemia_dl.models.heads import Head
from leukemia_dl.models.registry import backbone_table, get_backbone, list_backbones, register_backbone
from leukemia_dl.models.spec import BackboneSpec

__all__ = [
    "BackboneSpec",
    "Classifier",
    "Head",
    "backbone_table",
    "build_model",
    "get_backbone",
    "list_backbones",
    "load_classifier",
    "register_backbone",
]
