"""Scaling as part of the model: from raw RGB 0..255 to the inputs that the backbone's weights expect.

Only core Keras layers and operations are used, so that a saved model loads with `safe_mode=True` on any backend,
without this library. The values are those of `keras.applications.*.preprocess_input`.
"""

from __future__ import annotations

from typing import Any

from leukemia_dl.models.spec import Scaling

__all__ = ["scale"]

# Mean of the ImageNet training images in BGR order, grey levels; the constants behind the published VGG weights.
_IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)


def scale(inputs: Any, scaling: Scaling) -> Any:
    """Return the symbolic tensor (batch, height, width, 3), float32, scaled from RGB 0..255."""
    from keras import layers, ops

    settings = {"dtype": "float32", "name": "scaling"}
    if scaling == "caffe":
        return layers.Normalization(mean=_IMAGENET_MEAN_BGR, variance=(1.0,) * 3, **settings)(ops.flip(inputs, axis=-1))
    if scaling == "tf":
        return layers.Rescaling(1 / 127.5, offset=-1.0, **settings)(inputs)
    return layers.Rescaling(1 / 255.0, **settings)(inputs) if scaling == "unit" else inputs
