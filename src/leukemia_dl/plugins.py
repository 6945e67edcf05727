"""Hooks for plugins, and the loading of plugins: each is isolated, so that a broken one hides no other.

A plugin is a module, named by an entry point of the group `leukemia_dl`, with one or two functions marked `@hookimpl`;
see docs/guides/plugins.md. A plugin that fails is a warning and a row of `plugin_problems()`.
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
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import pluggy

from leukemia_dl.errors import PluginError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "PROJECT", "Provided", "collect", "forget", "hookimpl", "hookspec", "installed_version", "plugin_problems",
    "problems_with",
]  # fmt: skip

PROJECT = "leukemia_dl"
DISTRIBUTION = "leukemia-dl"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plugin's function as one of the hooks `leukemia_dl_backbones` and `leukemia_dl_datasets`."""
_log = logging.getLogger(__name__)
_PATIENCE_SECONDS = 5.0
_leave = os._exit


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
    """The plugin of a record, under which it is registered: its distribution; our own have no entry point."""

    plugin: str
    version: str
    entry_point: str = ""

    def __repr__(self) -> str:  # as pluggy's messages name it
        return f"{self.plugin} {self.version}"


@dataclass(frozen=True)
class Provided:
    """A record that a plugin yielded, with the plugin's distribution and version."""

    record: Any
    plugin: str
    version: str
    entry_point: str = ""


_registries: dict[str, tuple[type, Sequence[str]]] = {}  # hook: class of its records, names of our own modules
_problems: dict[tuple[str, str, str], None] = {}  # plugin, entry point, problem; in the order of their discovery


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
    found, own = list[Provided](), (DISTRIBUTION, installed_version(DISTRIBUTION))
    for name in builtin:  # an error in one of these is raised: it is a bug
        found += [Provided(record, *own) for record in getattr(importlib.import_module(name), hook)()]
    implementations = getattr(_plugin_manager().hook, hook).get_hookimpls()
    for implementation in sorted(implementations, key=lambda item: item.plugin_name.entry_point):
        with _isolated(implementation.plugin_name, f"{hook} raised"):
            records = list(implementation.function())
            if wrong := [type(record) for record in records if not isinstance(record, kind)]:
                raise PluginError(f"{hook} must yield leukemia_dl.{kind.__name__} records. Received: {wrong[0]!r}.")
            found += [Provided(record, *implementation.plugin_name) for record in records]
    return _without_clashes(hook, found)


def plugin_problems() -> pd.DataFrame:
    """Return a row per plugin, or hook of one, that could not be used: plugin, entry_point, problem (all str).

    Every hook is called for it: one that raises, yields something else, or a name that is taken, has a row too.
    """
    import pandas as pd

    for hook in sorted(_registries):
        collect(hook)
    return pd.DataFrame(list(_problems), columns=["plugin", "entry_point", "problem"], dtype="str")


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
    """Return a manager of the third-party plugins that load and implement known hooks, in the order of their names."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecifications)
    if os.environ.get("LEUKEMIA_DL_DISABLE_PLUGINS", "") not in ("", "0"):
        return manager
    for point in sorted(importlib.metadata.entry_points(group=PROJECT), key=lambda point: (point.name, point.value)):
        origin = Origin(*((point.dist.name, point.dist.version) if point.dist else ("unknown", "unknown")), point.name)
        with _isolated(origin, "could not be loaded:"):
            _register(manager, point.load(), origin)
    return manager


def _register(manager: pluggy.PluginManager, module: Any, origin: Origin) -> None:
    """Register a plugin, or raise PluginError if a hook has an unknown name or parameter, or there is none."""
    try:
        manager.register(module, name=origin)  # type: ignore[arg-type] # any hashable name will do
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        manager.unregister(name=origin)  # type: ignore[arg-type]
        known = ", ".join(name for name in vars(HookSpecifications) if name.startswith(PROJECT))
        raise PluginError(f"{error}. Known hooks: {known}.") from error
    if not manager.get_hookcallers(module):
        manager.unregister(module)
        raise PluginError("it has no function marked with leukemia_dl.hookimpl.")


@contextlib.contextmanager
def _isolated(origin: Origin, failed: str) -> Iterator[None]:
    """Run code of a plugin: errors are recorded, prints go to stderr, and it cannot end the process."""
    own = os.getpid()

    def refuse(status: int) -> NoReturn:
        if os.getpid() != own:  # in a child that the plugin forked
            _leave(status)
        raise SystemExit(f"os._exit({status})")

    text = "Plugin %s (entry point %s) has been loading for %g s. LEUKEMIA_DL_DISABLE_PLUGINS=1 leaves plugins out."
    values = (text, origin.plugin, origin.entry_point, _PATIENCE_SECONDS)
    timer = threading.Timer(_PATIENCE_SECONDS, _log.warning, values)
    timer.daemon = True
    timer.start()
    try:
        os._exit = refuse
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        _report(origin, f"{failed} {type(error).__name__}: {error}")
    finally:
        os._exit = _leave
        timer.cancel()


def _without_clashes(hook: str, provided: Iterable[Provided]) -> Sequence[Provided]:
    first: dict[str, Provided] = {}
    unclear = set()
    for item in provided:
        other = first.setdefault(item.record.name, item)
        if other is item:
            continue
        used = "Neither is used" if other.entry_point else f"The one of {DISTRIBUTION} is used"
        unclear |= {item.record.name} if other.entry_point else set()
        clash = f"provides {item.record.name!r} ({hook}), as {other.plugin} {other.version} does. {used}:"
        origin = Origin(item.plugin, item.version, item.entry_point)
        _report(origin, f"{clash} uninstall one of them, or have its author choose another name.")
    return tuple(first[name] for name in sorted(set(first) - unclear))


def _report(origin: Origin, problem: str) -> None:
    entry = (origin.plugin, origin.entry_point, problem)
    if entry not in _problems:
        _problems[entry] = None
        _log.warning("Plugin %s (entry point %s) %s", *entry)
