"""Record, the result of a trial: made before it runs, scored or failed; and frames of many records."""

from __future__ import annotations

import platform
import re
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.benchmark.plan import PlannedTrial, Trial
from leukemia_dl.datasets import Dataset, Split
from leukemia_dl.errors import DataError
from leukemia_dl.evaluation import METRICS, apply_temperature, score
from leukemia_dl.evaluation.calibration import choose_temperature
from leukemia_dl.models.classifier import softmax
from leukemia_dl.plugins import installed_version
from leukemia_dl.text import printable

Floats = NDArray[np.float64]
CALIBRATED = ("temperature", "loss_calibrated", "brier_calibrated", "ece_calibrated")
WATCHED = ("val_accuracy", "val_loss", "val_balanced_accuracy")
WHOLE_NUMBERS = (  # columns of a row
    "fold", "repeat", "shots", "seed", "image_size", "epochs", "batch_size", "n_train", "n_val", "n_test",
    "groups_train", "groups_val", "groups_test", "dropped", "threads", "leaked_files", "leaked_cells", "leaked_groups",
    "parameters",
)  # fmt: skip
Status = Literal["ok", "failed", "not_applicable"]


@dataclass(frozen=True, eq=False)
class Record:
    """The result of a `trial`.

    Attributes:
        status: "ok"; "failed", with `exception`, `message` and `traceback`; or "not_applicable", a baseline that the
            images do not allow, with a `message`.
        row: Further columns of the result frame, equal between equal runs, unlike `timings`, with machine and versions.
        metrics: By name; empty unless ok.
        history: A row per epoch.
        sides: "val" or "test" per prediction (n,), with `samples`, their ids (n,), and `labels`, class indices (n,).
        probabilities: (n, classes), float64.
        tta: Mean probabilities over the eight symmetries, and `metrics_tta` of these; empty if not asked for.
    """

    trial: Trial
    status: Status
    row: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    timings: Mapping[str, Any] = field(default_factory=dict)
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    sides: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, dtype=np.str_))
    samples: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, dtype=np.str_))
    labels: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    probabilities: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    tta: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    metrics_tta: Mapping[str, float] = field(default_factory=dict)
    exception: str = ""
    message: str = ""
    traceback: str = ""

    def with_tta(self) -> list[Record]:
        """Return this record and, if predictions were averaged, the record of these: a row of its own."""
        if not self.metrics_tta:
            return [self]
        row = {**self.row, "tta": "8 symmetries"}
        return [self, replace(self, row=row, metrics=self.metrics_tta, probabilities=self.tta, metrics_tta={})]

    @property
    def error(self) -> str:
        """Exception and message in one line."""
        return ": ".join(filter(None, (self.exception, self.message)))

    @property
    def kind(self) -> str:
        """Kind in frames: "backbone", "baseline", or "tta" for averaged predictions, which have no rank."""
        return "tta" if self.row.get("tta") == "8 symmetries" else self.trial.kind

    @property
    def name(self) -> str:
        """Name in frames: the backbone's, with a suffix where predictions are averaged."""
        return self.trial.backbone + ("+tta" if self.kind == "tta" else "")


