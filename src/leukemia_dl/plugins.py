"""Hooks for plugins, and their loading, each isolated from the others.

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

A plugin that fails is a warning and a row of `plugin_problems()`, and does not hide the others.
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
    "DISTRIBUTION", "PROJECT", "Provided", "add_registry", "collect", "forget", "hookimpl", "hookspec",
    "installed_version", "plugin_problems", "problems_with",
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


@dataclass(frozen=True)
class Provided:
    """A record that a plugin yielded, with the plugin's distribution and version; our own have no entry point."""

    record: Any
    plugin: str
    version: str
    entry_point: str = ""


class _Origin(NamedTuple):
    """The name under which a plugin is registered."""

    entry_point: str
    distribution: str
    version: str


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
    found, version = list[Provided](), installed_version(DISTRIBUTION)
    for name in builtin:  # an error in one of these is raised: it is a bug
        records = getattr(importlib.import_module(name), hook)()
        found += [Provided(record, DISTRIBUTION, version) for record in records]
    implementations = getattr(_plugin_manager().hook, hook).get_hookimpls()
    for origin, function in sorted((impl.plugin_name, impl.function) for impl in implementations):
        with _isolated(origin, f"{hook} raised"):
            records = list(function())
            for record in records:
                if not isinstance(record, kind):
                    yields = f"{hook} must yield leukemia_dl.{kind.__name__} records"
                    raise PluginError(f"{yields}. Received: {type(record)!r}.")
            found += [Provided(record, origin.distribution, origin.version, origin.entry_point) for record in records]
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
        names = (point.dist.name, point.dist.version) if point.dist else ("unknown", "unknown")
        origin = _Origin(point.name, *names)
        with _isolated(origin, "could not be loaded:"):
            _register(manager, point.load(), origin)
    return manager


def _register(manager: pluggy.PluginManager, module: Any, origin: _Origin) -> None:
    """Register a plugin, or raise PluginError if a hook has an unknown name or parameter, or there is none."""
    try:
        manager.register(module, name=origin)  # type: ignore[arg-type]
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        manager.unregister(module)
        known = ", ".join(name for name in vars(HookSpecifications) if name.startswith(PROJECT))
        raise PluginError(f"{error}. Known hooks: {known}.") from error
    if not manager.get_hookcallers(module):
        manager.unregister(module)
        raise PluginError("it has no function marked with leukemia_dl.hookimpl.")


@contextlib.contextmanager
def _isolated(origin: _Origin, failed: str) -> Iterator[None]:
    """Run code of a plugin: errors are recorded, prints go to stderr, and it cannot end the process."""
    own = os.getpid()

    def refuse(status: int) -> NoReturn:
        if os.getpid() != own:  # in a child that the plugin forked
            _leave(status)
        raise SystemExit(f"os._exit({status})")

    text = "Plugin %s (entry point %s) has been loading for %g s. LEUKEMIA_DL_DISABLE_PLUGINS=1 leaves plugins out."
    values = (text, origin.distribution, origin.entry_point, _PATIENCE_SECONDS)
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
        _report(origin.distribution, origin.entry_point, f"{failed} {type(error).__name__}: {error}")
    finally:
        os._exit = _leave
        timer.cancel()


def _without_clashes(hook: str, provided: Iterable[Provided]) -> Sequence[Provided]:
    first: dict[str, Provided] = {}
    unclear = set()
    for item in provided:
        name = item.record.name
        other = first.setdefault(name, item)
        if other is item:
            continue
        used = "Neither is used" if other.entry_point else f"The one of {DISTRIBUTION} is used"
        unclear |= {name} if other.entry_point else set()
        clash = f"provides {name!r} ({hook}), as {other.plugin} {other.version} does. {used}: uninstall one of them, or"
        _report(item.plugin, item.entry_point, f"{clash} have its author choose another name.")
    return tuple(first[name] for name in sorted(set(first) - unclear))


def _report(plugin: str, entry_point: str, problem: str) -> None:
    if (plugin, entry_point, problem) not in _problems:
        _problems[plugin, entry_point, problem] = None
        _log.warning("Plugin %s (entry point %s) %s", plugin, entry_point, problem)
