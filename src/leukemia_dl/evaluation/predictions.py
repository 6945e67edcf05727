"""The prediction frame, checked and made tidy once, and turned into arrays: one `Run` per backbone and seed."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.errors import DataError, SettingsError

__all__ = [
    "FEWEST_GROUPS", "PREFIX", "Model", "Run", "as_arrays", "class_names_of", "groups_of", "models_of", "protocols_of",
    "select_side", "tidy",
]  # fmt: skip

_log = logging.getLogger(__name__)

PREFIX = "probability_"
FEWEST_GROUPS = 5
KINDS = ("backbone", "baseline", "tta")
# Probabilities that were rounded to a few digits by another program are taken as they are.
_SUM_TOLERANCE = 1e-2 + 1e-9
_RUN_KEYS = ("seed", "repeat")
_LIKE_SUBJECT = ("patient", "patient_id", "subject_id", "case", "case_id")


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
        rows = np.arange(len(labels))
        zeros = np.zeros(len(labels), np.int64)
        return cls(labels, probabilities, probabilities.argmax(axis=1), rows, zeros, rows.astype(object))

    def at(self, rows: NDArray[Any]) -> Run:
        """Return some of the predictions."""
        return Run(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


@dataclass(frozen=True, eq=False)
class Model:
    """All runs of one backbone.

    Attributes:
        name: Of the backbone.
        kind: "backbone", "baseline", or "tta": a backbone's predictions averaged over symmetries, which are shown
            beside it and compete with none.
        runs: One per seed and repeat.
        units: Names of the units, in the order of `Run.unit`.
        by_group: Whether units are groups of subjects; otherwise images.
        named: Whether images have names, that of a row of the frame otherwise.
    """

    name: str
    kind: str
    runs: tuple[Run, ...]
    units: tuple[str, ...]
    by_group: bool
    named: bool = True

    @property
    def images(self) -> int:
        """Return how many different images the runs have predicted."""
        if not self.named:
            return max(len(run.samples) for run in self.runs)
        return len(set().union(*(run.samples for run in self.runs)))


def class_names_of(frame: pd.DataFrame) -> tuple[str, ...]:
    """Return the classes that the columns `probability_<class>` of `frame` name, in order; the second is positive.

    Raises:
        DataError: If there are fewer than two, no column `label`, a column twice, or it is no DataFrame.
    """
    if not isinstance(frame, pd.DataFrame) or frame.columns.nlevels > 1:
        kind = "one with columns of several levels" if isinstance(frame, pd.DataFrame) else type(frame).__name__
        raise DataError(f"Expected a DataFrame of predictions. Received: {kind}.")
    names = tuple(str(column)[len(PREFIX) :] for column in frame.columns if str(column).startswith(PREFIX))
    if len(names) < 2:
        raise DataError(
            "A prediction frame has a column label and a column probability_<class> for each of at least two classes "
            f"(further: backbone, seed, fold, side, sample, group). Received: {', '.join(map(str, frame.columns))}."
        )
    if "label" not in frame:
        key = next((name for name in ("sample", "path") if name in frame), "sample")
        raise DataError(
            "The predictions have no column label, the true class, so there is nothing to compare them with. Join it: "
            f"predictions.merge(truth[[{key!r}, 'label']], on={key!r}), where truth is a table such as Dataset.table "
            f"with the same spelling of each {key}."
        )
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise DataError(f"The column {twice!r} is there twice. Drop one of them.")
    return names


def protocols_of(frame: pd.DataFrame) -> list[str]:
    """Return the protocols by which the data of a prediction frame were split; none if it has no such column."""
    return list(dict.fromkeys(map(str, frame["protocol"]))) if "protocol" in frame else []


def tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a checked prediction frame, with text where names are, float64 probabilities, and a plain index.

    Raises:
        DataError: If a column is missing or damaged, a label unknown, a probability none, a name missing where others
            are there, a sample has two labels or groups, or there are several protocols: how patients were kept apart
            is not to be averaged over.
    """
    names = class_names_of(frame)
    result = frame.reset_index(drop=True)
    protocols = protocols_of(result)
    if len(protocols) > 1:
        raise DataError(
            f"The predictions are of {len(protocols)} protocols: {', '.join(protocols)}. Choose one, "
            f'frame[frame["protocol"] == {protocols[0]!r}], or compare two of them by leukemia_dl.inflation.'
        )
    if "error" in result and (unread := int((result["error"].notna() & (result["error"] != "")).sum())):
        raise DataError(
            f"{unread:,} of {len(result):,} rows are images that could not be read, as their column error says. Drop "
            "these rows: frame[frame['error'].isna()]."
        )
    # Images of another side may have no label; where one is needed, `select_side` asks for it.
    known = result["label"].notna()
    result["label"] = result["label"].astype(object).where(known, None)
    result.loc[known, "label"] = np.array(names, dtype=object)[
        _codes(frame["label"].reset_index(drop=True)[known], names)
    ]
    try:
        probabilities = result[[PREFIX + name for name in names]].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"The columns probability_<class> must hold numbers. {error}.") from None
    for place, name in enumerate(names):
        result[PREFIX + name] = probabilities[:, place]
    result["backbone"] = _text(result, "backbone", "model")
    result["kind"] = _text(result, "kind", KINDS[0])
    if not result["kind"].isin(KINDS).all():
        raise DataError(
            f"The column kind holds {' or '.join(map(repr, KINDS))}. Received: {sorted(set(result['kind']))[:5]}."
        )
    for name in ("side", "sample"):
        if name in result:
            result[name] = _text(result, name)
    for name in ("group", "subject", "same_cell"):
        if name in result:
            known = result[name].notna() & (result[name].astype(str) != "")
            result[name] = result[name].astype(object).map(str).where(known, None)
    _check_keys(result)
    _check_samples(result)
    return result


