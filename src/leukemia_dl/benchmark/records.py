"""Build the record of a trial: its row before it runs, its scores, or its failure, and where and when it ran."""

from __future__ import annotations

import platform
import re
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import replace
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.benchmark.frames import metrics_of
from leukemia_dl.benchmark.inputs import Samples
from leukemia_dl.benchmark.plan import PlannedTrial
from leukemia_dl.benchmark.trial import Record
from leukemia_dl.datasets import Split
from leukemia_dl.evaluation.calibration import choose_temperature
from leukemia_dl.plugins import installed_version

__all__ = ["blank_record", "environment", "failed_record", "joined_flags", "scored_record", "temperature_of_val"]


def blank_record(planned: PlannedTrial, samples: Samples) -> Record:
    """Return the record of a trial before it runs."""
    trial, split, recipe = planned.trial, planned.split, planned.recipe
    predict = np.concatenate([split.val, split.test])
    sides = np.array(["val"] * len(split.val) + ["test"] * len(split.test), dtype=np.str_)
    kept = planned.pipeline is None or planned.pipeline.keeps_scale
    row: dict[str, Any] = {
        "dataset": samples.name,
        "synthetic": samples.synthetic,
        "protocol": split.protocol,
        "fold": split.fold,
        "seed": trial.seed,
        "recipe": recipe.name if recipe else None,
        "image_size": recipe.image_size if recipe else None,
        "epochs": recipe.total_epochs if recipe else None,
        "batch_size": recipe.batch_size if recipe else None,
        "weights": (trial.weights or "random") if recipe else None,
        "tta": "none" if recipe else None,
    }
    for side in ("train", "val", "test"):
        index = getattr(split, side)
        groups = samples.groups_of(index)
        row |= {f"n_{side}": len(index), f"groups_{side}": None if groups is None else len(np.unique(groups))}
    row |= {"dropped": split.dropped, **{f"leaked_{what}": count for what, count in split.leaked.items()}}
    row["guarantees"] = "; ".join(sorted(split.guarantees))
    row["flags"] = joined_flags([*split.flags, "" if kept else "cells are cropped to: their size is not seen"])
    row |= dict.fromkeys(("parameters", "backend", "device", "precision", "threads"))
    row |= {"deterministic": True, "plugin": trial.plugin}
    row["plugin_version"] = trial.plugin_version or installed_version(trial.plugin)
    return Record(trial, "ok", row=row, sides=sides, samples=samples.ids[predict], labels=samples.labels[predict])


def scored_record(
    record: Record,
    probabilities: NDArray[np.float64],
    views: NDArray[np.float64] | None,
    fitted: tuple[float, str] | None,
) -> Record:
    """Add predictions and their metrics to a record; `fitted` is a temperature and why it is 1, or None for none."""
    temperature, why = fitted or (None, "")
    flags = joined_flags([record.row["flags"], why and f"temperature stays 1: {why}"])
    scores = metrics_of(record.labels, record.sides, probabilities, views, temperature)
    return replace(record, row={**record.row, "flags": flags}, probabilities=probabilities, **scores)


def temperature_of_val(
    blank: Record, split: Split, samples: Samples, probabilities: NDArray[np.float64]
) -> tuple[float, str] | None:
    """Return the temperature that fits the val side best; None if the val side is the test side."""
    if np.intersect1d(split.val, split.test).size:
        return None
    val = blank.sides == "val"
    return choose_temperature(blank.labels[val], probabilities[val], samples.groups_of(split.val))


def failed_record(blank: Record, error: BaseException, started: float, here: bool = True) -> Record:
    """Return the record of a trial that raised, `here` or in another process whose memory is not known."""
    trace = "".join(traceback.format_exception(error))
    return replace(
        blank,
        status="failed",
        timings=environment(started) | ({} if here else {"peak_memory_gib": None}),
        exception=type(error).__name__,
        message=" ".join(_printable(str(error)).split()),
        traceback=_printable(trace),
    )


def _printable(text: str) -> str:
    """Return a text that every file and terminal takes: no colours, and halves of characters written as such."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).encode("utf-8", "backslashreplace").decode("utf-8")


def joined_flags(parts: Iterable[str]) -> str:
    """Return flags as one text, without empty ones."""
    return "; ".join(part for part in parts if part)


def environment(started: float) -> dict[str, Any]:
    """Return the columns of `timings.csv` of a trial that ends now and began at `started` by `time.perf_counter()`."""
    versions = {}
    for name in ("leukemia-dl", "keras", "tensorflow", "jax", "torch", "numpy", "scikit-learn"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "seconds": time.perf_counter() - started,
        "peak_memory_gib": _peak_memory(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": "; ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _peak_memory() -> float | None:
    """Return the peak of this process so far in GiB, None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
