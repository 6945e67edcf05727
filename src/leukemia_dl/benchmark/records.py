"""Build the record of a trial, before it runs, scored or failed, and make frames of many records."""

from __future__ import annotations

import platform
import re
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.benchmark.plan import PlannedTrial, Samples
from leukemia_dl.benchmark.trial import WHOLE_NUMBERS, Record
from leukemia_dl.datasets import Split
from leukemia_dl.evaluation import METRICS, apply_temperature, score
from leukemia_dl.evaluation.calibration import choose_temperature
from leukemia_dl.models.classifier import softmax
from leukemia_dl.plugins import installed_version
from leukemia_dl.text import printable

__all__ = [
    "CALIBRATED", "WATCHED", "blank_record", "environment", "failed_record", "history_frame", "installed_versions",
    "joined_flags", "prediction_frame", "result_frame", "scored_record", "temperature_of_val",
    "timing_frame",
]  # fmt: skip

CALIBRATED = ("temperature", "loss_calibrated", "brier_calibrated", "ece_calibrated")
WATCHED = ("val_accuracy", "val_loss", "val_balanced_accuracy")


def blank_record(planned: PlannedTrial, samples: Samples) -> Record:
    """Return the record of a trial before it runs."""
    trial, split, recipe = planned.trial, planned.split, planned.recipe
    predict = np.concatenate([split.val, split.test])
    sides = np.repeat(np.array(["val", "test"]), [len(split.val), len(split.test)])
    cropped = planned.pipeline is not None and not planned.pipeline.keeps_scale
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
    row["flags"] = joined_flags([*split.flags, "cells are cropped to: their size is not seen" if cropped else ""])
    row |= dict.fromkeys(("parameters", "backend", "device", "precision", "threads"))
    row |= {"deterministic": True, "plugin": trial.plugin}
    row |= {"plugin_version": trial.plugin_version or installed_version(trial.plugin), "changes": planned.changes}
    return Record(trial, "ok", row=row, sides=sides, samples=samples.ids[predict], labels=samples.labels[predict])


def scored_record(
    record: Record,
    probabilities: NDArray[np.float64],
    views: NDArray[np.float64] | None,
    fitted: tuple[float, str] | None,
) -> Record:
    """Add predictions and their metrics to a record.

    `views` are the logits of the eight symmetries (8, n, classes), or None; `fitted` is the temperature that the saved
    net holds, and why it is 1, or None for no calibrated metrics.
    """
    temperature, why = fitted or (None, "")
    flags = joined_flags([record.row["flags"], why and f"temperature stays 1: {why}"])
    calibrated = None if temperature is None else apply_temperature(probabilities, temperature)
    metrics = _metrics(record, probabilities, calibrated, temperature)
    record = replace(record, row={**record.row, "flags": flags}, probabilities=probabilities, metrics=metrics)
    if views is None:
        return record
    averaged = softmax(views).mean(axis=0)
    calibrated = None if temperature is None else softmax(views / temperature).mean(axis=0)
    return replace(record, tta=averaged, metrics_tta=_metrics(record, averaged, calibrated, temperature))


def _metrics(
    record: Record, plain: NDArray[np.float64], calibrated: NDArray[np.float64] | None, temperature: float | None
) -> dict[str, Any]:
    """Return the metrics of the test side, those of the val side that are watched, and calibrated ones if any."""
    test, val = record.sides == "test", record.sides == "val"
    metrics = score(record.labels[test], plain[test])
    watched = score(record.labels[val], plain[val]) if val.any() else {}
    metrics |= {f"val_{name}": value for name, value in watched.items() if f"val_{name}" in WATCHED}
    if calibrated is None:
        return metrics
    after = score(record.labels[test], calibrated[test])
    return (
        metrics
        | {f"{name}_calibrated": after[name] for name in ("loss", "brier", "ece")}
        | {"temperature": temperature}
    )


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
    return replace(
        blank,
        status="failed",
        timings=environment(started) | ({} if here else {"peak_memory_gib": None}),
        exception=type(error).__name__,
        message=" ".join(_plain(str(error)).split()),
        traceback=_plain("".join(traceback.format_exception(error))),
    )


