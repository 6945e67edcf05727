"""Plugins: modules named by entry points of the group `leukemia_dl`, each isolated from the others and from us."""

import contextlib
import importlib.metadata
import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import pandas as pd
import pluggy

from leukemia_dl.errors import PluginError

__all__ = ["hookimpl", "plugin_problems"]

PROJECT, DISTRIBUTION = "leukemia_dl", "leukemia-dl"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plugin's function as one of the hooks `leukemia_dl_backbones` and `leukemia_dl_datasets`."""
_PATIENCE_SECONDS = 5.0
_log = logging.getLogger(__name__)


class HookSpecifications:
    """The hooks that a plugin may implement."""

    @hookspec
    def leukemia_dl_backbones(self) -> Iterable[Any]:
        """Yield one `leukemia_dl.BackboneSpec` per Keras net, and one `EncoderSpec` per other encoder.

        Import keras, torch and the like inside the builder, not before.
        """
        return ()

    @hookspec
    def leukemia_dl_datasets(self) -> Iterable[Any]:
        """Yield one `leukemia_dl.DatasetSource` per data set that can be loaded by name."""
        return ()


class Provided(NamedTuple):
    """A record with the distribution that provides it."""

    record: Any
    plugin: str
    version: str


registries: dict[str, tuple[tuple[type, ...], Sequence[Any]]] = {}  # hook: classes of its records, the own records
_problems: list[tuple[str, str, str]] = []  # plugin, entry point, problem; in the order of their discovery


@lru_cache
def collect(hook: str) -> Sequence[Provided]:
    """Return the records of a hook, sorted by name; a built-in one keeps its name, one of two plugins is left out."""
    kinds, builtin = registries[hook]
    own = (DISTRIBUTION, installed_version(DISTRIBUTION))
    found = {record.name: Provided(record, *own) for record in builtin}
    unclear: set[str] = set()
    implementations = getattr(_plugin_manager().hook, hook).get_hookimpls()
    for implementation in sorted(implementations, key=lambda item: item.plugin_name.name):
        point = implementation.plugin_name
        with _isolated(point, f"{hook} raised"):
            records = list(implementation.function())
            if wrong := [type(record) for record in records if not isinstance(record, kinds)]:
                wanted = " or ".join(f"leukemia_dl.{kind.__name__}" for kind in kinds)
                raise PluginError(f"{hook} must yield {wanted} records. Received: {wrong[0]!r}.")
            for record in records:
                first = found.setdefault(record.name, Provided(record, point.dist.name, point.dist.version))
                if first.record is not record:
                    built_in = first.plugin == DISTRIBUTION
                    unclear |= set() if built_in else {record.name}
                    used = f"The one of {DISTRIBUTION} is used" if built_in else "Neither is used"
                    problem = f"provides {record.name!r} ({hook}), as {first.plugin} {first.version} does. {used}"
                    _report(point, f"{problem}: uninstall one of them, or have its author choose another name.")
    return tuple(found[name] for name in sorted(set(found) - unclear))


def plugin_problems() -> pd.DataFrame:
    """Return a row per plugin, or hook of one, that could not be used: plugin, entry_point, problem (all str)."""
    for hook in sorted(registries):
        collect(hook)
    return pd.DataFrame(_problems, columns=["plugin", "entry_point", "problem"], dtype="str")


def problem_hint() -> str:
    """Return a hint for an unknown name."""
    return " ".join(f"Plugin {plugin} {problem}" for plugin, _, problem in _problems)


def forget() -> None:
    """Forget the loaded plugins, so that the next look-up sees new ones."""
    _plugin_manager.cache_clear()
    collect.cache_clear()
    _problems.clear()


@lru_cache
def installed_version(distribution: str) -> str:
    """Return the version of an installed distribution, "unknown" if it goes by another name."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@lru_cache
def _plugin_manager() -> pluggy.PluginManager:
    """Return a manager of the plugins that load and implement known hooks, each under its entry point."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecifications)
    disabled = os.environ.get("LEUKEMIA_DL_DISABLE_PLUGINS", "") not in ("", "0")
    for point in () if disabled else sorted(importlib.metadata.entry_points(group=PROJECT)):
        with _isolated(point, "could not be loaded:"):
            name: Any = point  # pluggy asks for a text, and any value that can be hashed will do
            try:
                manager.register(point.load(), name)
                manager.check_pending()
                if not manager.get_hookcallers(manager.get_plugin(name)):
                    raise PluginError("it has no function marked with leukemia_dl.hookimpl.")
            except (pluggy.PluginValidationError, PluginError) as error:
                manager.unregister(name=name)
                known = ", ".join(name for name in vars(HookSpecifications) if name.startswith(PROJECT))
                raise PluginError(f"{' '.join(str(error).split())} Known hooks: {known}.") from error
    return manager


@contextlib.contextmanager
def _isolated(point: Any, failed: str) -> Iterator[None]:
    """Run code of a plugin: errors and exits are recorded, prints go to stderr, and one that hangs is named."""
    text = "Plugin %s (entry point %s) has been loading for %g s. LEUKEMIA_DL_DISABLE_PLUGINS=1 leaves plugins out."
    timer = threading.Timer(_PATIENCE_SECONDS, _log.warning, (text, point.dist.name, point.name, _PATIENCE_SECONDS))
    timer.daemon = True
    timer.start()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # such as SystemExit
        _report(point, f"{failed} {type(error).__name__}: {error}")
    finally:
        timer.cancel()


def _report(point: Any, problem: str) -> None:
    _problems.append((point.dist.name, point.name, problem))
    _log.warning("Plugin %s (entry point %s) %s", *_problems[-1])
