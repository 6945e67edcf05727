"""ResNet50, as shipped with Keras."""

from __future__ import annotations

from collections.abc import Iterable

from leukemia_dl.models.applications import application
from leukemia_dl.models.spec import BackboneSpec
from leukemia_dl.plugins import hookimpl


@hookimpl
def leukemia_dl_backbones() -> Iterable[BackboneSpec]:
    """Provide `resnet50`."""
    yield BackboneSpec(
        name="resnet50",
        build=application("ResNet50"),
        scaling="caffe",
        native_size=224,
        min_size=32,
        weights=("imagenet",),
        parameters=23_587_712,
        title="ResNet50",
        licence="Apache-2.0 (code); MIT (weights)",
        reference="He et al. 2016, arXiv:1512.03385",
    )
