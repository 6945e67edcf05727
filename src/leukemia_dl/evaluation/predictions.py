"""The prediction frame, checked once and turned into arrays: one `Run` per backbone and seed."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.text import is_unknown, name_key

__all__ = [
    "FEWEST_GROUPS", "PREFIX", "Floats", "Ints", "Model", "Run", "arrays_of", "as_arrays", "class_names_of",
    "groups_of", "models_of", "protocols_of", "select_side", "unit_column", "validated_predictions",
]  # fmt: skip

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

PREFIX = "probability_"
FEWEST_GROUPS = 5
KINDS = ("backbone", "baseline", "tta")
# Optional columns, by where their values may be missing. Columns whose values may be missing for a whole backbone
# identify its fitted models; all others hold text.
_MAY_BE_MISSING = {
    "nowhere": ("backbone", "kind", "side", "sample"),
    "in a whole backbone": ("seed", "repeat", "fold"),
    "anywhere": ("group", "subject", "same_cell"),
}
_DEFAULTS = {"backbone": "model", "kind": KINDS[0]}
# Probabilities that another program rounded to two digits are accepted.
_SUM_TOLERANCE = 1e-2 + 1e-9
_LIKE_SUBJECT = ("patient", "patientid", "subjectid", "case", "caseid")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Run:
    """Predictions of one backbone and seed over all its folds, each array of n rows.

    `predicted` is the most probable class (the first of equals), `unit` the group or image that is left out at a time.
    """

    labels: Ints
    probabilities: Floats
    predicted: Ints
    unit: Ints
    fold: Ints
    samples: NDArray[np.object_]

    @classmethod
    def of(cls, labels: Ints, probabilities: Floats) -> Run:
        """Return a run of one fold, each prediction its own unit."""
        rows = np.arange(len(labels))
        return cls(labels, probabilities, probabilities.argmax(axis=1), rows, np.zeros_like(rows), rows.astype(object))

    def at(self, rows: NDArray[Any]) -> Run:
        """Return some of the predictions."""
        return Run(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


@dataclass(frozen=True, eq=False)
class Model:
    """All runs of one backbone; `units` are the names of `Run.unit`, `named` says whether samples have names."""

    name: str
    kind: str
    runs: tuple[Run, ...]
    units: tuple[str, ...]
    by_group: bool
    named: bool = True

    @property
    def unit(self) -> str:
        """Return "group" or "image"."""
        return "group" if self.by_group else "image"

    @property
    def images(self) -> int:
        """Return the number of different images that the runs have predicted."""
        if not self.named:
            return max(len(run.samples) for run in self.runs)
        return len(set().union(*(run.samples for run in self.runs)))


def class_names_of(frame: pd.DataFrame) -> tuple[str, ...]:
    """Return the classes that the columns `probability_<class>` of `frame` name, in order; the second is positive.

    Raises:
        DataError: If there are fewer than two, no column `label`, a column twice, or it is no DataFrame.
    """
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"Expected a DataFrame of predictions. Received: {type(frame).__name__}.")
    if frame.columns.nlevels > 1:
        raise DataError("Expected a DataFrame of predictions. Received: one with columns of several levels.")
    names = tuple(str(column)[len(PREFIX) :] for column in frame.columns if str(column).startswith(PREFIX))
    if len(names) < 2:
        raise DataError(
            "A prediction frame has a column label and a column probability_<class> for each of at least two classes "
            f"(further: backbone, seed, fold, side, sample, group). Received: {', '.join(map(str, frame.columns))}."
        )
    if "label" not in frame:
        key = next((name for name in ("sample", "path") if name in frame), "sample")
        raise DataError(
            "The predictions have no column label, the true class. Join it from a table such as Dataset.table: "
            f"predictions.merge(truth[[{key!r}, 'label']], on={key!r})."
        )
    known = {"protocol", *itertools.chain(*_MAY_BE_MISSING.values())}
    odd = {name: str(name).strip().lower() for name in frame}
    if odd := {name: lower for name, lower in odd.items() if lower in known - {*frame}}:
        raise DataError(f"Names of columns are in lower case: frame.rename(columns={odd}).")
    if len(twice := frame.columns[frame.columns.duplicated()]):
        raise DataError(f"The column {twice[0]!r} is there twice. Drop one of them.")
    return names


def protocols_of(frame: pd.DataFrame) -> list[str]:
    """Return the protocols by which the data of a prediction frame were split; none if it has no such column."""
    return list(dict.fromkeys(map(str, frame["protocol"]))) if "protocol" in frame else []


def validated_predictions(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a checked prediction frame, with text where names are, float64 probabilities, and a plain index.

    Raises:
        DataError: If a column is missing or damaged, a sample has two labels or groups, or there are several protocols,
            over which nothing may be averaged.
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
    columns = [PREFIX + name for name in names]
    try:
        result[columns] = result[columns].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"The columns probability_<class> must hold numbers. {error}.") from None
    # Images of a side that is not evaluated may have no label.
    known = result["label"].notna()
    labels = result["label"][known].astype(object).map(lambda label: _class_of(label, names))
    if unknown := sorted({*labels} - {*names}):
        raise DataError(
            f"The column label names classes that have no probability_ column: {', '.join(unknown[:5])}. Classes: "
            f"{', '.join(names)}. Samples without a label cannot be scored."
        )
    result["label"] = labels.astype(object).reindex(result.index).where(known, None)
    result = result.assign(**{name: value for name, value in _DEFAULTS.items() if name not in result})
    for where, optional in _MAY_BE_MISSING.items():
        for name in filter(result.__contains__, optional):
            result[name] = _validated_column(result, name, where)
    if unknown := sorted(set(result["kind"]) - set(KINDS)):
        raise DataError(f"The column kind holds {' or '.join(map(repr, KINDS))}. Received: {unknown[:5]}.")
    if "sample" in result:
        _check_samples(result)
    return result


def _class_of(label: Any, names: tuple[str, ...]) -> str:
    """Return the class that a label names; 1.0 and True may be the class of `probability_1`."""
    text = str(label)
    if text not in names:
        with suppress(TypeError, ValueError):
            number = float(label)
            text = str(int(number)) if number.is_integer() else text
    return text


def _validated_column(frame: pd.DataFrame, name: str, may_be_missing: str) -> pd.Series:
    """Return an optional column, as text unless it identifies fitted models."""
    column, missing = frame[name], frame[name].isna()
    if may_be_missing == "in a whole backbone":
        try:
            pd.factorize(column)
        except TypeError:
            raise DataError(f"The column {name} holds numbers or text. Received: {column.iloc[0]!r}.") from None
        share = missing.groupby(frame["backbone"]).mean()
        if len(partly := share.index[share.between(0, 1, inclusive="neither")]):
            raise DataError(f"Some predictions of {partly[0]} have no {name}, others have. Complete the column {name}.")
        return column
    if may_be_missing == "anywhere":
        missing |= column.map(is_unknown).astype(bool)
        if name == "same_cell":
            return column.astype(object).map(str).where(~missing, None)
        spelled: dict[str, str] = {}
        column = column.map(lambda value: spelled.setdefault(name_key(str(value)), str(value)))
    elif missing.any():
        count = f"{missing.sum():,} of {len(frame):,}"
        raise DataError(f"{count} predictions have no {name}. Complete the column {name}.")
    return column.astype(object).map(str).where(~missing, None)


def _check_samples(frame: pd.DataFrame) -> None:
    """Raise DataError if a sample has two labels or groups on one side."""
    keys = [name for name in ("side", "sample") if name in frame]
    facts = [name for name in ("label", "group", "subject") if name in frame]
    different = frame.drop_duplicates([*keys, *facts])
    twice = different[different.duplicated(keys, keep=False)]
    if len(twice):
        one, other = twice[twice["sample"] == twice["sample"].iloc[0]].iloc[:2].to_dict("records")
        fact = next(name for name in facts if one[name] != other[name])
        values = f"two values of {fact}: {one[fact]!r} and {other[fact]!r}"
        raise DataError(f"Sample {one['sample']!r} has {values}. The predictions are of different data.")


def select_side(frame: pd.DataFrame, side: str) -> pd.DataFrame:
    """Return the rows of one side of a validated frame; all of them if it has no column `side`."""
    if not isinstance(side, str):
        raise SettingsError(f"side must be a name of the column side, such as 'test'. Received: side={side!r}.")
    chosen = frame[frame["side"] == side] if "side" in frame else frame
    if missing := int(chosen["label"].isna().sum()):
        raise DataError(f"{missing:,} of {len(chosen):,} predictions without a label cannot be scored.")
    if chosen.empty and "side" in frame:
        there = ", ".join(map(str, frame["side"].unique())) or "no rows at all"
        raise DataError(f"There are no predictions of the side {side!r}. The column side has: {there}.")
    return chosen


def unit_column(frame: pd.DataFrame) -> str | None:
    """Return the column that holds groups of subjects; None where subjects are unknown."""
    return next((name for name in ("group", "subject") if name in frame and frame[name].notna().any()), None)


def groups_of(frame: pd.DataFrame) -> NDArray[np.object_] | None:
    """Return the group of each row; None where subjects are unknown."""
    column = unit_column(frame)
    if column is None:
        for alike in [name for name in frame if re.sub("[^a-z]", "", str(name).lower()) in _LIKE_SUBJECT]:
            _log.warning("Images are taken as independent. If the column %r names patients, call it subject.", alike)
        return None
    if missing := int(frame[column].isna().sum()):
        count = f"{missing:,} of {len(frame):,} predictions have no {column}."
        raise DataError(f"{count} Leave them out, or empty the columns group and subject to count images instead.")
    return frame[column].to_numpy(dtype=object)


def models_of(frame: pd.DataFrame, side: str = "test", only: Iterable[str] | None = None) -> list[Model]:
    """Return the backbones on one side of a validated frame, in order of appearance or of `only`.

    Raises:
        DataError: If there are no rows, a sample is there twice in one run, or a group is not known for all.
        SettingsError: If `only` names a backbone that is not there.
    """
    chosen = select_side(frame, side).reset_index(drop=True)
    if chosen.empty:
        raise DataError("The frame of predictions is empty. Were two tables joined that spell a path differently?")
    labels, probabilities = arrays_of(chosen)
    groups, named = groups_of(chosen), "sample" in chosen
    samples = chosen["sample"].to_numpy(dtype=object) if named else np.array([f"row {i}" for i in chosen.index], object)
    everything = replace(Run.of(labels, probabilities), samples=samples)
    if "fold" in chosen:
        everything = replace(everything, fold=pd.factorize(chosen["fold"])[0].astype(np.int64))
    keys = [name for name in ("seed", "repeat") if name in chosen]
    if named and (twice := chosen.duplicated(["backbone", *keys, "sample"])).any():
        backbone, sample = chosen.loc[twice, ["backbone", "sample"]].iloc[0]
        raise DataError(
            f"{backbone} has several predictions of sample {sample!r} in one run. A run is "
            "one backbone, seed and repeat; of val sides that share images take one fold."
        )
    runs = chosen.groupby(keys, dropna=False, sort=False).ngroup() if keys else pd.Series(0, index=chosen.index)
    models = []
    for name in _wanted(list(dict.fromkeys(chosen["backbone"])), only):
        rows = np.flatnonzero(chosen["backbone"] == name)
        run = runs.to_numpy()[rows]
        if groups is None and not named and (run != run[0]).any():
            raise DataError("With several seeds and unknown subjects, the predictions need a column sample.")
        # In the order of their names, so that the order of rows does not change which units form a block.
        codes, units = pd.factorize((samples if groups is None else groups)[rows], sort=True)
        own = replace(everything.at(rows), unit=codes.astype(np.int64))
        parts = tuple(own.at(run == number) for number in dict.fromkeys(run))
        models.append(Model(name, chosen["kind"].iloc[rows[0]], parts, tuple(units), groups is not None, named))
    return models


def _wanted(there: list[str], only: Iterable[str] | None) -> list[str]:
    """Return the names of `only`, or all, if each is there once."""
    wanted = there if only is None else [only] if isinstance(only, str) else list(only)
    if not wanted or not set(wanted) <= set(there) or len(set(wanted)) < len(wanted):
        raise SettingsError(
            f"Name backbones that there are predictions of, each once: {', '.join(there)}. Received: {wanted!r}."
        )
    return wanted


def arrays_of(frame: pd.DataFrame) -> tuple[Ints, Floats]:
    """Return the labels (n,) and probabilities (n, classes) of a validated frame, checked."""
    names = class_names_of(frame)
    codes = pd.Index(names).get_indexer(pd.Index(frame["label"]))
    return as_arrays(codes, frame[[PREFIX + name for name in names]])


def as_arrays(labels: Any, probabilities: Any) -> tuple[Ints, Floats]:
    """Return labels (n,) and probabilities (n, classes) as int64 and float64.

    Raises:
        DataError: If shapes, labels or probabilities are wrong.
    """
    try:
        labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"Expected labels (n,) and probabilities (n, classes). {error}.") from None
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or labels.shape != probabilities.shape[:1]:
        raise DataError(
            "Expected labels (n,) and probabilities (n, classes) with at least two classes. "
            f"Received: {labels.shape} and {probabilities.shape}."
        )
    if not len(labels):
        raise DataError("There are no predictions to score: the test side is empty.")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise DataError(
            f"Labels must be class indices, whole numbers from 0 to {probabilities.shape[1] - 1}; samples without a "
            f"label cannot be scored. Received: {labels.dtype} from {labels.min()} to {labels.max()}."
        )
    finite = np.all(np.isfinite(probabilities) & (probabilities >= 0), axis=1)
    sums = np.where(finite[:, None], probabilities, 0.0).sum(axis=1)
    if len(wrong := np.flatnonzero(np.abs(sums - 1) > _SUM_TOLERANCE)):
        raise DataError(
            f"Probabilities must be finite, not negative, and sum to 1 in each row (within 0.01). {len(wrong):,} rows "
            f"are not so. Received, the first of them: {probabilities[wrong[0]].tolist()}."
        )
    return labels.astype(np.int64), probabilities
