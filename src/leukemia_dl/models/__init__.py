"""Backbones: specs and their registry, the built nets, the classifier."""

from leukemia_dl.models.backbones import (  # isort: skip
    BackboneSpec, application, backbone_table, get_backbone, list_backbones, register_backbone,
)  # fmt: skip
from leukemia_dl.models.build import Head, build_model
from leukemia_dl.models.classifier import Classifier
from leukemia_dl.models.embeddings import Embeddings
from leukemia_dl.models.encoders import EncoderSpec
from leukemia_dl.models.ensemble import Ensemble
from leukemia_dl.models.explain import Explanation

__all__ = [
    "BackboneSpec", "Classifier", "Embeddings", "EncoderSpec", "Ensemble", "Explanation", "Head", "application",
    "backbone_table", "build_model", "get_backbone", "list_backbones", "register_backbone",
]  # fmt: skip
