"""The prediction frame, checked and turned into arrays: one `Run` per backbone and seed."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.errors import DataError, SettingsError

__all__ = ["Model", "Run", "check_probabilities", "class_names_of", "models_of", "select_side"]

_log = logging.getLogger(__name__)

PREFIX = "probability_"
_LIKE_SUBJECT = ("patient", "patient_id", "subject_id", "case", "case_id")
# Probabilities that were rounded to a few digits by another program are taken as they are.
_SUM_TOLERANCE = 1e-2


@dataclass(frozen=True, eq=False)
class Run:
    """The predictions of one backbone and seed, over all its folds, as arrays.

    Attributes:
        labels: True class indices (n,).
        probabilities: float64 (n, classes).
        predicted: Class indices (n,): the most probable class, the first of equals.
        unit: Which resampling unit (group of subjects, or image) each prediction is of (n,).
        fold: Which fold's model predicted it (n,).
        samples: Ids (n,).
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    predicted: NDArray[np.int64]
    unit: NDArray[np.int64]
    fold: NDArray[np.int64]
    samples: NDArray[np.object_]

    @classmethod
    def of(cls, labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> Run:
        """Return a run of one fold, each prediction its own unit."""
        zeros = np.zeros(len(labels), np.int64)
        rows = np.arange(len(labels))
        return cls(labels, probabilities, probabilities.argmax(axis=1), rows, zeros, rows.astype(object))


@dataclass(frozen=True, eq=False)
class Model:
    """All runs of one backbone.

    Attributes:
        name: Of the backbone.
        kind: "backbone" or "baseline".
        runs: One per seed.
        units: Names of the units, in the order of `Run.unit`.
        by_group: Whether units are groups of subjects; otherwise images.
    """

    name: str
    kind: str
    runs: tuple[Run, ...]
    units: tuple[object, ...]
    by_group: bool


def class_names_of(frame: pd.DataFrame) -> tuple[str, ...]:
    """Return the classes that the columns `probability_<class>` name, in their order; the second is the positive one.

    Raises:
        DataError: If there are fewer than two.
    """
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"Expected a DataFrame of predictions. Received: {type(frame).__name__}.")
    names = tuple(str(column)[len(PREFIX) :] for column in frame.columns if str(column).startswith(PREFIX))
    if len(names) < 2 or "label" not in frame:
        raise DataError(
            "A prediction frame has a column label and a column probability_<class> for each of at least two classes "
            f"(further: backbone, seed, fold, side, sample, group). Received: {', '.join(map(str, frame.columns))}."
        )
    return names


def select_side(frame: pd.DataFrame, side: str) -> pd.DataFrame:
    """Return the rows of one side; all of them if the frame has no column `side`."""
    class_names_of(frame)
    if "side" not in frame:
        return frame
    chosen = frame[frame["side"] == side]
    if chosen.empty:
        there = ", ".join(map(str, frame["side"].unique())) or "no rows at all"
        raise DataError(f"There are no predictions of the side {side!r}. The column side has: {there}.")
    return chosen


def models_of(frame: pd.DataFrame, side: str = "test", only: Iterable[str] | None = None) -> list[Model]:
    """Check a prediction frame and return its backbones, in order of appearance.

    Args:
        frame: See `leukemia_dl.evaluate`.
        side: Which rows of the column `side` to take.
        only: Names of the backbones to take; None for all.

    Raises:
        DataError: If a column is missing, a label unknown, a probability none, or a sample is there twice in one run.
    """
    chosen = select_side(frame, side)
    if chosen.empty:
        raise DataError("There are no predictions: the frame is empty.")
    names = class_names_of(frame)
    labels = _codes(chosen["label"], names)
    try:
        probabilities = chosen[[PREFIX + name for name in names]].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"The columns probability_<class> must hold numbers. {error}.") from None
    check_probabilities(labels, probabilities)
    groups = _groups(chosen)
    samples = chosen["sample"].astype(object) if "sample" in chosen else pd.Series(np.arange(len(chosen)), dtype=object)
    folds = pd.factorize(chosen["fold"])[0] if "fold" in chosen else np.zeros(len(chosen), np.int64)
    backbones = chosen["backbone"].astype(str).to_numpy() if "backbone" in chosen else np.full(len(chosen), "model")
    kinds = chosen["kind"].astype(str).to_numpy() if "kind" in chosen else np.full(len(chosen), "backbone")
    keys = [column for column in ("seed", "repeat") if column in chosen]
    _check_keys(chosen, backbones, keys)
    runs = chosen.groupby(keys, dropna=False, sort=False).ngroup().to_numpy() if keys else np.zeros(len(chosen), int)
    models = []
    for name in _wanted(list(dict.fromkeys(backbones)), only):
        rows = np.flatnonzero(backbones == name)
        named = samples.to_numpy()[rows] if groups is None else groups[rows]
        codes, units = pd.factorize(pd.Series(named, dtype=object))
        parts = []
        for run in dict.fromkeys(runs[rows]):
            inside = runs[rows] == run
            part = rows[inside]
            ids = samples.to_numpy()[part]
            _check_unique(name, ids, "sample" in chosen)
            parts.append(
                Run(
                    labels[part],
                    probabilities[part],
                    probabilities[part].argmax(axis=1),
                    codes[inside].astype(np.int64),
                    folds[part].astype(np.int64),
                    ids,
                )
            )
        models.append(Model(name, str(kinds[rows[0]]), tuple(parts), tuple(units), groups is not None))
    return models


