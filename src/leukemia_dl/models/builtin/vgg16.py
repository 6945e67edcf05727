"""VGG16, as shipped with Keras."""

from __future__ import annotations

from collections.abc import Iterable

from leukemia_dl.models.applications import application
from leukemia_dl.models.spec import BackboneSpec
from leukemia_dl.plugins import hookimpl


@hookimpl
def leukemia_dl_backbones() -> Iterable[BackboneSpec]:
    """Provide `vgg16`."""
    yield BackboneSpec(
        name="vgg16",
        build=application("VGG16"),
        scaling="caffe",
        native_size=224,
        min_size=32,
        weights=("imagenet",),
        parameters=14_714_688,
        title="VGG16",
        licence="Apache-2.0 (code); CC BY 4.0 (weights)",
        reference="Simonyan and Zisserman 2015, arXiv:1409.1556",
    )
