"""Hook specifications and the isolated loading of plugins: both registries (backbones, data sets) use it.

A plugin is a module with one or two functions marked `@hookimpl`, named by an entry point of the group `leukemia_dl`:

    # pyproject.toml
    [project.entry-points.leukemia_dl]
    mynet = "leukemia_dl_mynet"

    # leukemia_dl_mynet.py
    from leukemia_dl import BackboneSpec, hookimpl

    def build(inputs, weights):
        import keras
        return keras.layers.Conv2D(8, 3, activation="relu")(inputs)

    @hookimpl
    def leukemia_dl_backbones():
        yield BackboneSpec(name="mynet", build=build, native_size=64, min_size=8, scaling="unit")

Each plugin loads on its own: one that fails is a warning and a row of `plugin_problems()`, and hides nobody else.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pluggy

from leukemia_dl.errors import PluginError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PROJECT", "Provided", "collect", "forget", "hookimpl", "hookspec", "installed_version", "plugin_problems"]

PROJECT = "leukemia_dl"
DISTRIBUTION = "leukemia-dl"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plugin's function as one of the hooks `leukemia_dl_backbones` and `leukemia_dl_datasets`."""
_log = logging.getLogger(__name__)
# Who asks which hook, and by which function. Named, as plugins are, and not imported: they stand above this module.
_REGISTRIES = (("leukemia_dl.models.registry", "list_backbones"), ("leukemia_dl.datasets.registry", "list_datasets"))


class HookSpecifications:
    """What a plugin may provide."""

    @hookspec
    def leukemia_dl_backbones(self) -> Iterable[Any]:
        """Yield one `leukemia_dl.BackboneSpec` per backbone. Import keras inside the builder, not before."""
        return ()

    @hookspec
    def leukemia_dl_datasets(self) -> Iterable[Any]:
        """Yield one `leukemia_dl.DatasetSource` per data set that can be loaded by name."""
        return ()


@dataclass(frozen=True)
class Provided:
    """A record that a plugin yielded, with the plugin's distribution name and version; "" is our own entry point."""

    record: Any
    plugin: str
    version: str
    entry_point: str = ""


@dataclass(frozen=True)
class Problem:
    """Why a plugin, or one hook of it, was left out."""

    plugin: str
    entry_point: str
    problem: str


@dataclass(frozen=True)
class _Plugin:
    module: Any
    distribution: str
    version: str
    entry_point: str


_problems: list[Problem] = []


def collect(hook: str, kind: type, builtin: Sequence[str] = ()) -> list[Provided]:
    """Return every record that the built-in modules and the installed plugins yield for a hook, sorted by name.

    Args:
        hook: Name of a method of `HookSpecifications`.
        kind: What a hook must yield; a plugin that yields something else is reported as one with a problem.
        builtin: Module names of our own plugins. An error in one of these is raised: it is a bug.

    Raises:
        PluginError: If two plugins yield the same name; the message names both.
    """
    provided: list[Provided] = []
    for name in builtin:
        module = importlib.import_module(name)
        _check_hooks(module)
        provided += [
            Provided(record, DISTRIBUTION, installed_version(DISTRIBUTION)) for record in getattr(module, hook)()
        ]
    for plugin in _third_party():
        if not hasattr(plugin.module, hook):
            continue
        try:
            with contextlib.redirect_stdout(sys.stderr):  # a table or a list that a program reads is no place for it
                records = list(getattr(plugin.module, hook)())
            for record in records:
                if not isinstance(record, kind):
                    raise PluginError(
                        f"{hook} must yield leukemia_dl.{kind.__name__} records. Received: {type(record)!r}."
                    )
        except (Exception, SystemExit) as error:
            _report(plugin.distribution, plugin.entry_point, f"{hook} raised {type(error).__name__}: {error}")
            continue
        provided += [Provided(record, plugin.distribution, plugin.version, plugin.entry_point) for record in records]
    seen: dict[str, Provided] = {}
    for item in provided:
        other = seen.setdefault(item.record.name, item)
        if other is not item:
            clash = (
                f"Two plugins provide {item.record.name!r} ({hook}): {other.plugin} {other.version} and "
                f"{item.plugin} {item.version}. Uninstall one of them, or have its author choose another name."
            )
            _report(item.plugin, item.entry_point, clash, logging.DEBUG)  # it is raised, which is loud enough
            raise PluginError(clash)
    return [seen[name] for name in sorted(seen)]


def plugin_problems() -> pd.DataFrame:
    """Return a row per plugin, or hook of one, that could not be used: plugin, entry_point, problem (all str).

    Every hook is asked for it: one that raises, yields something else, or a name that is taken, has a row too.
    """
    import pandas as pd

    for registry, listing in _REGISTRIES:
        with contextlib.suppress(PluginError):  # of two with one name: noted where it was raised
            getattr(importlib.import_module(registry), listing)()
    columns = ["plugin", "entry_point", "problem"]
    return pd.DataFrame([[p.plugin, p.entry_point, p.problem] for p in _problems], columns=columns, dtype="str")


def forget() -> None:
    """Forget what was loaded, so that the next look-up sees plugins installed since."""
    _third_party.cache_clear()
    _problems.clear()


@lru_cache(maxsize=1)
def _third_party() -> tuple[_Plugin, ...]:
    """Import every entry point of the group, each in its own `try`."""
    if os.environ.get("LEUKEMIA_DL_DISABLE_PLUGINS", "") not in ("", "0"):
        return ()
    found = []
    for point in sorted(importlib.metadata.entry_points(group=PROJECT), key=lambda p: (p.name, p.value)):
        distribution = point.dist.name if point.dist else "unknown"
        version = point.dist.version if point.dist else "unknown"
        try:
            with contextlib.redirect_stdout(sys.stderr):
                module = point.load()
            _check_hooks(module)
        except (Exception, SystemExit) as error:
            _report(distribution, point.name, f"could not be loaded: {type(error).__name__}: {error}")
            continue
        found.append(_Plugin(module, distribution, version, point.name))
    return tuple(found)


def _check_hooks(module: Any) -> None:
    """Raise if a function marked as a hook has a name or a parameter that no specification has."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecifications)
    try:
        manager.register(module)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        known = [name for name in vars(HookSpecifications) if name.startswith(PROJECT)]
        raise PluginError(f"{error}. Known hooks: {', '.join(known)}.") from error
    if not manager.get_hookcallers(module):
        raise PluginError("it has no function marked with leukemia_dl.hookimpl.")


def _report(plugin: str, entry_point: str, problem: str, level: int = logging.WARNING) -> None:
    entry = Problem(plugin, entry_point, problem)
    if entry not in _problems:
        _problems.append(entry)
        _log.log(level, "Plugin %s (entry point %s) %s", plugin, entry_point, problem)


def installed_version(distribution: str) -> str:
    """Return the version of an installed distribution, "unknown" if it goes by another name."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