def select_side(frame: pd.DataFrame, side: str) -> pd.DataFrame:
    """Return the rows of one side of a tidy frame; all of them if it has no column `side`."""
    if not isinstance(side, str):
        raise SettingsError(f"side must be a name of the column side, such as 'test'. Received: side={side!r}.")
    chosen = frame[frame["side"] == side] if "side" in frame else frame
    if chosen["label"].isna().any():
        raise DataError(
            f"{int(chosen['label'].isna().sum()):,} of {len(chosen):,} predictions have no label. Samples "
            "without a label cannot be scored."
        )
    if chosen.empty and "side" in frame:
        there = ", ".join(map(str, frame["side"].unique())) or "no rows at all"
        raise DataError(f"There are no predictions of the side {side!r}. The column side has: {there}.")
    return chosen


def models_of(frame: pd.DataFrame, side: str = "test", only: Iterable[str] | None = None) -> list[Model]:
    """Return the backbones of a tidy prediction frame, in order of appearance.

    Args:
        frame: What `tidy` returned.
        side: Which rows of the column `side` to take.
        only: Names of the backbones to take; None for all.

    Raises:
        DataError: If there are no rows, a sample is there twice in one run, or a group is not known for all.
    """
    chosen = select_side(frame, side).reset_index(drop=True)
    if chosen.empty:
        raise DataError("The frame of predictions is empty. Were two tables joined that spell a path differently?")
    names = class_names_of(chosen)
    labels = pd.Index(names).get_indexer(pd.Index(chosen["label"])).astype(np.int64)
    probabilities = chosen[[PREFIX + name for name in names]].to_numpy(dtype=np.float64)
    _check_probabilities(labels, probabilities)
    groups = groups_of(chosen)
    named = "sample" in chosen
    samples = chosen["sample"].to_numpy(dtype=object) if named else np.array([f"row {i}" for i in chosen.index], object)
    folds = pd.factorize(chosen["fold"])[0] if "fold" in chosen else np.zeros(len(chosen), np.int64)
    keys = [column for column in _RUN_KEYS if column in chosen]
    runs = chosen.groupby(keys, dropna=False, sort=False).ngroup().to_numpy() if keys else np.zeros(len(chosen), int)
    backbones = chosen["backbone"].to_numpy(dtype=object)
    models = []
    for name in _wanted(list(dict.fromkeys(backbones)), only):
        rows = np.flatnonzero(backbones == name)
        different = list(dict.fromkeys(runs[rows]))
        if groups is None and len(different) > 1 and not named:
            raise DataError("With several seeds and nothing known of subjects, the predictions need a column sample.")
        # In the order of their names, so that the order of rows has no say in what is drawn.
        codes, units = pd.factorize(samples[rows] if groups is None else groups[rows], sort=True)
        parts = []
        for run in different:
            inside = runs[rows] == run
            part = rows[inside]
            _check_unique(name, samples[part])
            p = probabilities[part]
            fold = folds[part].astype(np.int64)
            parts.append(Run(labels[part], p, p.argmax(axis=1), codes[inside].astype(np.int64), fold, samples[part]))
        models.append(Model(name, chosen["kind"].iloc[rows[0]], tuple(parts), tuple(units), groups is not None, named))
    return models


