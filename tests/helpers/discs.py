"""Images that a net learns in seconds: a disc on black that is larger in class 1, which is what a cell's size tells."""

import dataclasses

import numpy as np

import grids
import leukemia_dl as ldl

RNG = np.random.default_rng(0)
GRID = np.hypot(*np.mgrid[-16:16, -16:16])
LABELS = np.arange(48, dtype=np.int64) % 2
IMAGES = np.stack(
    [(6 + 5 * label + RNG.normal() > GRID)[..., None] * np.array([90, 40, 100]) for label in LABELS]
).astype(np.uint8)
"""uint8 (48, 32, 32, 3), the classes in turn."""


def counting(passes):
    """Return SMALL with a layer that appends to `passes` whenever it is traced, or run uncompiled, in training mode."""
    import keras

    class Count(keras.layers.Layer):
        def call(self, inputs, training=False):
            if training:
                passes.append(1)
            return inputs

    return dataclasses.replace(SMALL, build=lambda inputs, weights: grids.tiny(Count()(inputs), weights))


SMALL = ldl.BackboneSpec(name="small", build=grids.tiny, scaling="unit", native_size=32, min_size=8)
"""A convolution and BatchNorm: all that most tests of training need of a net, and traced in a second."""