def _plain(text: str) -> str:
    """Return a text without the codes of colours and characters that no file or terminal takes."""
    return printable(re.sub(r"\x1b\[[0-9;]*m", "", text))


def joined_flags(parts: Iterable[str]) -> str:
    """Return flags as one text, without empty ones."""
    return "; ".join(part for part in parts if part)


def environment(started: float) -> dict[str, Any]:
    """Return the columns of `timings.csv` of a trial that ends now and began at `started` by `time.perf_counter()`."""
    return {
        "seconds": time.perf_counter() - started,
        "peak_memory_gib": _peak_memory(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": "; ".join(f"{name} {version}" for name, version in installed_versions().items()),
    }


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that make results, of those that are installed."""
    names = ("leukemia-dl", "keras", "tensorflow", "jax", "torch", "numpy", "scikit-learn")
    versions = {name: installed_version(name) for name in names}
    return {name: version for name, version in versions.items() if version != "unknown"}


def _peak_memory() -> float | None:
    """Return the peak of this process so far in GiB, None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def result_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return a row per record, and one for its averaged predictions: `backbone`, every metric, what was compared."""
    columns = [*METRICS, *CALIBRATED, *WATCHED]
    rows = []
    for record in chain.from_iterable(record.with_tta() for record in records):
        metrics = {name: record.metrics.get(name, float("nan")) for name in columns}
        folder = record.trial.folder
        rows.append(
            {"backbone": record.name, **metrics, "status": record.status, **record.row}
            | {"trial": folder, "exception": record.exception, "message": record.message}
            | {"traceback": f"trials/{folder}/traceback.txt" if record.status == "failed" else ""}
        )
    return _whole(pd.DataFrame(rows, columns=None if rows else ["backbone", *columns, "status"]))


def timing_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return a row per record: seconds, memory, machine and versions."""
    rows = []
    for record in records:
        trial = record.trial
        row = {"backbone": trial.backbone, "fold": trial.fold, "seed": trial.seed}
        rows.append({**row, **record.timings, "trial": trial.folder})
    return _whole(pd.DataFrame(rows))


def history_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return a row per record and epoch."""
    return _concat([_named(record, record.history.copy()) for record in records if len(record.history)])


def prediction_frame(records: Iterable[Record], class_names: Sequence[str], samples: pd.DataFrame) -> pd.DataFrame:
    """Return a row per record with status "ok" and predicted sample, and one per sample of averaged predictions.

    `samples` holds `sample, subject, group, same_cell` of the data set.
    """
    known = samples.set_index("sample")[["subject", "group", "same_cell"]]
    parts = []
    for record in chain.from_iterable(record.with_tta() for record in records):
        if record.status != "ok":
            continue
        part = _named(record, pd.DataFrame({"sample": record.samples.astype(object)}))
        part.insert(2, "kind", record.kind)
        part[["subject", "group", "same_cell"]] = known.loc[part["sample"]].to_numpy()
        part["side"] = record.sides.astype(object)
        part["label"] = [class_names[label] for label in record.labels]
        for position, name in enumerate(class_names):
            part[f"probability_{name}"] = record.probabilities[:, position]
        parts.append(part)
    return _concat(parts)


def _named(record: Record, rows: pd.DataFrame) -> pd.DataFrame:
    """Insert the names of a record's trial before its rows, and return these."""
    trial = record.trial
    names = {"trial": trial.folder, "backbone": record.name, "protocol": trial.protocol}
    for place, (name, value) in enumerate({**names, "fold": trial.fold, "seed": trial.seed}.items()):
        rows.insert(place, name, value)
    return rows


def _concat(parts: list[pd.DataFrame]) -> pd.DataFrame:
    return _whole(pd.concat(parts, ignore_index=True)) if parts else pd.DataFrame()


def _whole(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.astype({name: "Int64" for name in WHOLE_NUMBERS if name in frame})