def as_arrays(labels: Any, probabilities: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return labels (n,) and probabilities (n, classes) as int64 and float64.

    Raises:
        DataError: If they are not such.
    """
    try:
        labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"Expected labels (n,) and probabilities (n, classes). {error}.") from None
    _check_probabilities(labels, probabilities)
    return labels.astype(np.int64), probabilities


def _check_probabilities(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> None:
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
            f"Probabilities must be finite, not negative, and sum to 1 in each row (within .01). "
            f"{int(wrong.sum()):,} rows are not so. Received, the first of them: {probabilities[row].tolist()}."
        )


def _codes(labels: pd.Series, names: tuple[str, ...]) -> NDArray[np.int64]:
    """Return class indices; 1.0 and True may be the class of `probability_1`."""
    text = [str(label) for label in labels]
    codes = pd.Index(names).get_indexer(pd.Index(text, dtype=object))
    if (codes < 0).any():
        whole = pd.to_numeric(labels, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        again = [str(int(value)) if np.isfinite(value) and value == int(value) else "" for value in whole]
        codes = np.where(codes < 0, pd.Index(names).get_indexer(pd.Index(again, dtype=object)), codes)
    if (codes < 0).any():
        unknown = sorted({label for label, code in zip(text, codes, strict=True) if code < 0})[:5]
        raise DataError(
            f"The column label names classes that have no probability_ column: {', '.join(unknown)}. Classes: "
            f"{', '.join(names)}. Samples without a label cannot be scored."
        )
    return codes.astype(np.int64)


def _text(frame: pd.DataFrame, name: str, default: str = "") -> pd.Series:
    if name not in frame:
        return pd.Series(default, index=frame.index, dtype=object)
    missing = int(frame[name].isna().sum())
    if missing:
        raise DataError(f"{missing:,} of {len(frame):,} predictions have no {name}. Complete the column {name}.")
    return frame[name].astype(object).map(str)


def _check_keys(frame: pd.DataFrame) -> None:
    for key in (name for name in (*_RUN_KEYS, "fold") if name in frame):
        try:
            pd.factorize(frame[key])
        except TypeError:
            raise DataError(f"The column {key} holds numbers or text. Received: {frame[key].iloc[0]!r}.") from None
        missing = frame[key].isna().groupby(frame["backbone"]).agg(["any", "all"])
        partly = missing.index[missing["any"] & ~missing["all"]]
        if len(partly):
            raise DataError(f"Some predictions of {partly[0]} have no {key}, others have. Complete the column {key}.")


def _check_samples(frame: pd.DataFrame) -> None:
    if "sample" not in frame:
        return
    keys = [name for name in ("side", "sample") if name in frame]
    facts = [name for name in ("label", "group", "subject") if name in frame]
    different = frame.drop_duplicates([*keys, *facts])
    twice = different[different.duplicated(keys, keep=False)]
    if len(twice):
        first = twice[twice["sample"] == twice["sample"].iloc[0]].iloc[:2]
        what = next(name for name in facts if first[name].iloc[0] != first[name].iloc[1])
        raise DataError(
            f"Sample {first['sample'].iloc[0]!r} has two values of {what}: {first[what].iloc[0]!r} and "
            f"{first[what].iloc[1]!r}. The predictions are not of the same data."
        )


def groups_of(frame: pd.DataFrame) -> NDArray[np.object_] | None:
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
    return column.to_numpy(dtype=object)


def _wanted(there: list[str], only: Iterable[str] | None) -> list[str]:
    if only is None:
        return there
    wanted = [only] if isinstance(only, str) else list(only)
    missing = [name for name in wanted if name not in there]
    if missing or not wanted or len(set(wanted)) < len(wanted):
        raise SettingsError(
            f"Name backbones that there are predictions of, each once: {', '.join(there)}. Received: {wanted!r}."
        )
    return wanted


def _check_unique(name: str, samples: NDArray[np.object_]) -> None:
    if len(set(samples)) < len(samples):
        twice = pd.Series(samples)[pd.Series(samples).duplicated()].iloc[0]
        raise DataError(
            f"{name} has several predictions of sample {twice!r} in one run. Tell models apart by a column backbone, "
            "seeds by a column seed, repeated draws of folds by a column repeat. The val sides of several folds may "
            "share images: take one fold."
        )
