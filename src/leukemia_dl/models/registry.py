"""BackboneSpec, the record of a backbone, and the registry: built-in records, those of plugins and of this process."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from leukemia_dl.errors import PluginError, unknown_name_error
from leukemia_dl.plugins import DISTRIBUTION, Provided, add_registry, collect, problems_with

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "THIS_PROCESS", "BackboneSpec", "Scaling", "backbone_table", "find_backbone", "get_backbone", "list_backbones",
    "names_of", "register_backbone", "register_layers",
]  # fmt: skip

Scaling = Literal["caffe", "tf", "unit", "none"]
THIS_PROCESS = "this process"
"""The plugin of backbones that a script or notebook has registered."""
_HOOK = "leukemia_dl_backbones"
_registered: dict[str, BackboneSpec] = {}
_versions: dict[str, str | None] = {}


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """A convolutional backbone that can enter a benchmark.

    Attributes:
        name: Unique, lower case, as in `Benchmark(backbones=[name])`.
        build: `build(inputs, weights) -> features`. `inputs` is a symbolic Keras tensor of shape
            (batch, size, size, 3), float32, already scaled as `scaling` says; `weights` is None or one of the names
            in `weights` below; the result is a feature map (batch, height, width, channels). It must be made of
            layers called on `inputs` (no nested model), and import keras inside.
        scaling: The inputs that the weights expect, which the library makes of RGB in 0..255: "caffe" (BGR, ImageNet
            mean subtracted), "tf" (-1..1), "unit" (0..1) or "none".
        native_size: Side in pixels that the architecture was published with.
        min_size: Smallest side in pixels that it accepts.
        weights: Names of pretrained weights that `build` can fetch, such as ("imagenet",).
        parameters: Number of weights without head, trainable or not; None if unknown.
        title: Name as in the literature.
        licence: Of code and weights.
        reference: Paper or page.

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
        allowed = {
            "name": (
                "lower case letters, digits, '_', '-', '.'",
                re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", str(self.name)),
            ),
            "build": ("a function (inputs, weights) -> features", callable(self.build)),
            "scaling": (f"one of {get_args(Scaling)}", self.scaling in get_args(Scaling)),
            "min_size": (f"from 1 to native_size={self.native_size}", 1 <= self.min_size <= self.native_size),
            "weights": ("a tuple of names", _are_names(self.weights)),
        }
        for name, (values, fits) in allowed.items():
            if not fits:
                raise PluginError(f"{name} must be {values}. Received: {name}={getattr(self, name)!r}.")


def _are_names(names: object) -> bool:
    return isinstance(names, (tuple, list)) and all(isinstance(name, str) for name in names)


add_registry(_HOOK, BackboneSpec, ["leukemia_dl.models.backbones"])


def register_backbone(spec: BackboneSpec, *, replace: bool = False, version: str | None = None) -> BackboneSpec:
    """Register a backbone in this process, for a script or a notebook, and return its record.

    A package uses an entry point instead.

    Args:
        spec: The record.
        replace: True to register the same name again, as when a notebook cell is run twice.
        version: Part of the name of its trials; None for a digest of the file that defines the builder. Change it when
            the net changes in another way, such as by a value that the builder takes from outside of this file.

    Raises:
        PluginError: If it is no BackboneSpec, or the name is taken.
    """
    if not isinstance(spec, BackboneSpec):
        raise PluginError(
            f"A backbone is a name or a BackboneSpec. Received: {type(spec).__name__}. For a Keras model pass "
            "BackboneSpec(name=..., build=f(inputs, weights), scaling=..., native_size=..., min_size=...)."
        )
    taken = {item.record.name: item for item in _provided()}.get(spec.name)
    if taken and not (replace and spec.name in _registered):
        way_out = "pass replace=True" if spec.name in _registered else "choose another name"
        raise PluginError(f"{spec.name!r} is provided by {taken.plugin} {taken.version}: {way_out}.")
    _registered[spec.name], _versions[spec.name] = spec, version
    return spec


def names_of(backbones: Any) -> Any:
    """Register the specs in a list of names and specs, and return all names."""
    if not isinstance(backbones, (list, tuple)):
        return backbones
    known = [item.record for item in _provided()]
    for item in backbones:
        if not isinstance(item, str) and item not in known:
            register_backbone(item, replace=True)
    return [getattr(item, "name", item) for item in backbones]


def find_backbone(name: str) -> Provided:
    """Return the record with the plugin that it comes from; UnknownNameError, with the near match, if there is none."""
    provided = {item.record.name: item for item in _provided()}
    if name not in provided:
        raise unknown_name_error("backbone", name, provided, problems_with(name))
    return provided[name]


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


def register_layers(trial: dict[str, Any]) -> str:
    """Build the backbone that a trial names, so that Keras knows its plugin's layers; return how to get it, or ""."""
    import keras

    name, plugin = trial.get("backbone"), trial.get("plugin")
    if plugin in (None, DISTRIBUTION):
        return ""
    try:
        spec = get_backbone(str(name))
        spec.build(keras.Input((spec.min_size, spec.min_size, 3)), None)
    except Exception as error:
        way = "register it first" if plugin == THIS_PROCESS else f"install {plugin} {trial.get('plugin_version')}"
        return f"If it has layers of its backbone {name!r}, {way}. ({error})"
    return ""


def list_backbones() -> list[str]:
    """Return the names of all backbones, sorted."""
    return [item.record.name for item in _provided()]


def backbone_table() -> pd.DataFrame:
    """Return a row per backbone, sorted by its name.

    Columns: `backbone, title, parameters, native_size, min_size` (sides in pixels), `scaling, weights, licence,
    reference`, and the `plugin` that provides it with its `version`.
    """
    import pandas as pd

    names = ["backbone", "title", "parameters", "native_size", "min_size", "scaling", "weights", "licence", "reference"]
    rows = [
        {**vars(item.record), "backbone": item.record.name, "plugin": item.plugin, "version": item.version}
        for item in _provided()
    ]
    table = pd.DataFrame(rows)[[*names, "plugin", "version"]]
    table["weights"] = table["weights"].map(", ".join)
    return table.astype({"parameters": "Int64"})


def _version(name: str) -> str:
    """Return the version given to `register_backbone`, or a digest of the source and the values of the builder."""
    if given := _versions[name]:
        return given
    build: Any = _registered[name].build
    function = inspect.unwrap(getattr(build, "func", build))  # of a functools.partial
    held = [getattr(build, name, None) for name in ("args", "keywords", "__defaults__", "__kwdefaults__", "__dict__")]
    held += [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    arguments = re.sub(r" at 0x[0-9a-fA-F]+", "", repr([value for value in held if value]))
    for source in (inspect.getmodule(function), function, type(function)):
        with contextlib.suppress(OSError, TypeError):
            text = arguments + inspect.getsource(source)  # type: ignore[arg-type]
            return f"source {hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return "unversioned"


def _provided() -> list[Provided]:
    here = [Provided(spec, THIS_PROCESS, _version(name)) for name, spec in _registered.items()]
    others = [item for item in collect(_HOOK) if item.record.name not in _registered]
    return sorted(here + others, key=lambda item: item.record.name)
