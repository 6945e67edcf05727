"""Build the Keras model of a backbone: raw pixels -> scaling -> backbone -> head -> logits.

Scaling and head use core Keras layers only, so that a saved model loads with `safe_mode=True` on any backend. The
backbone's layers are layers of the model itself, not of a model nested in it, so that they can be frozen by name.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from leukemia_dl.atomic import sha256_of_file
from leukemia_dl.checks import choice, flag, real_number, whole_number
from leukemia_dl.errors import PluginError, SettingsError, WeightsError
from leukemia_dl.models.registry import BackboneSpec, Scaling

__all__ = ["Head", "all_layers", "build_model", "check_size", "most_readers", "split_at_features", "weights_identity"]

Kind = Literal["pooled", "flatten"]
_FIRST_LAYERS = ("pooling", "flatten")
_RESERVED = {"pooling", "flatten", "head_dense", "head_dropout", "logits"}
# Mean of the ImageNet training images in BGR order, grey levels; the constants behind the published VGG weights.
_IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)


@dataclass(frozen=True, kw_only=True)
class Head:
    """The layers between a backbone's feature map and the logits.

    Attributes:
        kind: "pooled" averages the feature map over its area; "flatten" keeps every value of it.
        units: Width of a ReLU layer on these features; 0 for none.
        dropout: Share of its inputs that the last layer drops in training, in [0, 1).
        sigmoid: For two classes: one weighted sum z, and (0, z) as logits, so that the softmax of these is the sigmoid
            of z and their cross-entropy the binary one.

    Raises:
        SettingsError: On creation, for a value that is not allowed.
    """

    kind: Kind = "pooled"
    units: int = 0
    dropout: float = 0.0
    sigmoid: bool = False

    def __post_init__(self) -> None:
        choice("kind", self.kind, get_args(Kind))
        object.__setattr__(self, "units", whole_number("units", self.units))
        object.__setattr__(self, "dropout", real_number("dropout", self.dropout, 0, 1, "[)"))
        flag("sigmoid", self.sigmoid)


def build_model(
    spec: BackboneSpec,
    image_size: int,
    classes: int,
    *,
    weights: str | Path | None = None,
    head: Head | None = None,
    head_seed: int | None = None,
    scaling: Scaling | None = None,
    dtype_policy: str = "float32",
    name: str | None = None,
) -> Any:
    """Return an uncompiled `keras.Model` that maps raw RGB to logits.

    Args:
        spec: The backbone.
        image_size: Side in pixels. Input shape is (batch, image_size, image_size, 3), RGB 0..255, any numeric dtype.
        classes: Number of classes; the output has shape (batch, classes), float32, before softmax.
        weights: None for random ones, a name in `spec.weights` (fetched by Keras, which may download), or the path
            of a file written by `save_weights` on the bare backbone.
        head: The layers on the backbone; None for global average pooling and logits.
        head_seed: Seed of the head's weights, which otherwise depend on how many numbers the backbone drew.
        scaling: Another scaling than the backbone's own, to repeat work that used it.
        dtype_policy: Keras dtype policy of the backbone, such as "mixed_bfloat16". Scaling and head stay float32.
        name: Name of the model.

    Raises:
        SettingsError: If the image is smaller than the backbone accepts, there are fewer than two classes, or more than
            two for a sigmoid.
        WeightsError: If weights cannot be fetched or read, or do not fit.
        PluginError: If the builder does not return a feature map.
    """
    import keras

    check_size(spec, image_size)
    if classes < 2:
        raise SettingsError(f"A classifier needs at least two classes. Received: classes={classes!r}.")
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype_policy)
    try:
        inputs = keras.Input((image_size, image_size, 3), dtype="float32", name="rgb")
        features = _features(spec, scale(inputs, scaling or spec.scaling), None)
        backbone = keras.Model(inputs, features)
        if weights is not None:
            # Loaded without scaling, then copied: the file knows nothing of our scaling layers.
            backbone.set_weights(_bare_with_weights(spec, image_size, weights).get_weights())
        if taken := _RESERVED & {layer.name for layer in backbone.layers}:
            raise PluginError(f"The builder of {spec.name!r} uses names of the library for layers: {sorted(taken)}.")
        if head_seed is not None:
            keras.utils.set_random_seed(head_seed)
        return keras.Model(inputs, _apply_head(features, head or Head(), classes), name=name or spec.name)
    finally:
        keras.config.set_dtype_policy(policy)


def check_size(spec: BackboneSpec, image_size: int) -> None:
    """Raise SettingsError if the backbone does not accept images of this side."""
    if image_size < spec.min_size:
        raise SettingsError(
            f"{spec.name} needs images of at least {spec.min_size} x {spec.min_size} pixels. "
            f"Received: image_size={image_size}. Raise image_size (command line: --image-size {spec.min_size}) "
            f"or leave {spec.name} out."
        )


def weights_identity(spec: BackboneSpec, weights: str | Path | None) -> str | None:
    """Return the weights as a trial's digest names them: None, their name, or the SHA-256 of the file."""
    if weights is None or str(weights) in spec.weights:
        return None if weights is None else str(weights)
    return f"sha256:{sha256_of_file(_weights_file(spec, weights))}"


