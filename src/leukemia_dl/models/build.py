"""From a backbone to a Keras model: raw pixels -> scaling -> backbone -> head -> logits, built flat.

Flat means that the backbone's layers are layers of the model itself, not of a model nested in it, so that they can be
frozen, looked into and explained by name.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from leukemia_dl.errors import PluginError, SettingsError, WeightsError
from leukemia_dl.models.heads import RESERVED, Head, apply_head
from leukemia_dl.models.scaling import scale
from leukemia_dl.models.spec import BackboneSpec, Scaling

__all__ = ["all_layers", "build_model", "check_size", "most_readers", "weights_identity"]

_log = logging.getLogger(__name__)
_WEIGHTS_SUFFIXES = (".h5", ".hdf5")


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
        head: What stands on the backbone; None for global average pooling and logits.
        head_seed: What `keras.utils.set_random_seed` is given before the head is built, so that its weights do not
            depend on how many numbers the backbone drew; None to draw on.
        scaling: Instead of the backbone's own, to repeat work that used another; None for `spec.scaling`.
        dtype_policy: Keras dtype policy of the backbone, such as "mixed_bfloat16". Scaling and head stay float32.
        name: Name of the model.

    Raises:
        SettingsError: If the image is smaller than the backbone accepts, there are fewer than two classes, or more than
            two for a sigmoid.
        WeightsError: If weights cannot be had or do not fit; it names the ways out.
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
        if weights is not None:
            # Loaded into a twin without scaling, then copied: the file knows nothing of our scaling layers.
            _copy_weights(_twin_with_weights(spec, image_size, weights), keras.Model(inputs, features))
        taken = RESERVED & {layer.name for layer in keras.Model(inputs, features).layers} - {"rgb", "scaling"}
        if taken:
            raise PluginError(
                f"The builder of {spec.name!r} names a layer {sorted(taken)[0]!r}, as one of the library's own around "
                f"it is called. Reserved: {', '.join(sorted(RESERVED))}."
            )
        if head_seed is not None:
            keras.utils.set_random_seed(head_seed)
        return keras.Model(inputs, apply_head(features, head or Head(), classes), name=name or spec.name)
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
    """Return what a trial's digest says of the weights: None, the name, or the SHA-256 of the file."""
    if weights is None or str(weights) in spec.weights:
        return None if weights is None else str(weights)
    with _weights_file(spec, weights).open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _features(spec: BackboneSpec, inputs: Any, weights: str | None) -> Any:
    try:
        features = spec.build(inputs, weights)
    except Exception as error:
        if weights is not None:
            raise  # they could not be fetched, as our caller says
        raise PluginError(f"The builder of {spec.name!r} raised {type(error).__name__}: {error}") from error
    shape = getattr(features, "shape", None)
    if shape is None or len(shape) != 4 or None in shape[1:]:
        raise PluginError(
            f"The builder of {spec.name!r} must return a feature map (batch, height, width, channels). "
            f"Received: {shape if shape is not None else type(features).__name__}."
        )
    return features


def _twin_with_weights(spec: BackboneSpec, image_size: int, weights: str | Path) -> Any:
    import keras

    inputs = keras.Input((image_size, image_size, 3), dtype="float32")
    if str(weights) in spec.weights:
        try:
            return keras.Model(inputs, _features(spec, inputs, str(weights)))
        except PluginError:
            raise
        except Exception as error:
            raise WeightsError(
                f"The {weights!r} weights of {spec.name} could not be fetched ({type(error).__name__}: {error}). "
                "Ways out: connect this machine to the internet once (Keras keeps the file); fetch the file on "
                "another machine and pass its path as weights; or train from random weights with weights=None."
            ) from error
    path = _weights_file(spec, weights)
    twin = keras.Model(inputs, _features(spec, inputs, None))
    try:
        with warnings.catch_warnings():
            # Keras only warns of layers that the file does not hold, and leaves them random.
            warnings.simplefilter("error", UserWarning)
            twin.load_weights(path)
    except Exception as error:
        raise WeightsError(
            f"The weights in {path} do not fit {spec.name} without its top ({type(error).__name__}: {error}). "
            "Pass a file written by save_weights on that backbone with include_top=False."
        ) from error
    return twin


def _weights_file(spec: BackboneSpec, weights: str | Path) -> Path:
    path = Path(weights).expanduser()
    named = ", ".join(repr(name) for name in spec.weights)
    allowed = f"Allowed: None, {named + ', ' if named else ''}or the path of an .h5 file; in a recipe also "
    allowed += "weights='pretrained', or a mapping such as {'vgg16': 'imagenet', 'cnn': 'random'}."
    if not path.is_file():
        raise WeightsError(f"{spec.name} has no weights {str(weights)!r}, and no such file is there. {allowed}")
    if path.suffix.lower() not in _WEIGHTS_SUFFIXES:
        raise WeightsError(f"Weights are read from HDF5 files only. Received: {path}. {allowed}")
    return path


def _copy_weights(source: Any, target: Any) -> None:
    target.set_weights(source.get_weights())
    _log.info("Loaded %d weight arrays into %s", len(source.weights), target.name)


def all_layers(model: Any) -> list[Any]:
    """Return the layers of a model in their order, each followed by the layers inside it."""
    own = model._flatten_layers(include_self=False, recursive=False)
    return list(dict.fromkeys(part for layer in own for part in (layer, *all_layers(layer))))


def most_readers(model: Any) -> int:
    """Return how many layers read the one tensor of a model that most of them read; 2 behind a residual block."""
    import keras

    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    return max(Counter(id(tensor) for layer in layers for tensor in keras.tree.flatten(layer.input)).values())
