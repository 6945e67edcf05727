"""Backbones and what is made of them: specs and their registry, the built nets, the classifier."""

from leukemia_dl.models.backbones import (  # isort: skip
    BackboneSpec, application, backbone_table, get_backbone, list_backbones, register_backbone,
)  # fmt: skip
from leukemia_dl.models.build import Head, build_model
from leukemia_dl.models.classifier import Classifier, load_classifier
from leukemia_dl.models.embeddings import Embeddings
from leukemia_dl.models.encoders import EncoderSpec

__all__ = [
    "BackboneSpec", "Classifier", "Embeddings", "EncoderSpec", "Head", "application", "backbone_table", "build_model",
    "get_backbone", "list_backbones", "load_classifier", "register_backbone",
]  # fmt: skip
