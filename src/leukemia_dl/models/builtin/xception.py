"""Xception, as shipped with Keras."""

from __future__ import annotations

from collections.abc import Iterable

from leukemia_dl.models.applications import application
from leukemia_dl.models.spec import BackboneSpec
from leukemia_dl.plugins import hookimpl


@hookimpl
def leukemia_dl_backbones() -> Iterable[BackboneSpec]:
    """Provide `xception`."""
    yield BackboneSpec(
        name="xception",
        build=application("Xception"),
        scaling="tf",
        native_size=299,
        min_size=71,
        weights=("imagenet",),
        parameters=20_861_480,
        title="Xception",
        licence="Apache-2.0 (code); MIT (weights)",
        reference="Chollet 2017, arXiv:1610.02357",
    )
