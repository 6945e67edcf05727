"""The prediction frame, checked once and turned into arrays: one `Run` per backbone and seed."""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation.metrics import Floats, Ints, Run, as_arrays
from leukemia_dl.identity import is_unknown, name_key

PREFIX, FEWEST_GROUPS, FEWEST_EFFECTIVE = "probability_", 5, 3.0
_KINDS = ("backbone", "baseline", "tta", "ensemble")
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
    unit: Literal["group", "image"]
    named: bool = True


def class_names_of(frame: pd.DataFrame) -> tuple[str, ...]:
    """Return the classes that the columns `probability_<class>` of `frame` name, in order; the second is positive.

    DataError if there are fewer than two, no column `label`, or it is no DataFrame.
    """
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"Expected a DataFrame of predictions. Received: {type(frame).__name__}.")
    names = tuple(str(column)[len(PREFIX) :] for column in frame.columns if str(column).startswith(PREFIX))
    if len(names) < 2:
        wanted = "a column label and a column probability_<class> for each of at least two classes"
        raise DataError(f"A prediction frame has {wanted}. Received: {', '.join(map(str, frame.columns))}.")
    if "label" not in frame:
        key = "path" if "path" in frame and "sample" not in frame else "sample"
        join = f"predictions.merge(truth[[{key!r}, 'label']], on={key!r})"
        raise DataError(f"The predictions have no column label, the true class. Join it from a table: {join}.")
    return names


def validated_predictions(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a checked prediction frame, with text where names are, float64 probabilities, and a plain index.

    DataError if a column is missing or damaged, a sample has two labels or groups, or there are several protocols.
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
    labelled = labels.notna()  # images of a side that is not evaluated may have no label
    labels = labels[labelled].map(str)
    if unknown := sorted({*labels} - {*spellings}):
        known = f"Classes: {', '.join(names)}. Samples without a label cannot be scored"
        raise DataError(f"Labels without a probability_ column: {', '.join(unknown[:5])}. {known}.")
    result["label"] = labels.map(spellings).astype(object).reindex(result.index).where(labelled, None)
    result = result.assign(**{name: value for name, value in _DEFAULTS.items() if name not in result})
    for name in (*_COMPLETE, *_OF_MODELS, *_KNOWN_OR_NOT):
        if name in result:
            result[name] = _validated_column(result, name)
    if unknown := sorted(set(result["kind"]) - set(_KINDS)):
        raise DataError(f"The column kind holds {' or '.join(map(repr, _KINDS))}. Received: {unknown[:5]}.")
    keys = [name for name in ("side", "sample") if name in result]
    for fact in [name for name in ("label", "group", "subject") if "sample" in keys and name in result]:
        different = result.drop_duplicates([*keys, fact])
        twice = different[different.duplicated(keys, keep=False)].sort_values(keys, kind="stable")
        if len(twice):
            values = " and ".join(map(repr, twice[fact].iloc[:2]))
            sample = twice["sample"].iloc[0]
            raise DataError(f"Sample {sample!r} has two values of {fact}: {values}. They are of different data.")
    return result


def _check_columns(frame: pd.DataFrame) -> None:
    """Raise DataError if a column would be overlooked, or rows may not be scored together."""
    known = {"protocol", *_COMPLETE, *_OF_MODELS, *_KNOWN_OR_NOT} - {*frame}
    if odd := {name: str(name).strip().lower() for name in frame if str(name).strip().lower() in known}:
        raise DataError(f"Names of columns are in lower case: frame.rename(columns={odd}).")
    if len(twice := frame.columns[frame.columns.duplicated()]):
        raise DataError(f"The column {twice[0]!r} is there twice. Drop one of them.")
    if len(protocols := list(dict.fromkeys(map(str, frame.get("protocol", ()))))) > 1:
        raise DataError(
            f"The predictions are of {len(protocols)} protocols: {', '.join(protocols)}. Choose one, "
            f'frame[frame["protocol"] == {protocols[0]!r}], or compare two of them by leukemia_dl.inflation.'
        )
    if "error" in frame and (unread := int((frame["error"].notna() & (frame["error"] != "")).sum())):
        found = f"{unread:,} of {len(frame):,} rows are images that could not be read, as their column error says"
        raise DataError(f"{found}. Drop these rows: frame[frame['error'].isna()].")


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
        missing |= column.map({text: is_unknown(text) for text in column.unique()}).astype(bool)
    elif missing.any():
        count = f"{missing.sum():,} of {len(frame):,}"
        raise DataError(f"{count} predictions have no {name}. Complete the column {name}.")
    if name in ("group", "subject"):
        spelled: dict[str, str] = {}
        column = column.map({text: spelled.setdefault(name_key(text), text) for text in column.unique()})
    return column.where(~missing, None)


def select_side(frame: pd.DataFrame, side: str) -> pd.DataFrame:
    """Return the rows of one side of a validated frame; all of them if it has no column `side`."""
    chosen = frame[frame["side"] == side] if "side" in frame else frame
    if missing := int(chosen["label"].isna().sum()):
        raise DataError(f"{missing:,} of {len(chosen):,} predictions without a label cannot be scored.")
    if chosen.empty:
        there = ", ".join(dict.fromkeys(frame["side"])) if "side" in frame else ""
        raise DataError(f"There are no predictions of the side {side!r}. The frame has: {there or 'no rows at all'}.")
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

    DataError if there are no rows, a sample is there twice in one run, or a group is not known for all.
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
    there = list(dict.fromkeys(chosen["backbone"]))
    wanted = there if only is None else [only] if isinstance(only, str) else list(only)
    if not wanted or not set(wanted) <= set(there) or len(set(wanted)) < len(wanted):
        known = f"Name backbones that there are predictions of, each once: {', '.join(there)}"
        raise SettingsError(f"{known}. Received: {wanted!r}.")
    runs = chosen.groupby(keys, dropna=False, sort=False).ngroup() if keys else pd.Series(0, index=chosen.index)
    models = []
    for name in wanted:
        rows = np.flatnonzero(chosen["backbone"] == name)
        run = runs.to_numpy()[rows]
        if groups is None and not named and (run != run[0]).any():
            raise DataError("With several seeds and unknown subjects, the predictions need a column sample.")
        # In the order of their names, so that the order of rows does not change which units form a block.
        codes, units = pd.factorize((samples if groups is None else groups)[rows], sort=True)
        own = replace(everything.at(rows), unit=codes.astype(np.int64))
        parts = tuple(own.at(run == number) for number in dict.fromkeys(run))
        unit: Literal["group", "image"] = "image" if groups is None else "group"
        models.append(Model(name, chosen["kind"].iloc[rows[0]], parts, tuple(units), unit, named))
    return models


def arrays_of(frame: pd.DataFrame) -> tuple[Ints, Floats]:
    """Return the labels (n,) and probabilities (n, classes) of a validated frame, checked."""
    names = class_names_of(frame)
    codes = pd.Index(names).get_indexer(pd.Index(frame["label"]))
    return as_arrays(codes, frame[[PREFIX + name for name in names]])


def model_keys(frame: pd.DataFrame) -> list[str]:
    """Return the columns that identify a fitted model."""
    return ["backbone", *(name for name in _OF_MODELS if name in frame)]