@dataclass(frozen=True, eq=False)
class Samples:
    """The table of a data set as arrays, so that other processes need neither its files nor pandas."""

    name: str  # of the data set
    synthetic: bool  # whether a program drew it
    citation: str
    class_names: tuple[str, ...]  # in label order
    ids: NDArray[np.str_]  # of each row (n,)
    labels: NDArray[np.int64]  # class indices (n,)
    groups: NDArray[np.int64] | None  # a number per group of subjects (n,); None where subjects are not known

    @classmethod
    def of(cls, dataset: Dataset) -> Samples:
        """Return the samples of a data set."""
        table, info = dataset.table, dataset.info
        groups = pd.factorize(table["group"])[0].astype(np.int64) if dataset.has_subjects else None
        ids = table["sample"].to_numpy(dtype=np.str_)
        return cls(info.name, info.synthetic, info.citation, dataset.class_names, ids, dataset.labels, groups)

    def groups_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Return the groups of some rows; None where subjects are not known."""
        return None if self.groups is None else self.groups[rows]


def blank_record(planned: PlannedTrial, samples: Samples) -> Record:
    """Return the record of a trial before it runs."""
    trial, split, recipe = planned.trial, planned.split, planned.recipe
    row: dict[str, Any] = {"dataset": samples.name, "synthetic": samples.synthetic, "protocol": split.protocol}
    row |= {"fold": split.fold, "repeat": split.repeat, "shots": split.shots, "seed": trial.seed}
    row |= {"recipe": getattr(recipe, "name", None)}
    row |= {"image_size": planned.size or None, "epochs": getattr(recipe, "total_epochs", None)}
    row |= {"batch_size": getattr(recipe, "batch_size", None)}
    row |= {"weights": (trial.weights or "random") if recipe else None, "tta": "none" if recipe else None}
    cropped = planned.pipeline is not None and not planned.pipeline.keeps_scale
    for side in ("train", "val", "test"):
        index = getattr(split, side)
        groups = samples.groups_of(index)
        row |= {f"n_{side}": len(index), f"groups_{side}": None if groups is None else len(np.unique(groups))}
    row |= {"dropped": split.dropped, **{f"leaked_{name}": count for name, count in split.leaked.items()}}
    flags = "; ".join(filter(None, [*split.flags, "cells are cropped to: their size is not seen" if cropped else ""]))
    row |= {"guarantees": "; ".join(sorted(split.guarantees)), "flags": flags}
    row |= dict.fromkeys(("parameters", "backend", "device", "precision", "threads"))
    version = trial.plugin_version or installed_version(trial.plugin)
    row |= {"deterministic": True, "plugin": trial.plugin, "plugin_version": version, "changes": planned.changes}
    predicted = np.concatenate([split.val, split.test])
    sides = np.repeat(np.array(["val", "test"]), [len(split.val), len(split.test)])
    return Record(trial, "ok", row=row, sides=sides, samples=samples.ids[predicted], labels=samples.labels[predicted])


def scored_record(
    record: Record, probabilities: Floats, views: Floats | None, fitted: tuple[float, str] | None
) -> Record:
    """Add predictions and their metrics to a record.

    `views` are the logits of the eight symmetries (8, n, classes); `fitted` is the temperature and why it is 1, or None
    for no calibrated metrics.
    """
    temperature, why = fitted or (None, "")
    test, val = record.sides == "test", record.sides == "val"
    row = {**record.row, "flags": "; ".join(filter(None, [record.row["flags"], why and f"temperature stays 1: {why}"]))}
    found: dict[str, Any] = {"probabilities": probabilities}
    calibrated = {} if temperature is None else {"probabilities": apply_temperature(probabilities, temperature)}
    if views is not None:
        found["tta"] = softmax(views).mean(axis=0)
        if temperature is not None:
            calibrated["tta"] = softmax(views / temperature).mean(axis=0)
    for name, field_name in (("probabilities", "metrics"), ("tta", "metrics_tta"))[: len(found)]:
        metrics: dict[str, Any] = dict(score(record.labels[test], found[name][test]))
        if val.any():
            watched = score(record.labels[val], found[name][val])
            metrics |= {column: watched[column.removeprefix("val_")] for column in WATCHED}
        if calibrated:
            after = score(record.labels[test], calibrated[name][test])
            metrics |= {f"{column}_calibrated": after[column] for column in ("loss", "brier", "ece")}
            metrics["temperature"] = temperature
        found[field_name] = metrics
    return replace(record, row=row, **found)


def temperature_of_val(split: Split, samples: Samples, predicted: Floats) -> tuple[float, str] | None:
    """Return the temperature of the val side, first in `predicted`, and why it is 1; None if it is the test side."""
    if np.intersect1d(split.val, split.test).size:
        return None
    return choose_temperature(samples.labels[split.val], predicted[: len(split.val)], samples.groups_of(split.val))


def failed_record(blank: Record, error: BaseException, started: float, here: bool = True) -> Record:
    """Return the record of a trial that raised, `here` or in another process whose memory is not known."""
    texts = (str(error), "".join(traceback.format_exception(error)))
    # Without the codes of colours and the characters that no file or terminal takes.
    message, trace = (printable(re.sub(r"\x1b\[[0-9;]*m", "", text)) for text in texts)
    timings = environment(started) | ({} if here else {"peak_memory_gib": None})
    failure: Any = {"exception": type(error).__name__, "message": " ".join(message.split()), "traceback": trace}
    return replace(blank, status="failed", timings=timings, **failure)


def environment(started: float) -> dict[str, Any]:
    """Return the columns of `timings.csv` of a trial that ends now and began at `started` by `time.perf_counter()`."""
    peak = None
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # bytes, or KiB
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    return {
        "seconds": time.perf_counter() - started,
        "peak_memory_gib": peak,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": "; ".join(f"{name} {version}" for name, version in installed_versions().items()),
    }


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that make results, of those that are installed."""
    names = ("leukemia-dl", "keras", "tensorflow", "jax", "torch", "numpy", "scikit-learn")
    return {name: version for name in names if (version := installed_version(name)) != "unknown"}


