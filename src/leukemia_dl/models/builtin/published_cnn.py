"""The published convolutional net, for the recipe `published_v1`: three valid convolutions with max pooling."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from leukemia_dl.models.spec import BackboneSpec
from leukemia_dl.plugins import hookimpl


def build(inputs: Any, weights: str | None) -> Any:
    """Return the feature map, (batch, 20, 20, 32) for images of 180 pixels. `weights` is always None."""
    from keras import layers

    x = inputs
    for stage in (1, 2, 3):
        x = layers.Conv2D(32, 3, activation="relu", name=f"stage{stage}_conv")(x)
        x = layers.MaxPooling2D(2, name=f"stage{stage}_pool")(x)
    return x


@hookimpl
def leukemia_dl_backbones() -> Iterable[BackboneSpec]:
    """Provide `published_cnn`."""
    yield BackboneSpec(
        name="published_cnn",
        build=build,
        scaling="unit",
        native_size=180,
        min_size=22,
        parameters=19_392,
        title="Published CNN",
        licence="MIT",
        reference="the net of the published comparison that the recipe published_v1 repeats",
    )
