"""The prediction frame, checked once and turned into arrays: one `Run` per backbone and seed."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation.metrics import Floats, Ints, Run, as_arrays
from leukemia_dl.text import is_unknown, name_key

__all__ = [
    "CHOSEN", "FEWEST_GROUPS", "PREFIX", "Model", "arrays_of", "chosen_elsewhere", "class_names_of", "groups_of",
    "model_keys", "models_of", "protocols_of", "select_side", "unit_column", "validated_predictions",
]  # fmt: skip

PREFIX, CHOSEN = "probability_", "_chosen"
FEWEST_GROUPS = 5
_KINDS = ("backbone", "baseline", "tta")
_DEFAULTS = {"backbone": "model", "kind": "backbone"}
# Optional columns, by where their values may be missing: nowhere; in all rows of a backbone; in any row.
_COMPLETE = ("backbone", "kind", "side", "sample")
_OF_MODELS = ("seed", "repeat", "fold")
_KNOWN_OR_NOT = ("group", "subject", "same_cell")
_LIKE_SUBJECT = ("patient", "patientid", "subjectid", "case", "caseid")
_log = logging.getLogger(__name__)


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
        DataError: If there are fewer than two, no column `label`, or it is no DataFrame.
    """
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"Expected a DataFrame of predictions. Received: {type(frame).__name__}.")
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
    _check_columns(frame)
    result = frame.reset_index(drop=True)
    columns = [PREFIX + name for name in names]
    try:
        result[columns] = result[columns].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"The columns probability_<class> must hold numbers. {error}.") from None
    # Other spellings of the classes "0" and "1", by programs that keep labels as numbers.
    spellings = {f"{name}.0": name for name in names} | {"False": "0", "True": "1"}
    spellings = {text: name for text, name in spellings.items() if name in names} | {name: name for name in names}
    labels = result["label"].astype(object)
    known = labels.notna()  # images of a side that is not evaluated may have no label
    labels = labels[known].map(str)
    if unknown := sorted({*labels} - {*spellings}):
        raise DataError(
            f"The column label names classes that have no probability_ column: {', '.join(unknown[:5])}. Classes: "
            f"{', '.join(names)}. Samples without a label cannot be scored."
        )
    result["label"] = labels.map(spellings).astype(object).reindex(result.index).where(known, None)
    result = result.assign(**{name: value for name, value in _DEFAULTS.items() if name not in result})
    for name in (*_COMPLETE, *_OF_MODELS, *_KNOWN_OR_NOT):
        if name in result:
            result[name] = _validated_column(result, name)
    if unknown := sorted(set(result["kind"]) - set(_KINDS)):
        raise DataError(f"The column kind holds {' or '.join(map(repr, _KINDS))}. Received: {unknown[:5]}.")
    if "sample" in result:
        _check_samples(result)
    return result


def _check_columns(frame: pd.DataFrame) -> None:
    """Raise DataError if a column would be overlooked, or rows may not be scored together."""
    known = {"protocol", *_COMPLETE, *_OF_MODELS, *_KNOWN_OR_NOT} - {*frame}
    odd = {name: str(name).strip().lower() for name in frame if str(name).strip().lower() in known}
    if odd:
        raise DataError(f"Names of columns are in lower case: frame.rename(columns={odd}).")
    if len(twice := frame.columns[frame.columns.duplicated()]):
        raise DataError(f"The column {twice[0]!r} is there twice. Drop one of them.")
    if len(protocols := protocols_of(frame)) > 1:
        raise DataError(
            f"The predictions are of {len(protocols)} protocols: {', '.join(protocols)}. Choose one, "
            f'frame[frame["protocol"] == {protocols[0]!r}], or compare two of them by leukemia_dl.inflation.'
        )
    if "error" in frame and (unread := int((frame["error"].notna() & (frame["error"] != "")).sum())):
        raise DataError(
            f"{unread:,} of {len(frame):,} rows are images that could not be read, as their column error says. Drop "
            "these rows: frame[frame['error'].isna()]."
        )


