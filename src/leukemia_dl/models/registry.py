"""The registered backbones: the built-in ones, those of installed plugins, and those registered in this process."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import re
from typing import TYPE_CHECKING, Any

from leukemia_dl.errors import PluginError, unknown_name_error
from leukemia_dl.models.spec import BackboneSpec
from leukemia_dl.plugins import DISTRIBUTION, Provided, add_registry, collect, problems_with

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "THIS_PROCESS", "backbone_table", "find_backbone", "get_backbone", "list_backbones", "names_of",
    "register_backbone", "register_layers",
]  # fmt: skip

THIS_PROCESS = "this process"
"""The plugin of backbones that a script or notebook has registered."""
_HOOK = "leukemia_dl_backbones"
_registered: dict[str, BackboneSpec] = {}
_versions: dict[str, str] = {}
add_registry(_HOOK, BackboneSpec, ["leukemia_dl.models.cnn", "leukemia_dl.models.applications"])


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
        raise PluginError(f"register_backbone takes a leukemia_dl.BackboneSpec. Received: {spec!r}.")
    taken = {item.record.name: item for item in _provided()}
    if spec.name in taken and not (replace and spec.name in _registered):
        item = taken[spec.name]
        way_out = "pass replace=True" if spec.name in _registered else "choose another name"
        raise PluginError(f"{spec.name!r} is provided by {item.plugin} {item.version}: {way_out}.")
    _registered[spec.name], _versions[spec.name] = spec, version or ""
    return spec


def names_of(backbones: Any) -> Any:
    """Register the specs in a list of names and specs, and return all names; PluginError for any other item."""
    if not isinstance(backbones, (list, tuple)):
        return backbones
    for item in backbones:
        if isinstance(item, BackboneSpec) and all(item != known.record for known in _provided()):
            register_backbone(item, replace=True)
        elif not isinstance(item, (str, BackboneSpec)):
            raise PluginError(
                f"backbones must be names or BackboneSpec objects. Received: {type(item).__name__}. For a Keras model "
                "pass BackboneSpec(name=..., build=f(inputs, weights), scaling=..., native_size=..., min_size=...)."
            )
    return [getattr(item, "name", item) for item in backbones]


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
    error = ""
    try:
        for item in _provided():
            if (item.record.name, item.plugin) == (name, plugin):
                item.record.build(keras.Input((item.record.min_size, item.record.min_size, 3)), None)
                return ""
    except Exception as raised:
        error = f" Its builder raised {type(raised).__name__}: {raised}"
    way = "register it first" if plugin == THIS_PROCESS else f"install {plugin} {record.get('plugin_version')}"
    return f"If it has layers of its backbone {name!r}, {way}.{error}"


def list_backbones() -> list[str]:
    """Return the names of all backbones, sorted."""
    return [item.record.name for item in _provided()]


def backbone_table() -> pd.DataFrame:
    """Return a row per backbone, sorted by its name.

    Columns: `backbone, title, parameters, native_size, min_size` (sides in pixels), `scaling, weights, licence,
    reference`, and the `plugin` that provides it with its `version`.
    """
    import pandas as pd

    fields = ["title", "parameters", "native_size", "min_size", "scaling", "weights", "licence", "reference"]
    rows = [
        [item.record.name, *(getattr(item.record, name) for name in fields), item.plugin, item.version]
        for item in _provided()
    ]
    table = pd.DataFrame(rows, columns=["backbone", *fields, "plugin", "version"])
    table["weights"] = table["weights"].map(", ".join)
    return table.astype({"parameters": "Int64"})


def _version(name: str) -> str:
    """Return the version given to `register_backbone`, or a digest of the source that defines the builder."""
    if _versions.get(name):
        return _versions[name]
    build: Any = _registered[name].build
    function = inspect.unwrap(getattr(build, "func", build))
    names = ("args", "keywords", "__defaults__", "__kwdefaults__", "__dict__")
    held = [value for name in names if (value := getattr(build, name, None))]
    values = repr([*held, *(cell.cell_contents for cell in getattr(build, "__closure__", None) or ())])
    for source in (inspect.getmodule(function), function, type(function)):
        with contextlib.suppress(OSError, TypeError):
            text = re.sub(r" at 0x[0-9a-fA-F]+", "", values) + inspect.getsource(source)  # type: ignore[arg-type]
            return f"source {hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return "unversioned"


def _provided() -> list[Provided]:
    here = [Provided(spec, THIS_PROCESS, _version(name)) for name, spec in _registered.items()]
    others = [item for item in collect(_HOOK) if item.record.name not in _registered]
    return sorted(here + others, key=lambda item: item.record.name)
