"""EfficientNet-Lite0 in Keras, with weights from an .npz file of arrays named as the layers are."""

import hashlib
import logging
import os
from functools import partial
from pathlib import Path

import numpy as np

from leukemia_dl import BackboneSpec, hookimpl

VARIABLE = "LEUKEMIA_DL_EFFICIENTNET_LITE0"  # the environment variable with the path of the weights
# Repeats, kernel, stride, expansion and channels of each stage (Tan and Le 2019, arXiv:1905.11946, B0, unscaled).
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
TOP = {"classifier/kernel", "classifier/bias"}  # of the 1,000 ImageNet classes: allowed in the file, not used
_log = logging.getLogger(__name__)


def features(inputs):
    """Return the feature map (batch, height, width, 1280) of images scaled as (pixels - 127) / 128."""
    from keras import layers

    def normalised(x, name, activation=True):
        x = layers.BatchNormalization(epsilon=1e-3, name=name)(x)
        return layers.ReLU(6.0, name=f"{name}_relu")(x) if activation else x

    def pointwise(x, channels, name):
        return layers.Conv2D(channels, 1, padding="same", use_bias=False, name=name)(x)

    x = layers.Conv2D(32, 3, 2, padding="same", use_bias=False, name="conv_stem")(inputs)
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


def load_weights(model, file):
    """Assign each array of `file` to the weight of its name, such as "conv_stem/kernel"; ValueError unless all fit."""
    variables = {f"{layer.name}/{weight.name}": weight for layer in model.layers for weight in layer.weights}
    with np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files if name not in TOP}
    if different := sorted(set(arrays) ^ set(variables)):
        missing, unknown = set(variables) - set(arrays), set(arrays) - set(variables)
        raise ValueError(f"{len(missing)} arrays are missing and {len(unknown)} unknown, such as {different[:3]}")
    for name, variable in variables.items():
        if arrays[name].shape != tuple(variable.shape) or not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} must have {tuple(variable.shape)} finite values, and has {arrays[name].shape}")
        variable.assign(arrays[name])


def build(inputs, weights, *, file):
    """Return the feature map of `inputs`, with the weights of `file` where a name of `weights` is given."""
    import keras

    found = features(inputs)
    if weights is not None:
        load_weights(keras.Model(inputs, found), file)
    return found


def backbone(file=None, *, name="efficientnet_lite0"):
    """Return the backbone; without a `file` of weights it has random ones only.

    Args:
        file: Path of the .npz file. Its weights are named by its SHA-256, so that another file is another trial.
        name: Name of the backbone.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if file is not None and not Path(file).is_file():
        raise FileNotFoundError(f"The weights of {name} are not there: {file} is no file.")
    weights = ()
    if file is not None:
        with Path(file).open("rb") as content:
            weights = (f"sha256-{hashlib.file_digest(content, 'sha256').hexdigest()[:16]}",)
    return BackboneSpec(
        name=name,
        build=partial(build, file=None if file is None else str(file)),
        scaling=((127,) * 3, (128,) * 3),
        native_size=224,
        min_size=32,
        weights=weights,
        parameters=3_413_024,
        title="EfficientNet-Lite0",
        licence="Apache-2.0",
        reference="Tan and Le 2019, arXiv:1905.11946",
    )


@hookimpl
def leukemia_dl_backbones():
    """Yield the backbone, with the weights that the environment variable points to."""
    file = os.environ.get(VARIABLE) or None
    if file and not Path(file).is_file():
        _log.warning("%s=%s is no file: efficientnet_lite0 has no pretrained weights.", VARIABLE, file)
        file = None
    yield backbone(file)
