"""The names that a shell completes: those of the registries, so that plugins' are among them."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["backbones", "baselines", "datasets", "devices", "executors", "metrics", "protocols", "recipes", "stains"]

EXECUTORS = ("auto", "in-process", "processes", "ray")


def _started(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _in_list(names: Iterable[str], incomplete: str) -> list[str]:
    """Complete the last of several names separated by commas, with none of them twice."""
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    return [before + comma + name for name in names if name.startswith(last) and name not in given]


def datasets(incomplete: str) -> list[str]:
    """Complete the name of a data set."""
    from leukemia_dl.datasets import list_datasets

    return _started(list_datasets(), incomplete)


def backbones(incomplete: str) -> list[str]:
    """Complete the last of a list of backbones."""
    from leukemia_dl.models.registry import list_backbones

    return _in_list(list_backbones(), incomplete)


def recipes(incomplete: str) -> list[str]:
    """Complete the name of a preset."""
    from leukemia_dl.training.presets import PRESETS

    return _started(PRESETS, incomplete)


def protocols(incomplete: str) -> list[str]:
    """Complete the last of a list of protocols."""
    from leukemia_dl.datasets.protocols import PROTOCOLS

    return _in_list(PROTOCOLS, incomplete)


def baselines(incomplete: str) -> list[str]:
    """Complete the last of a list of floors."""
    from leukemia_dl.benchmark.baselines import BASELINES

    return _in_list(BASELINES, incomplete)


def metrics(incomplete: str) -> list[str]:
    """Complete the name of a metric."""
    from leukemia_dl.evaluation.metrics import METRICS

    return _started(METRICS, incomplete)


def stains(incomplete: str) -> list[str]:
    """Complete the name of a stain normalisation."""
    return _started(("reinhard", "macenko"), incomplete)


def devices(incomplete: str) -> list[str]:
    """Complete the name of a device."""
    return _started(("auto", "cpu", "gpu", "gpu:0", "gpu:1"), incomplete)


def executors(incomplete: str) -> list[str]:
    """Complete the name of an executor."""
    return _started(EXECUTORS, incomplete)