def result_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return a row per record, and one for its averaged predictions: `backbone`, every metric, then settings."""
    columns, rows = [*METRICS, *CALIBRATED, *WATCHED], []
    for record in chain.from_iterable(record.with_tta() for record in records):
        metrics = {name: record.metrics.get(name, float("nan")) for name in columns}
        trace = f"trials/{record.trial.folder}/traceback.txt" if record.status == "failed" else ""
        row = {"backbone": record.name, **metrics, "status": record.status, **record.row, "trial": record.trial.folder}
        rows.append(row | {"exception": record.exception, "message": record.message, "traceback": trace})
    return _joined([pd.DataFrame(rows, columns=None if rows else ["backbone", *columns, "status"])])


def timing_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return a row per record: seconds, memory, machine and versions."""
    rows = []
    for record in records:
        names = {name: getattr(record.trial, name) for name in ("backbone", "fold", "seed")}
        rows.append({**names, **record.timings, "trial": record.trial.folder})
    return _joined([pd.DataFrame(rows)])


def history_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return a row per record and epoch."""
    return _joined([_named(record, record.history.copy()) for record in records if len(record.history)])


def prediction_frame(records: Iterable[Record], class_names: Sequence[str], samples: pd.DataFrame) -> pd.DataFrame:
    """Return a row per predicted sample, of known `samples`, of each record with status "ok" and its averaged one."""
    known = samples.set_index("sample")[["subject", "group", "same_cell"]]
    parts, records = [], [record for record in records if record.status == "ok"]
    repeated = any(record.row.get("repeat") for record in records)
    for record in chain.from_iterable(record.with_tta() for record in records):
        part = _named(record, pd.DataFrame({"sample": record.samples.astype(object)}))
        part.insert(2, "kind", record.kind)
        if repeated:
            part.insert(4, "repeat", record.row["repeat"])
        part[["subject", "group", "same_cell"]] = known.loc[part["sample"]].to_numpy()
        part["side"] = record.sides.astype(object)
        part["label"] = [class_names[label] for label in record.labels]
        for position, name in enumerate(class_names):
            part[f"probability_{name}"] = record.probabilities[:, position]
        parts.append(part)
    return _joined(parts)


def _named(record: Record, rows: pd.DataFrame) -> pd.DataFrame:
    trial = record.trial
    names = {"trial": trial.folder, "backbone": record.name, "protocol": trial.protocol}
    for place, (name, value) in enumerate({**names, "fold": trial.fold, "seed": trial.seed}.items()):
        rows.insert(place, name, value)
    return rows


def _joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return frame.astype({name: "Int64" for name in WHOLE_NUMBERS if name in frame})


def relabelled(other: Dataset, label_map: Mapping[str, str | None], classes: tuple[str, ...]) -> Dataset:
    """Return the images of a data set whose labels are, or are mapped to, one of `classes`."""
    table, name = other.table, other.info.name
    if strange := [label for label in label_map if label not in other.class_names]:
        raise DataError(f"label_map names {strange}; {name!r} has the labels {', '.join(other.class_names)}.")
    table["label"] = [None if pd.isna(label) else label_map.get(label, label) for label in table["label"]]
    table = table[table["label"].notna()]
    unknown = sorted(set(table["label"]) - set(classes))
    if unknown or table.empty:
        found = f"{name!r} has images of {', '.join(map(repr, unknown)) or 'no class'}"
        allowed = f"the classes of the benchmark are {', '.join(classes)}"
        raise DataError(f"{found}; {allowed}. Say what each is, or None to leave it out: label_map={{...}}.")
    return replace(other, _table=table, class_names=classes, source=None)
