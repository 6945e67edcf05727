"""InceptionV3, as shipped with Keras."""

from __future__ import annotations

from collections.abc import Iterable

from leukemia_dl.models.applications import application
from leukemia_dl.models.spec import BackboneSpec
from leukemia_dl.plugins import hookimpl


@hookimpl
def leukemia_dl_backbones() -> Iterable[BackboneSpec]:
    """Provide `inception_v3`."""
    yield BackboneSpec(
        name="inception_v3",
        build=application("InceptionV3"),
        scaling="tf",
        native_size=299,
        min_size=75,
        weights=("imagenet",),
        parameters=21_802_784,
        title="InceptionV3",
        licence="Apache-2.0 (code and weights)",
        reference="Szegedy et al. 2016, arXiv:1512.00567",
    )