def split_at_features(model: Any) -> tuple[Any, Any]:
    """Return a built model as two that share its layers: pixels to features (batch, n), and features to logits."""
    import keras

    features = next(layer for layer in reversed(model.layers) if layer.name in _FIRST_LAYERS).output
    return keras.Model(model.input, features, name=model.name), keras.Model(features, model.output)


def all_layers(model: Any) -> list[Any]:
    """Return the layers of a model in their order, each followed by the layers inside it."""
    own = model._flatten_layers(include_self=False, recursive=False)
    return list(dict.fromkeys(part for layer in own for part in (layer, *all_layers(layer))))


def most_readers(model: Any) -> int:
    """Return the largest number of layers that read one tensor; 2 behind a residual block."""
    import keras

    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    return max(Counter(id(tensor) for layer in layers for tensor in keras.tree.flatten(layer.input)).values())


def scale(inputs: Any, scaling: Scaling) -> Any:
    """Return RGB 0..255 scaled as `keras.applications.*.preprocess_input` does, as a symbolic float32 tensor."""
    from keras import layers, ops

    settings = {"dtype": "float32", "name": "scaling"}
    if scaling == "caffe":
        return layers.Normalization(mean=_IMAGENET_MEAN_BGR, variance=(1.0,) * 3, **settings)(ops.flip(inputs, axis=-1))
    if scaling == "tf":
        return layers.Rescaling(1 / 127.5, offset=-1.0, **settings)(inputs)
    return layers.Rescaling(1 / 255.0, **settings)(inputs) if scaling == "unit" else inputs


def _apply_head(features: Any, head: Head, classes: int) -> Any:
    """Return logits (batch, classes), float32, of a symbolic feature map (batch, height, width, channels)."""
    from keras import layers, ops

    if head.sigmoid and classes != 2:
        raise SettingsError(f"A sigmoid head tells two classes apart. Received: {classes} classes; use sigmoid=False.")
    if head.kind == "pooled":
        x = layers.GlobalAveragePooling2D(dtype="float32", name="pooling")(features)
    else:
        x = layers.Flatten(dtype="float32", name="flatten")(features)
    if head.units:
        x = layers.Dense(head.units, "relu", dtype="float32", name="head_dense")(x)
    if head.dropout:
        x = layers.Dropout(head.dropout, dtype="float32", name="head_dropout")(x)
    x = layers.Dense(1 if head.sigmoid else classes, dtype="float32", name="logits")(x)
    return ops.pad(x, ((0, 0), (1, 0))) if head.sigmoid else x


def _features(spec: BackboneSpec, inputs: Any, weights: str | None) -> Any:
    try:
        features = spec.build(inputs, weights)
    except Exception as error:
        if weights is None:
            raise PluginError(f"The builder of {spec.name!r} raised {type(error).__name__}: {error}") from error
        raise WeightsError(
            f"The {weights!r} weights of {spec.name} could not be fetched ({type(error).__name__}: {error}). "
            "Ways out: connect this machine to the internet once (Keras keeps the file); fetch the file on "
            "another machine and pass its path as weights; or train from random weights with weights=None."
        ) from error
    shape = getattr(features, "shape", ())
    if len(shape) != 4 or None in shape[1:]:
        raise PluginError(
            f"The builder of {spec.name!r} must return a feature map (batch, height, width, channels). "
            f"Received: {type(features).__name__} {shape}."
        )
    return features


def _bare_with_weights(spec: BackboneSpec, image_size: int, weights: str | Path) -> Any:
    """Return the backbone as a model without scaling and head, its weights loaded."""
    import keras

    inputs = keras.Input((image_size, image_size, 3), dtype="float32")
    if str(weights) in spec.weights:
        return keras.Model(inputs, _features(spec, inputs, str(weights)))
    path = _weights_file(spec, weights)
    bare = keras.Model(inputs, _features(spec, inputs, None))
    try:
        with warnings.catch_warnings():
            # Keras only warns of layers that the file does not hold, and leaves them random.
            warnings.simplefilter("error", UserWarning)
            bare.load_weights(path)
    except Exception as error:
        raise WeightsError(
            f"The weights in {path} do not fit {spec.name} without its top ({type(error).__name__}: {error}). "
            "Pass a file written by save_weights on that backbone with include_top=False."
        ) from error
    return bare


def _weights_file(spec: BackboneSpec, weights: str | Path) -> Path:
    path = Path(weights).expanduser()
    if path.is_file() and path.suffix.lower() in (".h5", ".hdf5"):
        return path
    raise WeightsError(
        f"{spec.name} has no weights {str(weights)!r}, and there is no such file in HDF5 format. Allowed: "
        f"{', '.join(['None', *map(repr, spec.weights)])}, or the path of an .h5 file; in a recipe also "
        "weights='pretrained', or a mapping such as {'vgg16': 'imagenet', 'cnn': 'random'}."
    )
