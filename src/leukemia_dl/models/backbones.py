"""Backbones: the record of one, the built-in ones, and the registry of these and those of plugins and scripts."""

import contextlib
import hashlib
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from leukemia_dl.errors import PluginError, unknown_name_error
from leukemia_dl.models.embeddings import Embeddings
from leukemia_dl.models.encoders import EncoderSpec
from leukemia_dl.plugins import Provided, collect, problem_hint, registries

_Grey = tuple[float, float, float]
Scaling = Literal["caffe", "tf", "torch", "unit", "none"] | tuple[_Grey, _Grey]
_SCALINGS = ("caffe", "tf", "torch", "unit", "none")
# Mean and standard deviation of the ImageNet training images, RGB, in grey levels: the constants of torchvision.
IMAGENET: tuple[_Grey, _Grey] = ((0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255))
THIS_PROCESS = "this process"  # the plugin of backbones that a script or notebook has registered
_HOOK = "leukemia_dl_backbones"
_registered: dict[str, Provided] = {}


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """A Keras backbone that can enter a benchmark.

    Attributes:
        name: Unique, lower case, as in `Benchmark(backbones=[name])`.
        build: `build(inputs, weights) -> features`, which imports keras inside. `inputs` is a symbolic float32 tensor
            (batch, size, size, 3), scaled already; `weights` None or one of the names below; the result a feature map
            (batch, height, width, channels), tokens (batch, n, channels) or a vector (batch, channels). It may call
            nested models and custom layers, which are registered by `keras.saving.register_keras_serializable`.
        scaling: For the weights: "caffe" (BGR, ImageNet mean subtracted), "tf" (-1..1), "torch" (ImageNet mean and
            standard deviation, RGB), "unit" (0..1), "none" (0..255); or `(mean, std)`, three grey levels 0..255 each.
        pooling: Tokens become features by their "mean", or by the first of them, the class token ("cls").
        native_size: Side in pixels that the architecture was published with.
        min_size: Smallest side in pixels that it accepts.
        weights: Names of pretrained weights that `build` can fetch, such as ("imagenet",).
        parameters: Number of weights without head, trainable or not, at the native size; None if unknown.
        title: Name as in the literature, with the `licence` of code and weights, and a `reference`, paper or page.

    Raises:
        PluginError: On creation, if a field could not be used; it names the field.
    """

    name: str
    build: Callable[[Any, str | None], Any]
    scaling: Scaling
    native_size: int
    min_size: int
    pooling: Literal["mean", "cls"] = "mean"
    weights: tuple[str, ...] = ()
    parameters: int | None = None
    title: str = ""
    licence: str = ""
    reference: str = ""

    def __post_init__(self) -> None:
        are_names = isinstance(self.weights, (tuple, list)) and all(isinstance(name, str) for name in self.weights)
        if isinstance(self.scaling, (tuple, list)):
            object.__setattr__(self, "scaling", _checked_scaling(self.scaling))
        rules = {
            "name": (re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", str(self.name)), "lower case letters, digits, _ - ."),
            "build": (callable(self.build), "a function (inputs, weights) -> features"),
            "scaling": (isinstance(self.scaling, tuple) or self.scaling in _SCALINGS, f"one of {_SCALINGS}, or a pair"),
            "pooling": (self.pooling in ("mean", "cls"), "'mean' or 'cls'"),
            "min_size": (1 <= self.min_size <= self.native_size, f"from 1 to native_size={self.native_size}"),
            "weights": (are_names, "a tuple of names"),
        }
        for name, (fits, allowed) in rules.items():
            if not fits:
                raise PluginError(f"{name} must be {allowed}. Received: {name}={getattr(self, name)!r}.")


Spec = BackboneSpec | EncoderSpec | Embeddings


def _checked_scaling(pair: Any) -> tuple[_Grey, _Grey]:
    """Return a mean and a standard deviation as tuples; PluginError if they are not grey levels."""
    try:
        (r, g, b), (x, y, z) = (tuple(map(float, values)) for values in pair)
    except (TypeError, ValueError):
        r = g = b = x = y = z = math.nan
    if not (all(0 <= value <= 255 for value in (r, g, b)) and all(0 < value <= 255 for value in (x, y, z))):
        message = "scaling as a pair must be (mean, std), three grey levels 0..255 each, std above 0"
        raise PluginError(f"{message}. Received: scaling={pair!r}.")
    if max(r, g, b, x, y, z) <= 1:
        raise PluginError(f"scaling must be in grey levels 0..255: multiply by 255. Received: scaling={pair!r}.")
    return (r, g, b), (x, y, z)


def application(name: str, **settings: Any) -> Callable[[Any, str | None], Any]:
    """Return a builder for the net `name` of `keras.applications`, such as "VGG16", without its top.

    `settings` are passed on to it. A net that scales pixels itself takes `include_preprocessing=False`, and the
    `scaling` of its record instead.
    """

    def build(inputs: Any, weights: str | None) -> Any:
        import keras

        constructor = getattr(keras.applications, name)
        return constructor(include_top=False, weights=weights, input_tensor=inputs, **settings).output

    return build


def _build_efficientnet(inputs: Any, weights: str | None) -> Any:
    """Return the feature map of EfficientNetB0, which scales pixels 0..255 itself."""
    from keras import layers

    if weights is None:
        # Its weights divide by the root of the standard deviation. Keras divides by that once more only if it fetches
        # them itself, and here it is done for a file of weights too.
        mean, roots = [value / 255 for value in IMAGENET[0]], [(value / 255) ** 0.5 for value in IMAGENET[1]]
        offsets = [255 * value * (1 - 1 / root) for value, root in zip(mean, roots, strict=True)]
        inputs = layers.Rescaling([1 / root for root in roots], offsets, dtype="float32", name="deviation")(inputs)
    return application("EfficientNetB0")(inputs, weights)


def _build_cnn(inputs: Any, weights: str | None) -> Any:
    """Return the feature map (batch, size / 16, size / 16, 192) of residual blocks (He et al. 2016) in four stages."""
    from keras import layers

    x = _convolution(inputs, 32, strides=2, name="stem")
    for stage, width in enumerate((32, 64, 128, 192), start=1):
        name, strides, shortcut = f"stage{stage}", 1 if stage == 1 else 2, x
        if strides != 1:  # average first: a strided 1x1 convolution would throw three pixels of four away
            shortcut = layers.AveragePooling2D(strides, padding="same", name=f"{name}_shortcut_pool")(shortcut)
            shortcut = _convolution(shortcut, width, kernel=1, activation=False, name=f"{name}_shortcut")
        y = _convolution(x, width, strides=strides, name=f"{name}_1")
        y = _convolution(y, width, activation=False, name=f"{name}_2")
        x = layers.Activation("relu", name=f"{name}_out")(layers.Add(name=f"{name}_add")([shortcut, y]))
    return x


def _build_published_cnn(inputs: Any, weights: str | None) -> Any:
    from keras import layers

    x = inputs
    for stage in (1, 2, 3):
        x = layers.Conv2D(32, 3, activation="relu", name=f"stage{stage}_conv")(x)
        x = layers.MaxPooling2D(2, name=f"stage{stage}_pool")(x)
    return x


def _convolution(x: Any, filters: int, kernel: int = 3, strides: int = 1, activation: bool = True, *, name: str) -> Any:
    from keras import layers

    settings = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}
    x = layers.Conv2D(filters, kernel, strides, name=f"{name}_conv", **settings)(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
    return layers.Activation("relu", name=f"{name}_relu")(x) if activation else x


_FIELDS = (
    "name", "title", "build", "scaling", "native_size", "min_size", "parameters", "weights", "licence", "reference"
)  # fmt: skip
_NETS: tuple[tuple[Any, ...], ...] = (
    ("vgg16", "VGG16", application("VGG16"), "caffe", 224, 32, 14_714_688, ("imagenet",),
     "Apache-2.0 (code); CC BY 4.0 (weights)", "Simonyan and Zisserman 2015, arXiv:1409.1556"),
    ("resnet50", "ResNet50", application("ResNet50"), "caffe", 224, 32, 23_587_712, ("imagenet",),
     "Apache-2.0 (code); MIT (weights)", "He et al. 2016, arXiv:1512.03385"),
    ("inception_v3", "InceptionV3", application("InceptionV3"), "tf", 299, 75, 21_802_784, ("imagenet",),
     "Apache-2.0 (code and weights)", "Szegedy et al. 2016, arXiv:1512.00567"),
    ("xception", "Xception", application("Xception"), "tf", 299, 71, 20_861_480, ("imagenet",),
     "Apache-2.0 (code); MIT (weights)", "Chollet 2017, arXiv:1610.02357"),
    ("efficientnet_b0", "EfficientNetB0", _build_efficientnet, "none", 224, 32, 4_049_571, ("imagenet",),
     "Apache-2.0 (code and weights)", "Tan and Le 2019, arXiv:1905.11946"),
    ("efficientnet_v2_b0", "EfficientNetV2B0", application("EfficientNetV2B0", include_preprocessing=False), "torch",
     224, 32, 5_919_312, ("imagenet",), "Apache-2.0 (code and weights)", "Tan and Le 2021, arXiv:2104.00298"),
    # Its last layer normalises the mean of the feature map, so that it returns a vector.
    ("convnext_tiny", "ConvNeXt-Tiny", application("ConvNeXtTiny", include_preprocessing=False, pooling="avg"), "torch",
     224, 32, 27_820_128, ("imagenet",), "Apache-2.0 (code); MIT (weights)", "Liu et al. 2022, arXiv:2201.03545"),
    ("densenet121", "DenseNet121", application("DenseNet121"), "torch", 224, 32, 7_037_504, ("imagenet",),
     "Apache-2.0 (code); BSD-3-Clause (weights)", "Huang et al. 2017, arXiv:1608.06993"),
    ("mobilenet_v3_small", "MobileNetV3-Small", application("MobileNetV3Small", include_preprocessing=False), "tf",
     224, 32, 939_120, ("imagenet",), "Apache-2.0 (code and weights)", "Howard et al. 2019, arXiv:1905.02244"),
    ("cnn", "Small residual CNN", _build_cnn, "tf", 128, 32, 888_544, (), "MIT", "leukemia_dl"),
    ("published_cnn", "Published CNN", _build_published_cnn, "unit", 180, 22, 19_392, (), "MIT",
     "Leukaemia Classification using DL, in DL-Simplified (GitHub), 2023"),
)  # fmt: skip
registries[_HOOK] = (
    (BackboneSpec, EncoderSpec),
    [BackboneSpec(**dict(zip(_FIELDS, net, strict=True))) for net in _NETS],
)


def register_backbone(spec: Spec, *, replace: bool = False, version: str | None = None) -> Spec:
    """Register a backbone or encoder in this process, for a script or a notebook, and return its record.

    Args:
        spec: The record. A package uses an entry point instead.
        replace: True to register the same name again, as when a notebook cell is run twice.
        version: Part of the name of its trials; None for a digest of the file that defines the builder, to which values
            from elsewhere do not belong.

    Raises:
        PluginError: If it is no such record, or the name is taken.
    """
    if not isinstance(spec, Spec):
        raise PluginError(
            f"A backbone is a name, BackboneSpec, EncoderSpec or Embeddings. Received: {type(spec).__name__}. For a "
            "Keras model pass BackboneSpec(name=..., build=f(inputs, weights), scaling=..., native_size=..., ...)."
        )
    taken = _known().get(spec.name)
    if taken and not (replace and taken.plugin == THIS_PROCESS):
        way_out = "pass replace=True" if taken.plugin == THIS_PROCESS else "choose another name"
        raise PluginError(f"{spec.name!r} is provided by {taken.plugin} {taken.version}: {way_out}.")
    _registered[spec.name] = Provided(spec, THIS_PROCESS, version or "")
    return spec


def names_of(backbones: Any) -> Any:
    """Return the names for a list of names and specs; the specs are registered."""
    if not isinstance(backbones, (list, tuple)):
        return backbones
    for item in backbones:
        if not isinstance(item, str) and item not in [known.record for known in _known().values()]:
            register_backbone(item, replace=True)
    return [getattr(item, "name", item) for item in backbones]


def find_backbone(name: str) -> Provided:
    """Return a record with its plugin; UnknownNameError if there is none."""
    known = _known()
    if name not in known:
        hint = "Call register_backbone for your own one; pass features in a file by --embeddings NAME=FILE."
        raise unknown_name_error("backbone", name, known, f"{hint} {problem_hint()}".strip())
    return known[name]


def get_backbone(name: str) -> Spec:
    """Return the backbone registered under `name`. Raises UnknownNameError, with the near match, if there is none.

    Examples:
        >>> import leukemia_dl as ldl
        >>> spec = ldl.get_backbone("xception")
        >>> spec.title, spec.native_size, spec.min_size
        ('Xception', 299, 71)
    """
    spec: Spec = find_backbone(name).record
    return spec


def list_backbones() -> list[str]:
    """Return the names of all backbones, sorted."""
    return list(_known())


def backbone_table() -> pd.DataFrame:
    """Return a row per backbone, sorted by its name: the fields of `BackboneSpec`, and `plugin` and `version`."""
    order = ["name", "title", "parameters", "native_size", "min_size", "scaling", "weights", "licence", "reference"]
    known = _known().values()
    rows = [[*(getattr(item.record, name, None) for name in order), item.plugin, item.version] for item in known]
    table = pd.DataFrame(rows, columns=["backbone", *order[1:], "plugin", "version"])
    table["weights"] = [", ".join(names) if isinstance(names, tuple) else names or "" for names in table["weights"]]
    table["scaling"] = table["scaling"].fillna("own").map(str)
    return table.astype({"parameters": "Int64"})


def _known() -> dict[str, Provided]:
    """Return all records by name, sorted; those registered in this process first where a plugin has the same name."""
    # The source of a builder may have changed since it was registered.
    here = [item._replace(version=item.version or source_version(item.record)) for item in _registered.values()]
    return {item.record.name: item for item in sorted([*collect(_HOOK), *here], key=lambda item: item.record.name)}


def encoder_identity(spec: EncoderSpec) -> str:
    """Return version and weights of an encoder; where neither is known, a digest of its source."""
    return source_version(spec) if spec.identity == "own" else spec.identity


def _text(value: Any) -> str:
    """Return a text of a value with all numbers of the arrays in it, of which `repr` leaves most out."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, (tuple, list, dict)):
        return f"{type(value).__name__} {[*map(_text, value.items() if isinstance(value, dict) else value)]}"
    return repr(value)


def source_version(spec: Spec) -> str:
    """Return a digest of the source of a record's function and of the values that it holds."""
    if isinstance(spec, Embeddings):
        return spec.identity
    build: Any = spec.build if isinstance(spec, BackboneSpec) else spec.load
    function = inspect.unwrap(getattr(build, "func", build))  # of a functools.partial
    names = ("args", "keywords", "__defaults__", "__kwdefaults__", "__dict__")
    held = [getattr(build, name, None) or None for name in names]  # a partial without arguments is its function
    held += [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    held += [getattr(spec, name, None) for name in ("scaling", "pooling", "image_size")]
    values = re.sub(r" at 0x[0-9a-fA-F]+", "", _text(held))
    for source in (inspect.getmodule(function), function, type(function)):
        with contextlib.suppress(OSError, TypeError):
            text = values + inspect.getsource(source)  # type: ignore[arg-type]
            return f"source {hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return "unversioned"
