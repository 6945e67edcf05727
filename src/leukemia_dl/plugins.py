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

Each plugin loads on its own: one that fails is a warning and a row of `plugin_problems()`, and does not
hide the others. A warning names a plugin that takes long to load.
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
from typing import TYPE_CHECKING, Any, NoReturn

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

    A built-in record keeps its name if a plugin yields the same name. A name that two plugins yield is left out, since
    the user may mean either. Both cases are problems that name both providers.
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
            with _guarded(plugin.distribution, plugin.entry_point):
                records = list(getattr(plugin.module, hook)())
            for record in records:
                if not isinstance(record, kind):
                    raise PluginError(
                        f"{hook} must yield leukemia_dl.{kind.__name__} records. Received: {type(record)!r}."
                    )
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            _report(plugin.distribution, plugin.entry_point, f"{hook} raised {type(error).__name__}: {error}")
            continue
        provided += [Provided(record, plugin.distribution, plugin.version, plugin.entry_point) for record in records]
    seen: dict[str, Provided] = {}
    unclear = set()
    for item in provided:
        name = item.record.name
        other = seen.setdefault(name, item)
        if other is item:
            continue
        used = f"The one of {DISTRIBUTION} is used" if not other.entry_point else "Neither is used"
        unclear |= {name} if other.entry_point else set()
        clash = f"provides {name!r} ({hook}), as {other.plugin} {other.version} does. {used}: uninstall one of them, or"
        _report(item.plugin, item.entry_point, f"{clash} have its author choose another name.")
    return [seen[name] for name in sorted(set(seen) - unclear)]


def plugin_problems() -> pd.DataFrame:
    """Return a row per plugin, or hook of one, that could not be used: plugin, entry_point, problem (all str).

    Every hook is asked for it: one that raises, yields something else, or a name that is taken, has a row too.
    """
    import pandas as pd

    for registry, listing in _REGISTRIES:
        getattr(importlib.import_module(registry), listing)()
    columns = ["plugin", "entry_point", "problem"]
    return pd.DataFrame([[p.plugin, p.entry_point, p.problem] for p in _problems], columns=columns, dtype="str")


def problems_with(name: str) -> str:
    """Return a hint for an unknown `name`: the problems with this name, else the plugins with problems; or ""."""
    frame = plugin_problems()
    about = frame[frame["problem"].str.contains(repr(name), regex=False)]
    if len(about):
        return " ".join(f"{row.plugin} {row.problem}" for row in about.itertuples())
    failed = ", ".join(sorted(set(frame["plugin"])))
    return f"Plugins with problems (see leukemia-dl doctor): {failed}." if failed else ""


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
            with _guarded(distribution, point.name):
                module = point.load()
            _check_hooks(module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            _report(distribution, point.name, f"could not be loaded: {type(error).__name__}: {error}")
            continue
        found.append(_Plugin(module, distribution, version, point.name))
    return tuple(found)


@contextlib.contextmanager
def _guarded(plugin: str, entry_point: str) -> Iterator[None]:
    """Run code of a plugin: it prints to stderr, is named in a warning if it takes long, and cannot end the process."""

    def refuse(status: int) -> NoReturn:
        if os.getpid() != own:  # in a child that the plugin forked
            _leave(status)
        raise SystemExit(f"os._exit({status})")

    text = "Plugin %s (entry point %s) has been loading for %g s. LEUKEMIA_DL_DISABLE_PLUGINS=1 leaves plugins out."
    timer = threading.Timer(_PATIENCE_SECONDS, _log.warning, (text, plugin, entry_point, _PATIENCE_SECONDS))
    timer.daemon, own = True, os.getpid()
    timer.start()
    try:
        os._exit = refuse
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os._exit = _leave
        timer.cancel()


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


def _report(plugin: str, entry_point: str, problem: str) -> None:
    entry = Problem(plugin, entry_point, problem)
    if entry not in _problems:
        _problems.append(entry)
        _log.warning("Plugin %s (entry point %s) %s", plugin, entry_point, problem)


def installed_version(distribution: str) -> str:
    """Return the version of an installed distribution, "unknown" if it goes by another name."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
