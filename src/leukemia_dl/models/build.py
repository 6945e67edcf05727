"""Build the Keras model of a backbone: raw pixels -> scaling -> backbone -> head -> logits."""

import contextlib
import importlib.util
import json
import os
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from leukemia_dl.atomic import sha256_of_file
from leukemia_dl.checks import choice, whole_number
from leukemia_dl.errors import BackendError, PluginError, SettingsError, WeightsError
from leukemia_dl.models.backbones import IMAGENET, BackboneSpec, Scaling, Spec

_BACKENDS = ("tensorflow", "jax", "torch")
_one_at_a_time, _started = threading.RLock(), list[bool]()
_RESERVED = {"pooling", "flatten", "head_dense", "head_dropout", "logits", "calibration", "probabilities"}
# Mean of the ImageNet training images in BGR order, grey levels; the constants behind the published VGG weights.
_IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)


@dataclass(frozen=True, kw_only=True)
class Head:
    """The layers between a backbone's output and the logits.

    Attributes:
        kind: "pooled" averages a feature map over its area, and pools tokens as the backbone says; "flatten" keeps
            every value of them. A vector stays as it is.
        units: Width of a ReLU layer on these features; 0 for none.
        dropout: Share of its inputs that the last layer drops in training, in [0, 1).
        sigmoid: For two classes: one weighted sum z, and (0, z) as logits, so that the softmax of these is the sigmoid
            of z and their cross-entropy the binary one.
    """

    kind: Literal["pooled", "flatten"] = "pooled"
    units: int = 0
    dropout: float = 0.0
    sigmoid: bool = False


def backend_name() -> str:
    """Return the backend of Keras: KERAS_BACKEND, else its config file, else the first one installed, which is set."""
    if "keras" in sys.modules:
        import keras

        return str(keras.backend.backend())
    chosen = os.environ.get("KERAS_BACKEND")
    if not chosen:
        with contextlib.suppress(OSError, ValueError):  # Keras ignores such a file too
            file = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "keras.json"
            chosen = json.loads(file.read_text()).get("backend")
        if chosen in (None, "", "tensorflow"):  # Keras itself writes "tensorflow", which is no choice
            chosen = os.environ["KERAS_BACKEND"] = next(filter(importlib.util.find_spec, _BACKENDS), _BACKENDS[0])
    if chosen not in _BACKENDS or importlib.util.find_spec(chosen) is None:
        raise BackendError(f"{chosen} is not installed: KERAS_BACKEND must be one of {', '.join(_BACKENDS)} that is.")
    return chosen


@contextlib.contextmanager
def silence_startup() -> Iterator[None]:
    """Hide TensorFlow's start-up lines, which its C++ part writes to file descriptor 2, the first time in a process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    shown = os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0" or sys.stderr is None
    with _one_at_a_time:  # the descriptor belongs to the whole process
        if backend_name() != "tensorflow" or shown or _started:
            yield
            return
        saved = os.dup(2)
        try:
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            yield
            _started.append(True)
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def build_model(
    spec: BackboneSpec, image_size: int, classes: int, *, weights: str | Path | None = None, head: Head | None = None,
    head_seed: int | None = None, scaling: Scaling | None = None, dtype_policy: str = "float32",
) -> Any:  # fmt: skip
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

    Raises:
        SettingsError: If the image is too small, or the number of classes does not fit the head.
        WeightsError: If weights cannot be fetched or read, or do not fit.
        PluginError: If the builder returns no feature map, tokens or vector that depend on its inputs.
    """
    import keras

    check_size(spec, image_size)
    head = head or Head()
    whole_number("classes", classes, 2)
    choice("kind", head.kind, ("pooled", "flatten"))
    if head.sigmoid and classes != 2:
        raise SettingsError(f"A sigmoid head tells two classes apart. Received: {classes} classes; use sigmoid=False.")
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype_policy)
    try:
        inputs = keras.Input((image_size, image_size, 3), dtype="float32", name="rgb")
        fetched = str(weights) if str(weights) in spec.weights else None
        features = _features(spec, scale(inputs, scaling or spec.scaling), fetched)
        try:
            backbone = keras.Model(inputs, features)
        except ValueError as error:  # such as the output of a nested model that was not called on `inputs`
            raise PluginError(f"The builder of {spec.name!r} does not use its `inputs` ({error}).") from error
        if weights is not None and not fetched:
            _load_weights(backbone, spec, _weights_file(spec, weights))
        if taken := _RESERVED & {layer.name for layer in backbone.layers}:
            raise PluginError(f"The builder of {spec.name!r} uses names of the library for layers: {sorted(taken)}.")
        if head_seed is not None:
            keras.utils.set_random_seed(head_seed)
        return keras.Model(inputs, _apply_head(features, head, classes, spec.pooling), name=spec.name)
    finally:
        keras.config.set_dtype_policy(policy)


