"""What is chosen on one side of the data and used on another: thresholds and temperatures, one per fitted model."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation.predictions import PREFIX, as_arrays, class_names_of, models_of, select_side

__all__ = ["CHOSEN", "chosen_elsewhere", "shared_groups"]

CHOSEN = "_chosen"


def chosen_elsewhere(
    frame: pd.DataFrame, chosen_on: str, side: str, choose: Callable[[pd.DataFrame], float]
) -> pd.DataFrame:
    """Return the rows of one side, with what was chosen for their fitted model on another in the column `CHOSEN`.

    Args:
        frame: A tidy prediction frame; fitted models are told apart by backbone, seed, repeat and fold.
        chosen_on: Side to choose on.
        side: Side to return.
        choose: Called with the rows of one fitted model on the side `chosen_on`.

    Raises:
        SettingsError: If both sides are the same.
        DataError: If a side or a model's predictions are missing, or an image is on both sides of one model.
    """
    if chosen_on == side:
        raise SettingsError(
            "What is chosen on the images it is tested on looks better than it is: take another side. "
            f"Received: {chosen_on!r} for both."
        )
    if "side" not in frame:
        raise DataError("To choose on one side and test on another, the predictions need a column side.")
    tested, other = (select_side(frame, name).drop(columns=CHOSEN, errors="ignore") for name in (side, chosen_on))
    models_of(tested, side)  # checks
    names = class_names_of(other)
    as_arrays(pd.Index(names).get_indexer(pd.Index(other["label"])), other[[PREFIX + name for name in names]])
    keys = ["backbone", *(name for name in ("seed", "repeat", "fold") if name in frame)]
    if "sample" in frame and other.duplicated([*keys, "sample"]).any():
        raise DataError(f"An image of the side {chosen_on!r} is there twice for one model.")
    if "sample" in frame and len(tested[[*keys, "sample"]].merge(other[[*keys, "sample"]])):
        raise DataError(f"Images of the side {side!r} are among those of the side {chosen_on!r} of one model.")
    chosen = [
        dict(zip(keys, key, strict=True)) | {CHOSEN: choose(rows)}
        for key, rows in other.groupby(keys, dropna=False, sort=False)
    ]
    table = pd.DataFrame(chosen).astype({name: tested[name].dtype for name in keys})
    joined = tested.merge(table, on=keys, how="left")
    if joined[CHOSEN].isna().any():
        missing = joined.loc[joined[CHOSEN].isna(), "backbone"].iloc[0]
        raise DataError(f"{missing} has predictions of the side {side!r} without any of the side {chosen_on!r}.")
    return joined


def shared_groups(frame: pd.DataFrame, one: str, other: str) -> str:
    """Return a note if groups of subjects are on two sides of one fitted model, "" if not, or if nothing is known."""
    unit = next((name for name in ("group", "subject") if name in frame and frame[name].notna().any()), None)
    if unit is None:
        return ""
    keys = [unit, *(name for name in ("backbone", "seed", "repeat", "fold") if name in frame)]
    sides = [frame.loc[frame["side"] == side, keys].dropna(subset=unit).drop_duplicates() for side in (one, other)]
    count = sides[0].merge(sides[1])[unit].nunique()
    return f"{count} groups are on the sides {one!r} and {other!r}: too good" if count else ""
