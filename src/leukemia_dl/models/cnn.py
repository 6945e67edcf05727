"""The library's own nets: `cnn`, made to be trained from scratch on few cells, and `published_cnn`.

`cnn` has residual blocks of two 3x3 convolutions with batch normalisation (He et al. 2016) in four stages that halve
the side. Global pooling behind them lets the head use the area of a cell on black from the first step on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from leukemia_dl.models.spec import BackboneSpec
from leukemia_dl.plugins import hookimpl


def build_cnn(inputs: Any, weights: str | None) -> Any:
    """Return the feature map (batch, size / 16, size / 16, 192). `weights` is always None: there are none to fetch."""
    x = _convolution(inputs, 32, strides=2, name="stem")
    for stage, width in enumerate((32, 64, 128, 192), start=1):
        x = _residual_block(x, width, strides=1 if stage == 1 else 2, name=f"stage{stage}")
    return x


def build_published_cnn(inputs: Any, weights: str | None) -> Any:
    """Return the feature map, (batch, 20, 20, 32) for images of 180 pixels. `weights` is always None."""
    from keras import layers

    x = inputs
    for stage in (1, 2, 3):
        x = layers.Conv2D(32, 3, activation="relu", name=f"stage{stage}_conv")(x)
        x = layers.MaxPooling2D(2, name=f"stage{stage}_pool")(x)
    return x


def _residual_block(x: Any, width: int, strides: int, name: str) -> Any:
    from keras import layers

    shortcut = x
    if strides != 1:  # average first: a strided 1x1 convolution would throw three pixels of four away
        shortcut = layers.AveragePooling2D(strides, padding="same", name=f"{name}_shortcut_pool")(shortcut)
    if strides != 1 or x.shape[-1] != width:
        shortcut = _convolution(shortcut, width, kernel=1, activation=False, name=f"{name}_shortcut")
    y = _convolution(x, width, strides=strides, name=f"{name}_1")
    y = _convolution(y, width, activation=False, name=f"{name}_2")
    return layers.Activation("relu", name=f"{name}_out")(layers.Add(name=f"{name}_add")([shortcut, y]))


def _convolution(x: Any, filters: int, kernel: int = 3, strides: int = 1, activation: bool = True, *, name: str) -> Any:
    from keras import layers

    x = layers.Conv2D(
        filters, kernel, strides, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv"
    )(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
    return layers.Activation("relu", name=f"{name}_relu")(x) if activation else x


@hookimpl
def leukemia_dl_backbones() -> Iterable[BackboneSpec]:
    """Provide `cnn`, and `published_cnn`, the net of the published comparison that `published_v1` repeats."""
    yield BackboneSpec(
        name="cnn", build=build_cnn, scaling="tf", native_size=128, min_size=32, parameters=888_544,
        title="Small residual CNN", licence="MIT", reference="leukemia_dl",
    )  # fmt: skip
    yield BackboneSpec(
        name="published_cnn", build=build_published_cnn, scaling="unit", native_size=180, min_size=22,
        parameters=19_392, title="Published CNN", licence="MIT",
        reference="the net of the published comparison that the recipe published_v1 repeats",
    )  # fmt: skip