def check_size(spec: BackboneSpec, image_size: int) -> None:
    """Raise SettingsError if the backbone does not accept images of this side."""
    if image_size < spec.min_size:
        raise SettingsError(
            f"{spec.name} needs images of at least {spec.min_size} x {spec.min_size} pixels. Received: image_size="
            f"{image_size}. Raise it (command line: --image-size {spec.min_size}) or leave {spec.name} out."
        )


def weights_identity(spec: Spec, weights: str | Path | None) -> str | None:
    """Return the weights as a trial's digest names them: None, their name, or the SHA-256 of the file."""
    if not isinstance(spec, BackboneSpec):
        return str(weights)
    if weights is None or str(weights) in spec.weights:
        return None if weights is None else str(weights)
    return f"sha256:{sha256_of_file(_weights_file(spec, weights))}"


def with_probabilities(model: Any, probable: bool, temperature: float) -> Any:
    """Return a net whose output, logits or `probable`, is replaced by calibrated probabilities (batch, classes).

    The last layers are Keras's own, so that the net loads without this library.
    """
    import keras
    from keras import layers, ops

    x = model.output
    if x.shape[-1] == 1:  # of the second of two classes
        x = ops.concatenate([1 - x, x], axis=-1) if probable else ops.pad(x, ((0, 0), (1, 0)))
    x = ops.log(ops.maximum(x, 1e-37)) if probable else x
    again = sum(layer.name.startswith("calibration") for layer in model.layers) or ""
    x = layers.Rescaling(1 / temperature, dtype="float32", name=f"calibration{again}")(x)
    return keras.Model(model.input, layers.Softmax(dtype="float32", name=f"probabilities{again}")(x), name=model.name)


def with_logits(model: Any) -> Any:
    """Return the net inside one of `with_probabilities`, whose last two layers are left out."""
    import keras

    return keras.Model(model.input, model.layers[-2].input, name=model.name)


def split_at_features(model: Any) -> tuple[Any, Any]:
    """Return a built model as two that share its layers: pixels to features (batch, n), and features to logits."""
    import keras

    features = next(layer for layer in reversed(model.layers) if layer.name in ("pooling", "flatten")).output
    return keras.Model(model.input, features, name=model.name), keras.Model(features, model.output)


def all_layers(model: Any) -> list[Any]:
    """Return the layers of a model from input to output, each followed by the layers inside it."""
    import keras

    own = [*model.layers] if isinstance(model, keras.Model) else []  # attributes may be in another order
    own += model._flatten_layers(include_self=False, recursive=False)
    return list(dict.fromkeys(part for layer in dict.fromkeys(own) for part in (layer, *all_layers(layer))))


def graphs(model: Any) -> list[Any]:
    """Return a model and the models inside it that are graphs of layers."""
    import keras

    return [net for net in (model, *all_layers(model)) if isinstance(net, keras.Model) and hasattr(net, "operations")]


def batchnorm_layers(model: Any) -> list[Any]:
    """Return the layers whose statistics are re-estimated, those inside other layers included."""
    import keras

    kind = keras.layers.BatchNormalization
    return [layer for layer in all_layers(model) if isinstance(layer, kind) and layer.trainable and layer.momentum < 1]