def check_probabilities(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> None:
    """Raise DataError unless labels (n,) are class indices and probabilities (n, classes) are such."""
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or labels.shape != probabilities.shape[:1]:
        raise DataError(
            "Expected labels (n,) and probabilities (n, classes) with at least two classes. "
            f"Received: {labels.shape} and {probabilities.shape}."
        )
    if not len(labels):
        raise DataError("There are no predictions to score: the test side is empty.")
    if labels.dtype.kind not in "iu":
        raise DataError(f"Labels must be class indices, whole numbers from 0. Received: dtype {labels.dtype}.")
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise DataError(
            f"Labels must be class indices from 0 to {probabilities.shape[1] - 1}. Received: from {labels.min()} to "
            f"{labels.max()}. Samples without a label, such as the final test set of C-NMC 2019, cannot be scored."
        )
    finite: NDArray[np.bool_] = np.all(np.isfinite(probabilities) & (probabilities >= 0), axis=1)
    sums = np.where(finite[:, None], probabilities, 0.0).sum(axis=1)
    wrong: NDArray[np.bool_] = np.abs(sums - 1) > _SUM_TOLERANCE
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"Probabilities must be finite, not negative, and sum to 1 in each row (within {_SUM_TOLERANCE:g}). "
            f"{int(wrong.sum()):,} rows are not so. Received, the first of them: {probabilities[row].tolist()}."
        )


def _codes(labels: pd.Series, names: tuple[str, ...]) -> NDArray[np.int64]:
    if labels.dtype.kind in "fb" and labels.notna().all() and (labels == labels.astype(int)).all():
        labels = labels.astype(int)  # 1.0 and True are the class of probability_1
    text = [str(label) for label in labels]
    codes = pd.Index(names).get_indexer(pd.Index(text))
    if (codes < 0).any():
        unknown = sorted({label for label, code in zip(text, codes, strict=True) if code < 0})[:5]
        raise DataError(
            f"The column label names classes that have no probability_ column: {', '.join(unknown)}. Classes: "
            f"{', '.join(names)}. Samples without a label cannot be scored."
        )
    return codes.astype(np.int64)


def _groups(frame: pd.DataFrame) -> NDArray[np.object_] | None:
    """Return the group of each row; None where nothing is known of subjects."""
    known = [name for name in ("group", "subject") if name in frame and frame[name].notna().any()]
    if not known:
        alike = [name for name in frame if str(name).lower() in _LIKE_SUBJECT]
        if alike:
            _log.warning(
                "Images are taken as independent. If the column %r says whose they are, rename it to subject.", alike[0]
            )
        return None
    column = frame[known[0]]
    if column.isna().any():
        raise DataError(
            f"{int(column.isna().sum()):,} of {len(column):,} predictions have no {known[0]}. Leave them out, or empty "
            "the columns group and subject for intervals that take images as independent."
        )
    return column.astype(object).to_numpy()


def _check_keys(frame: pd.DataFrame, backbones: NDArray[Any], keys: list[str]) -> None:
    for key in keys:
        missing = frame[key].isna().groupby(backbones).agg(["any", "all"])
        partly = missing.index[missing["any"] & ~missing["all"]]
        if len(partly):
            raise DataError(
                f"Some predictions of {partly[0]} have no {key}, others have one. Complete the column {key}."
            )


def _wanted(there: list[str], only: Iterable[str] | None) -> list[str]:
    if only is None:
        return there
    wanted = [only] if isinstance(only, str) else list(only)
    missing = [name for name in wanted if name not in there]
    if missing:
        raise SettingsError(f"No predictions of {', '.join(map(repr, missing))}. The frame has: {', '.join(there)}.")
    return wanted


def _check_unique(name: str, samples: NDArray[np.object_], named: bool) -> None:
    if named and len(set(samples)) < len(samples):
        twice = pd.Series(samples)[pd.Series(samples).duplicated()].iloc[0]
        raise DataError(
            f"{name} has several predictions of sample {twice!r} in one run. Tell models apart by a column backbone, "
            "seeds by a column seed, and repeated draws of folds by a column repeat."
        )
