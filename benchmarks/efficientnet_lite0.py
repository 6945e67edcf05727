"""EfficientNet-Lite0 in Keras as a backbone with its ImageNet weights, read from an .npz file of named arrays.

The built-in backbones fetch their weights from the network; this one makes fine-tuning measurable without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import leukemia_dl as ldl

# Repeats, kernel, stride, expansion and channels of each stage (Tan and Le 2019, arXiv:1905.11946, B0, unscaled).
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip


def features(inputs: Any) -> Any:
    """Return the feature map (batch, height, width, 1280) of RGB in 0..255; layers are named as the arrays are."""
    from keras import layers

    def normalised(x: Any, name: str, activation: bool = True) -> Any:
        x = layers.BatchNormalization(epsilon=1e-3, name=name)(x)
        return layers.ReLU(6.0, name=f"{name}_relu")(x) if activation else x

    def pointwise(x: Any, channels: int, name: str) -> Any:
        return layers.Conv2D(channels, 1, padding="same", use_bias=False, name=name)(x)

    x = layers.Rescaling(1 / 128, -127 / 128, name="rescaling")(inputs)
    x = layers.Conv2D(32, 3, 2, padding="same", use_bias=False, name="conv_stem")(x)
    x, number = normalised(x, "bn0"), 0
    for repeats, kernel, stride, expansion, channels in STAGES:
        for repeat in range(repeats):
            before, name = x, f"block{number}"
            if expansion > 1:
                x = normalised(pointwise(x, expansion * x.shape[-1], f"{name}_expand_conv"), f"{name}_bn0")
            step = 1 if repeat else stride
            x = layers.DepthwiseConv2D(kernel, step, padding="same", use_bias=False, name=f"{name}_depthwise_conv")(x)
            x = pointwise(normalised(x, f"{name}_bn1"), channels, f"{name}_project_conv")
            x = normalised(x, f"{name}_bn2", activation=False)
            x, number = layers.Add(name=f"{name}_add")([before, x]) if repeat else x, number + 1
    return normalised(pointwise(x, 1280, "conv_head"), "bn1")


def backbone(weights: str | Path) -> ldl.BackboneSpec:
    """Return the backbone, whose weights named "imagenet" are those of the file `weights`."""

    def build(inputs: Any, name: str | None) -> Any:
        import keras

        found = features(inputs)
        if name is not None:
            with np.load(weights) as arrays:
                for layer in keras.Model(inputs, found).layers:
                    order = [variable.path.rsplit("/", 1)[-1] for variable in layer.weights]
                    layer.set_weights([arrays[f"{layer.name}/{part}"] for part in order])
        return found

    return ldl.BackboneSpec(
        name="efficientnet_lite0",
        build=build,
        scaling="none",
        native_size=224,
        min_size=32,
        weights=("imagenet",),
        title="EfficientNet-Lite0",
        licence="Apache-2.0",
        reference="Tan and Le 2019, arXiv:1905.11946",
    )