def most_readers(model: Any) -> int:
    """Return the largest number of layers that read one tensor, in nested models too; 2 behind a residual block."""
    nodes = [node for net in graphs(model) for depth in net._nodes_by_depth.values() for node in depth]
    return max(Counter(id(tensor) for node in nodes for tensor in node.input_tensors).values())


def scale(inputs: Any, scaling: Scaling) -> Any:
    """Return RGB 0..255 scaled as `keras.applications.*.preprocess_input` does, as a symbolic float32 tensor."""
    from keras import layers, ops

    settings = {"dtype": "float32", "name": "scaling"}
    if scaling == "caffe":  # Normalization holds its numbers as tensors, which an ONNX file would ask for as inputs
        offsets = [-value for value in _IMAGENET_MEAN_BGR]
        return layers.Rescaling(1.0, offsets, **settings)(ops.flip(inputs, axis=-1))
    if scaling == "torch" or isinstance(scaling, tuple):
        mean, std = IMAGENET if scaling == "torch" else scaling
        pairs = [*zip(mean, std, strict=True)]
        return layers.Rescaling([1 / s for _, s in pairs], [-m / s for m, s in pairs], **settings)(inputs)
    if scaling == "tf":
        return layers.Rescaling(1 / 127.5, offset=-1.0, **settings)(inputs)
    return layers.Rescaling(1 / 255.0, **settings)(inputs) if scaling == "unit" else inputs


def build_head(width: int, classes: int, head: Head, seed: int) -> Any:
    """Return an uncompiled `keras.Model` from `width` features to logits (batch, classes), drawn by a seed."""
    import keras

    keras.utils.set_random_seed(seed)
    inputs = keras.Input((width,), dtype="float32", name="features")
    return keras.Model(inputs, _apply_head(inputs, head, classes, ""), name="head")


def _apply_head(features: Any, head: Head, classes: int, tokens: str) -> Any:
    from keras import layers, ops

    rank, pooled = len(features.shape), head.kind == "pooled"
    kinds = {2: layers.Identity, 3: layers.GlobalAveragePooling1D, 4: layers.GlobalAveragePooling2D}
    if pooled and rank == 3 and tokens == "cls":
        features, rank = ops.take(features, 0, axis=1), 2
    pooling = kinds[rank] if pooled else layers.Flatten
    x = pooling(dtype="float32", name="pooling" if pooled else "flatten")(features)
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
        reason = f"{type(error).__name__}: {error}"
        if weights is None:
            raise PluginError(f"The builder of {spec.name!r} raised {reason}") from error
        raise WeightsError(
            f"The {weights!r} weights of {spec.name} could not be fetched ({reason}). Ways out: connect this machine "
            "to the internet once; fetch the file on another machine and pass its path as weights; or weights=None."
        ) from error
    shape = getattr(features, "shape", ())
    if len(shape) not in (2, 3, 4) or None in shape[1:] or (spec.pooling == "cls" and len(shape) != 3):
        raise PluginError(
            f"The builder of {spec.name!r} must return a feature map (batch, height, width, channels), tokens (batch, "
            "n, channels) or a vector (batch, channels), of known sizes; with pooling='cls' tokens. "
            f"Received: {type(features).__name__} {shape}. Of a nested model return `model(inputs)`."
        )
    return features


def _load_weights(backbone: Any, spec: BackboneSpec, path: Path) -> None:
    try:
        with warnings.catch_warnings():
            # Keras only warns of layers that the file does not hold, and leaves them random.
            warnings.simplefilter("error", UserWarning)
            backbone.load_weights(path)
    except Exception as error:
        raise WeightsError(
            f"The weights in {path} do not fit {spec.name} without its top ({type(error).__name__}: {error}). "
            "Pass a file written by save_weights on that backbone with include_top=False."
        ) from error


def _weights_file(spec: BackboneSpec, weights: str | Path) -> Path:
    path = Path(weights).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"{spec.name} has no weights {str(weights)!r}, and there is no such file. Allowed: "
            f"{', '.join(['None', *map(repr, spec.weights)])}, or the path of an .h5 file; in a recipe also "
            "weights='pretrained', or a mapping such as {'vgg16': 'imagenet', 'cnn': 'random'}."
        )
    return path