def _validated_column(frame: pd.DataFrame, name: str) -> pd.Series:
    """Return an optional column, as text unless it identifies fitted models."""
    column, missing = frame[name], frame[name].isna()
    if name in _OF_MODELS:
        share = missing.groupby(frame["backbone"]).mean()
        if len(partly := share.index[share.between(0, 1, inclusive="neither")]):
            raise DataError(f"Some predictions of {partly[0]} have no {name}, others have. Complete the column {name}.")
        return column
    column = column.astype(object).map(str)
    if name in _KNOWN_OR_NOT:
        missing |= column.map(is_unknown).astype(bool)
    elif missing.any():
        count = f"{missing.sum():,} of {len(frame):,}"
        raise DataError(f"{count} predictions have no {name}. Complete the column {name}.")
    if name in ("group", "subject"):
        spelled: dict[str, str] = {}
        column = column.map(lambda text: spelled.setdefault(name_key(text), text))
    return column.where(~missing, None)


def _check_samples(frame: pd.DataFrame) -> None:
    """Raise DataError if a sample has two labels or groups on one side."""
    keys = [name for name in ("side", "sample") if name in frame]
    for fact in [name for name in ("label", "group", "subject") if name in frame]:
        different = frame.drop_duplicates([*keys, fact])
        twice = different[different.duplicated(keys, keep=False)].sort_values(keys, kind="stable")
        if len(twice):
            values = f"two values of {fact}: {twice[fact].iloc[0]!r} and {twice[fact].iloc[1]!r}"
            sample = twice["sample"].iloc[0]
            raise DataError(f"Sample {sample!r} has {values}. The predictions are of different data.")


def select_side(frame: pd.DataFrame, side: str) -> pd.DataFrame:
    """Return the rows of one side of a validated frame; all of them if it has no column `side`."""
    chosen = frame[frame["side"] == side] if "side" in frame else frame
    if missing := int(chosen["label"].isna().sum()):
        raise DataError(f"{missing:,} of {len(chosen):,} predictions without a label cannot be scored.")
    if chosen.empty and "side" in frame:
        there = ", ".join(dict.fromkeys(frame["side"])) or "no rows at all"
        raise DataError(f"There are no predictions of the side {side!r}. The column side has: {there}.")
    if chosen.empty:
        raise DataError("The frame of predictions is empty. Were two tables joined that spell a path differently?")
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
    groups, named = groups_of(chosen), "sample" in chosen
    samples = chosen["sample"].to_numpy(dtype=object) if named else np.array([f"row {i}" for i in chosen.index], object)
    everything = replace(Run.of(*arrays_of(chosen)), samples=samples)
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


def model_keys(frame: pd.DataFrame) -> list[str]:
    """Return the columns that identify a fitted model."""
    return ["backbone", *(name for name in _OF_MODELS if name in frame)]


def chosen_elsewhere(
    frame: pd.DataFrame, chosen_on: str, side: str, choose: Callable[[pd.DataFrame], float]
) -> pd.DataFrame:
    """Return the rows of one side of a validated frame, with the choice for their model on another side in `CHOSEN`.

    `choose` gets the rows of one fitted model on the side `chosen_on`.
    """
    if chosen_on == side:
        raise SettingsError(f"A choice on the tested side {side!r} looks better than it is: take another side.")
    if "side" not in frame:
        raise DataError("To choose on one side and test on another, the predictions need a column side.")
    tested, other = select_side(frame, side), select_side(frame, chosen_on)
    models_of(tested, side)  # checks
    arrays_of(other)  # checks
    keys = model_keys(frame)
    if "sample" in frame:
        images = [*keys, "sample"]
        if other.duplicated(images).any():
            raise DataError(f"An image of the side {chosen_on!r} is there twice for one model.")
        if len(tested[images].merge(other[images])):
            raise DataError(f"Images of the side {side!r} are among those of the side {chosen_on!r} of one model.")
    groups = other.groupby(keys, dropna=False, sort=False)
    chosen = [dict(zip(keys, key, strict=True)) | {CHOSEN: choose(rows)} for key, rows in groups]
    table = pd.DataFrame(chosen).astype({name: tested[name].dtype for name in keys})
    joined = tested.merge(table, on=keys, how="left")
    if joined[CHOSEN].isna().any():
        missing = joined.loc[joined[CHOSEN].isna(), "backbone"].iloc[0]
        raise DataError(f"{missing} has predictions of the side {side!r} without any of the side {chosen_on!r}.")
    return joined
