"""The backbones that there are: the built-in ones, installed plugins, and those registered in this process."""

from __future__ import annotations

import hashlib
import inspect
import re
from typing import TYPE_CHECKING, Any

from leukemia_dl.errors import PluginError, unknown_name_error
from leukemia_dl.models.spec import BackboneSpec
from leukemia_dl.plugins import DISTRIBUTION, Provided, collect, problems_with

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "THIS_PROCESS", "backbone_table", "find_backbone", "get_backbone", "list_backbones", "names_of",
    "register_backbone", "register_layers",
]  # fmt: skip

BUILTIN = tuple(f"leukemia_dl.models.builtin.{name}" for name in ("cnn", "keras_nets", "published_cnn"))
THIS_PROCESS = "this process"
"""The plugin of backbones that a script or notebook has registered."""
_registered: dict[str, BackboneSpec] = {}


def register_backbone(spec: BackboneSpec, *, replace: bool = False) -> BackboneSpec:
    """Make a backbone known in this process, and return its record: for a script or a notebook.

    A package uses an entry point instead.

    Args:
        spec: The record.
        replace: True to register the same name again, as when a notebook cell is run twice.

    Raises:
        PluginError: If it is no BackboneSpec, or the name is taken.
    """
    if not isinstance(spec, BackboneSpec):
        raise PluginError(f"register_backbone takes a leukemia_dl.BackboneSpec. Received: {spec!r}.")
    taken = {item.record.name: item for item in _provided()}
    if spec.name in taken and not (replace and spec.name in _registered):
        item = taken[spec.name]
        way_out = "pass replace=True" if spec.name in _registered else "choose another name"
        raise PluginError(f"{spec.name!r} is provided by {item.plugin} {item.version}: {way_out}.")
    _registered[spec.name] = spec
    return spec


def names_of(backbones: Any) -> Any:
    """Register the specs in a list of names and specs, and return all names; PluginError for any other item."""
    for item in backbones if isinstance(backbones, (list, tuple)) else ():
        if isinstance(item, BackboneSpec) and all(item != known.record for known in _provided()):
            register_backbone(item, replace=True)
        elif not isinstance(item, (str, BackboneSpec)):
            raise PluginError(
                f"backbones must be names or BackboneSpec objects. Received: {type(item).__name__}. For a Keras model "
                "pass BackboneSpec(name=..., build=f(inputs, weights), scaling=..., native_size=..., min_size=...)."
            )
    return [getattr(item, "name", item) for item in backbones] if isinstance(backbones, (list, tuple)) else backbones


def find_backbone(name: str) -> Provided:
    """Return the record with the plugin that it comes from.

    Raises:
        UnknownNameError: If there is none; it suggests near names and mentions plugins that failed to load.
    """
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


def register_layers(record: Any) -> str:
    """Build the backbone that a trial's `record` names, so that Keras knows the layers of its plugin.

    Return how to get the backbone if it is missing, or "".
    """
    import keras

    name, plugin = (record.get(key) if isinstance(record, dict) else None for key in ("backbone", "plugin"))
    if plugin in (None, DISTRIBUTION):
        return ""
    try:
        found = next(item.record for item in _provided() if (item.record.name, item.plugin) == (name, plugin))
        found.build(keras.Input((found.min_size, found.min_size, 3)), None)
    except Exception as error:
        way = "register it first" if plugin == THIS_PROCESS else f"install {plugin} {record.get('plugin_version')}"
        said = "" if isinstance(error, StopIteration) else f" Its builder raised {type(error).__name__}: {error}"
        return f"If it has layers of its backbone {name!r}, {way}.{said}"
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

    rows = [
        {"backbone": item.record.name}
        | {name: getattr(item.record, name) for name in ("title", "parameters", "native_size", "min_size", "scaling")}
        | {"weights": ", ".join(item.record.weights)}
        | {"licence": item.record.licence, "reference": item.record.reference}
        | {"plugin": item.plugin, "version": item.version}
        for item in _provided()
    ]
    return pd.DataFrame(rows).astype({"parameters": "Int64"})


def _version(spec: BackboneSpec) -> str:
    """Return a version for a backbone that was registered without one: a digest of its builder's file and values.

    Values are the arguments of a partial, the defaults and what a closure or an object holds, by their `repr`.
    """
    build: Any = spec.build
    values = [getattr(build, name, None) for name in ("args", "keywords", "__defaults__", "__kwdefaults__", "__dict__")]
    values += [cell.cell_contents for cell in getattr(build, "__closure__", None) or ()]
    function = inspect.unwrap(getattr(build, "func", build))
    try:
        source = inspect.getsource(inspect.getmodule(function) or type(function))
    except (OSError, TypeError):
        return "unversioned"
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", f"{function!r} {values!r} {source}")
    return f"source {hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _provided() -> list[Provided]:
    here = [Provided(spec, THIS_PROCESS, _version(spec)) for spec in _registered.values()]
    found = [
        item for item in collect("leukemia_dl_backbones", BackboneSpec, BUILTIN) if item.record.name not in _registered
    ]
    return sorted(found + here, key=lambda item: item.record.name)
