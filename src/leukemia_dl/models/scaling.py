"""Scaling as part of the model: raw RGB 0..255 goes in, what the backbone's weights expect comes out.

Only core Keras operations are used, so that a saved model loads with `safe_mode=True` on any backend, and without
this library. The values are those of `keras.applications.*.preprocess_input` (a test compares them), which itself
would change a numpy input in place.
"""

from __future__ import annotations

from typing import Any

from leukemia_dl.models.spec import Scaling

__all__ = ["scale"]

# Mean of the ImageNet training images in BGR order, grey levels; the constants behind the published VGG weights.
_IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)


def scale(inputs: Any, scaling: Scaling) -> Any:
    """Return the symbolic tensor (batch, height, width, 3), float32, scaled from RGB 0..255."""
    import keras

    if scaling == "caffe":
        bgr = keras.ops.flip(inputs, axis=-1)
        return keras.layers.Normalization(
            mean=_IMAGENET_MEAN_BGR, variance=(1.0, 1.0, 1.0), dtype="float32", name="scaling"
        )(bgr)
    if scaling == "tf":
        return keras.layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32", name="scaling")(inputs)
    if scaling == "unit":
        return keras.layers.Rescaling(1 / 255.0, dtype="float32", name="scaling")(inputs)
    return inputs
