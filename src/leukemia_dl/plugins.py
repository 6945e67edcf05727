"""Plugins: modules named by entry points of the group `leukemia_dl`, with one or two functions marked `@hookimpl`.

Each is loaded and called by itself: one that fails is a warning and a row of `plugin_problems()`, and hides no other.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import pluggy

from leukemia_dl.errors import PluginError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Provided", "collect", "forget", "hookimpl", "installed_version", "plugin_problems", "problems_with"]

PROJECT, DISTRIBUTION = "leukemia_dl", "leukemia-dl"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plugin's function as one of the hooks `leukemia_dl_backbones` and `leukemia_dl_datasets`."""
_log = logging.getLogger(__name__)
_PATIENCE_SECONDS = 5.0


class HookSpecifications:
    """The hooks that a plugin may implement."""

    @hookspec
    def leukemia_dl_backbones(self) -> Iterable[Any]:
        """Yield one `leukemia_dl.BackboneSpec` per backbone. Import keras inside the builder, not before."""
        return ()

    @hookspec
    def leukemia_dl_datasets(self) -> Iterable[Any]:
        """Yield one `leukemia_dl.DatasetSource` per data set that can be loaded by name."""
        return ()


class Origin(NamedTuple):
    """The plugin of a record, under which it is registered: distribution, version and entry point."""

    plugin: str
    version: str
    entry_point: str


class Provided(NamedTuple):
    """A record with the distribution that provides it."""

    record: Any
    plugin: str
    version: str


_registries: dict[str, tuple[type, Sequence[str]]] = {}  # hook: class of its records, names of our own modules
_problems: list[tuple[str, str, str]] = []  # plugin, entry point, problem; in the order of their discovery


def add_registry(hook: str, kind: type, builtin: Sequence[str]) -> None:
    """Register which class of records a hook yields, and the names of the library's own modules that provide it."""
    _registries[hook] = (kind, builtin)


@lru_cache
def collect(hook: str) -> Sequence[Provided]:
    """Return every record that the built-in modules and the installed plugins yield for a hook, sorted by name.

    A built-in record keeps its name if a plugin yields the same name. A name that two plugins yield is left out, since
    the user may mean either. Both cases are problems that name both providers.
    """
    kind, builtin = _registries[hook]
    modules = map(importlib.import_module, builtin)
    own = (DISTRIBUTION, installed_version(DISTRIBUTION))
    found = {record.name: Provided(record, *own) for module in modules for record in getattr(module, hook)()}
    unclear: set[str] = set()
    implementations = getattr(_plugin_manager().hook, hook).get_hookimpls()
    for implementation in sorted(implementations, key=lambda item: item.plugin_name.entry_point):
        origin = implementation.plugin_name
        with _isolated(origin, f"{hook} raised"):
            records = list(implementation.function())
            if wrong := [type(record) for record in records if not isinstance(record, kind)]:
                raise PluginError(f"{hook} must yield leukemia_dl.{kind.__name__} records. Received: {wrong[0]!r}.")
            for record in records:
                first = found.setdefault(record.name, Provided(record, origin.plugin, origin.version))
                if first.record is not record:
                    unclear |= {record.name} if first.plugin != DISTRIBUTION else set()
                    _report(origin, _clash(hook, first))
    return tuple(found[name] for name in sorted(set(found) - unclear))


def plugin_problems() -> pd.DataFrame:
    """Return a row per plugin, or hook of one, that could not be used: plugin, entry_point, problem (all str).

    Every hook is called for it: one that raises, yields something else, or a name that is taken, has a row too.
    """
    import pandas as pd

    for hook in sorted(_registries):
        collect(hook)
    return pd.DataFrame(_problems, columns=["plugin", "entry_point", "problem"], dtype="str")


def problems_with(name: str) -> str:
    """Return a hint for an unknown `name`: the problems with this name, else the plugins with problems; or ""."""
    about = [f"{plugin} {problem}" for plugin, _, problem in _problems if repr(name) in problem]
    failed = ", ".join(sorted({plugin for plugin, _, _ in _problems}))
    return " ".join(about) or (f"Plugins with problems (see leukemia-dl doctor): {failed}." if failed else "")


def forget() -> None:
    """Forget what was loaded, so that the next look-up sees plugins installed since."""
    _plugin_manager.cache_clear()
    collect.cache_clear()
    _problems.clear()


def installed_version(distribution: str) -> str:
    """Return the version of an installed distribution, "unknown" if it goes by another name."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@lru_cache
def _plugin_manager() -> pluggy.PluginManager:
    """Return a manager of the plugins that load and implement known hooks."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecifications)
    if os.environ.get("LEUKEMIA_DL_DISABLE_PLUGINS", "") in ("", "0"):
        for point in sorted(importlib.metadata.entry_points(group=PROJECT)):
            distribution: Any = point.dist
            origin = Origin(distribution.name, distribution.version, point.name)
            with _isolated(origin, "could not be loaded:"):
                _register(manager, point.load(), origin)
    return manager


def _register(manager: pluggy.PluginManager, module: Any, origin: Origin) -> None:
    """Register a plugin, or raise PluginError if a hook has an unknown name or parameter, or there is none."""
    try:
        manager.register(module, name=origin)  # type: ignore[arg-type] # any hashable name will do
        manager.check_pending()
        if not manager.get_hookcallers(module):
            raise PluginError("it has no function marked with leukemia_dl.hookimpl.")
    except (pluggy.PluginValidationError, PluginError) as error:
        manager.unregister(name=origin)  # type: ignore[arg-type]
        known = ", ".join(name for name in vars(HookSpecifications) if name.startswith(PROJECT))
        raise PluginError(f"{' '.join(str(error).split())} Known hooks: {known}.") from error


@contextlib.contextmanager
def _isolated(origin: Origin, failed: str) -> Iterator[None]:
    """Run code of a plugin: errors and exits are recorded, prints go to stderr, and one that hangs is named."""
    text = "Plugin %s (entry point %s) has been loading for %g s. LEUKEMIA_DL_DISABLE_PLUGINS=1 leaves plugins out."
    values = (text, origin.plugin, origin.entry_point, _PATIENCE_SECONDS)
    timer = threading.Timer(_PATIENCE_SECONDS, _log.warning, values)
    timer.daemon = True
    timer.start()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        _report(origin, f"{failed} {type(error).__name__}: {error}")
    finally:
        timer.cancel()


def _clash(hook: str, first: Provided) -> str:
    used = f"The one of {DISTRIBUTION} is used" if first.plugin == DISTRIBUTION else "Neither is used"
    return (
        f"provides {first.record.name!r} ({hook}), as {first.plugin} {first.version} does. {used}: uninstall one of "
        "them, or have its author choose another name."
    )


def _report(origin: Origin, problem: str) -> None:
    _problems.append((origin.plugin, origin.entry_point, problem))
    _log.warning("Plugin %s (entry point %s) %s", origin.plugin, origin.entry_point, problem)
