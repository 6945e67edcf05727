"""Backbones: the record of one, the built-in ones, and the registry of these and those of plugins and scripts."""

import contextlib
import hashlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd

from leukemia_dl.errors import PluginError, unknown_name_error
from leukemia_dl.plugins import Provided, collect, problem_hint, registries

Scaling = Literal["caffe", "tf", "unit", "none"]
THIS_PROCESS = "this process"  # the plugin of backbones that a script or notebook has registered
_HOOK = "leukemia_dl_backbones"
_registered: dict[str, Provided] = {}


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """A convolutional backbone that can enter a benchmark.

    Attributes:
        name: Unique, lower case, as in `Benchmark(backbones=[name])`.
        build: `build(inputs, weights) -> features`, which imports keras inside. `inputs` is a symbolic float32 tensor
            (batch, size, size, 3), scaled already; `weights` None or one of the names below; the result a feature map
            (batch, height, width, channels), made of layers called on `inputs` (no nested model).
        scaling: For the weights: "caffe" (BGR, ImageNet mean subtracted), "tf" (-1..1), "unit" (0..1) or "none".
        native_size: Side in pixels that the architecture was published with.
        min_size: Smallest side in pixels that it accepts.
        weights: Names of pretrained weights that `build` can fetch, such as ("imagenet",).
        parameters: Number of weights without head, trainable or not; None if unknown.
        title: Name as in the literature, with the `licence` of code and weights, and a `reference`, paper or page.

    Raises:
        PluginError: On creation, if a field could not be used; it names the field.
    """

    name: str
    build: Callable[[Any, str | None], Any]
    scaling: Scaling
    native_size: int
    min_size: int
    weights: tuple[str, ...] = ()
    parameters: int | None = None
    title: str = ""
    licence: str = ""
    reference: str = ""

    def __post_init__(self) -> None:
        are_names = isinstance(self.weights, (tuple, list)) and all(isinstance(name, str) for name in self.weights)
        rules = {
            "name": (re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", str(self.name)), "lower case letters, digits, _ - ."),
            "build": (callable(self.build), "a function (inputs, weights) -> features"),
            "scaling": (self.scaling in get_args(Scaling), f"one of {get_args(Scaling)}"),
            "min_size": (1 <= self.min_size <= self.native_size, f"from 1 to native_size={self.native_size}"),
            "weights": (are_names, "a tuple of names"),
        }
        for name, (fits, allowed) in rules.items():
            if not fits:
                raise PluginError(f"{name} must be {allowed}. Received: {name}={getattr(self, name)!r}.")


def application(name: str) -> Callable[[Any, str | None], Any]:
    """Return a builder for the net `name` of `keras.applications`, such as "VGG16", without its top."""

    def build(inputs: Any, weights: str | None) -> Any:
        import keras

        constructor = getattr(keras.applications, name)
        return constructor(include_top=False, weights=weights, input_tensor=inputs).output

    return build


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
    ("cnn", "Small residual CNN", _build_cnn, "tf", 128, 32, 888_544, (), "MIT", "leukemia_dl"),
    ("published_cnn", "Published CNN", _build_published_cnn, "unit", 180, 22, 19_392, (), "MIT",
     "the net of the published comparison that the recipe published_v1 repeats"),
)  # fmt: skip
registries[_HOOK] = (BackboneSpec, [BackboneSpec(**dict(zip(_FIELDS, net, strict=True))) for net in _NETS])


def register_backbone(spec: BackboneSpec, *, replace: bool = False, version: str | None = None) -> BackboneSpec:
    """Register a backbone in this process, for a script or a notebook, and return its record.

    Args:
        spec: The record. A package uses an entry point instead.
        replace: True to register the same name again, as when a notebook cell is run twice.
        version: Part of the name of its trials; None for a digest of the file that defines the builder, to which values
            from elsewhere do not belong.

    Raises:
        PluginError: If it is no BackboneSpec, or the name is taken.
    """
    if not isinstance(spec, BackboneSpec):
        raise PluginError(
            f"A backbone is a name or a BackboneSpec. Received: {type(spec).__name__}. For a Keras model pass "
            "BackboneSpec(name=..., build=f(inputs, weights), scaling=..., native_size=..., min_size=...)."
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
        raise unknown_name_error("backbone", name, known, problem_hint())
    return known[name]


def get_backbone(name: str) -> BackboneSpec:
    """Return the backbone registered under `name`. Raises UnknownNameError, with the near match, if there is none.

    Examples:
        >>> import leukemia_dl as ldl
        >>> spec = ldl.get_backbone("xception")
        >>> spec.title, spec.native_size, spec.min_size
        ('Xception', 299, 71)
    """
    spec: BackboneSpec = find_backbone(name).record
    return spec


def list_backbones() -> list[str]:
    """Return the names of all backbones, sorted."""
    return list(_known())


def backbone_table() -> pd.DataFrame:
    """Return a row per backbone, sorted by its name: the fields of `BackboneSpec`, and `plugin` and `version`."""
    rows = [vars(item.record) | {"plugin": item.plugin, "version": item.version} for item in _known().values()]
    order = ["name", "title", "parameters", "native_size", "min_size", "scaling", "weights", "licence", "reference"]
    table = pd.DataFrame(rows)[[*order, "plugin", "version"]].rename(columns={"name": "backbone"})
    table["weights"] = table["weights"].map(", ".join)
    return table.astype({"parameters": "Int64"})


def _known() -> dict[str, Provided]:
    """Return all records by name, sorted; those registered in this process first where a plugin has the same name."""
    # The source of a builder may have changed since it was registered.
    here = [item._replace(version=item.version or _source_version(item.record.build)) for item in _registered.values()]
    return {item.record.name: item for item in sorted([*collect(_HOOK), *here], key=lambda item: item.record.name)}


def _source_version(build: Any) -> str:
    """Return a digest of the source of a builder and of the values that it holds."""
    function = inspect.unwrap(getattr(build, "func", build))  # of a functools.partial
    held = [getattr(build, name, None) for name in ("args", "keywords", "__defaults__", "__kwdefaults__", "__dict__")]
    held += [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    values = re.sub(r" at 0x[0-9a-fA-F]+", "", repr([value for value in held if value]))
    for source in (inspect.getmodule(function), function, type(function)):
        with contextlib.suppress(OSError, TypeError):
            text = values + inspect.getsource(source)  # type: ignore[arg-type]
            return f"source {hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return "unversioned"
