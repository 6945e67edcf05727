"""Thresholds and temperatures: chosen on one side of the data and used on another, one per fitted model."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation.predictions import arrays_of, models_of, select_side

__all__ = ["CHOSEN", "chosen_elsewhere", "model_keys"]

CHOSEN = "_chosen"


def model_keys(frame: pd.DataFrame) -> list[str]:
    """Return the columns that identify a fitted model."""
    return ["backbone", *(name for name in ("seed", "repeat", "fold") if name in frame)]


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
    tested, other = (select_side(frame, name).drop(columns=CHOSEN, errors="ignore") for name in (side, chosen_on))
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
