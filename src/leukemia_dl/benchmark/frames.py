"""The frames of a benchmark, made of the records of its trials."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.benchmark.trial import WHOLE_NUMBERS, Record
from leukemia_dl.evaluation import METRICS, apply_temperature, score
from leukemia_dl.models.classifier import softmax

__all__ = ["history_frame", "metrics_of", "prediction_frame", "result_frame", "timing_frame"]

CALIBRATED = ("temperature", "loss_calibrated", "brier_calibrated", "ece_calibrated")
WATCHED = ("val_accuracy", "val_loss", "val_balanced_accuracy")


def result_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return a row per record, and one for its averaged predictions: `backbone`, every metric, what was compared."""
    columns = [*METRICS, *CALIBRATED, *WATCHED]
    rows = []
    for record in _with_tta(records):
        metrics = {name: record.metrics.get(name, float("nan")) for name in columns}
        folder = record.trial.folder
        rows.append(
            {"backbone": record.name, **metrics, "status": record.status, **record.row}
            | {"trial": folder, "exception": record.exception, "message": record.message}
            | {"traceback": f"trials/{folder}/traceback.txt" if record.status == "failed" else ""}
        )
    return _whole(pd.DataFrame(rows, columns=None if rows else ["backbone", *columns, "status"]), WHOLE_NUMBERS)


def timing_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return a row per record: seconds, memory, machine and versions."""
    rows = [
        {"backbone": r.trial.backbone, "fold": r.trial.fold, "seed": r.trial.seed, **r.timings, "trial": r.trial.folder}
        for r in records
    ]
    return _whole(pd.DataFrame(rows))


def history_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return a row per record and epoch."""
    parts = []
    for record in records:
        if len(record.history):
            fixed = pd.DataFrame([_names_of(record)] * len(record.history))
            parts.append(pd.concat([fixed, record.history], axis=1))
    return _whole(pd.concat(parts, ignore_index=True)) if parts else pd.DataFrame()


def prediction_frame(
    records: Iterable[Record],
    class_names: Sequence[str],
    samples: pd.DataFrame,
    cell_area: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Return a row per record and predicted sample, and one per sample of averaged predictions.

    Args:
        records: Those with another status than "ok" are left out.
        class_names: In label order.
        samples: `sample, subject, group, same_cell` of the data set.
        cell_area: By sample, for a column of that name.
    """
    known = samples.set_index("sample")[["subject", "group", "same_cell"]]
    parts = []
    for record in _with_tta(records):
        if record.status != "ok":
            continue
        fixed = {name: [value] * len(record.samples) for name, value in _names_of(record).items()}
        part = pd.DataFrame(fixed | {"sample": record.samples.astype(object)})
        part.insert(2, "kind", record.kind)
        part[["subject", "group", "same_cell"]] = known.loc[part["sample"]].to_numpy()
        if cell_area is not None:
            part["cell_area"] = part["sample"].map(cell_area).astype(float)
        part["side"] = record.sides.astype(object)
        part["label"] = [class_names[i] for i in record.labels]
        for position, name in enumerate(class_names):
            part[f"probability_{name}"] = record.probabilities[:, position]
        parts.append(part)
    return _whole(pd.concat(parts, ignore_index=True)) if parts else pd.DataFrame()


def _with_tta(records: Iterable[Record]) -> Iterator[Record]:
    for record in records:
        yield record
        if (averaged := record.as_tta()) is not None:
            yield averaged


def _names_of(record: Record) -> dict[str, Any]:
    trial = record.trial
    where = {"protocol": trial.protocol, "fold": trial.fold, "seed": trial.seed}
    return {"trial": trial.folder, "backbone": record.name, **where}


def _whole(frame: pd.DataFrame, names: Sequence[str] = ("fold", "seed")) -> pd.DataFrame:
    return frame.astype({name: "Int64" for name in names if name in frame})


def metrics_of(
    labels: NDArray[np.int64], sides: NDArray[np.str_], probabilities: NDArray[np.float64],
    views: NDArray[np.float64] | None, temperature: float | None,
) -> dict[str, Any]:  # fmt: skip
    """Return a record's `metrics`, and `tta` probabilities with their `metrics_tta`.

    The averages are over `views`, the logits of the eight symmetries (8, n, classes), or None. `temperature` is the
    network's own, which the saved model holds; None for no calibrated metrics.
    """
    test, val = sides == "test", sides == "val"

    def measured(plain: NDArray[np.float64], calibrated: NDArray[np.float64] | None) -> dict[str, Any]:
        metrics = score(labels[test], plain[test])
        watched = score(labels[val], plain[val]) if val.any() else {}
        metrics |= {
            f"val_{name}": watched[name] for name in ("accuracy", "loss", "balanced_accuracy") if name in watched
        }
        if calibrated is not None:
            after = score(labels[test], calibrated[test])
            metrics |= {f"{name}_calibrated": after[name] for name in ("loss", "brier", "ece")}
        return metrics if temperature is None else metrics | {"temperature": temperature}

    found = measured(probabilities, None if temperature is None else apply_temperature(probabilities, temperature))
    if views is None:
        return {"metrics": found, "metrics_tta": {}, "tta": np.empty((0, 0))}
    averaged = softmax(views).mean(axis=0)
    calibrated = None if temperature is None else softmax(views / temperature).mean(axis=0)
    return {"metrics": found, "metrics_tta": measured(averaged, calibrated), "tta": averaged}
