"""How many patients a study needs: from the variance between the groups of a pilot."""

import numpy as np
import pandas as pd
from scipy import stats

from leukemia_dl.checks import real_number
from leukemia_dl.errors import SettingsError
from leukemia_dl.evaluation.comparisons import compare
from leukemia_dl.evaluation.evaluate import evaluate
from leukemia_dl.evaluation.metrics import metric as find_metric
from leukemia_dl.evaluation.predictions import FEWEST_GROUPS

_MOST_GROUPS = 20_000


def plan_study(
    frame: pd.DataFrame, *, effect: float | None = None, width: float | None = None, metric: str = "accuracy",
    power: float = 0.8, level: float = 0.95, side: str = "test",
) -> pd.DataFrame:  # fmt: skip
    """Return how many groups of patients are needed to find a difference, or for an interval of some width.

    Sizes of groups, class shares and the variance between groups are those of the pilot. The variance of few groups is
    uncertain: take the result as an order of magnitude. The width is that of estimate +- t * standard error; intervals
    of `evaluate` may be wider, since they also allow for patients of an unseen kind.

    Args:
        frame: Predictions of the pilot; those of `evaluate`.
        effect: Difference between two backbones, not 0, to be found after the correction for all pairs of the frame.
        width: Width of the interval of one backbone; give this or `effect`.
        metric: Metric to compare, or to estimate.
        power: Probability that the difference is found.
        level: Of the interval; 1 - level is the significance level.
        side: Which rows of the frame.

    Returns:
        A row per pair, or per backbone: `groups_pilot`, `groups`, the number needed, from 10 on (NA beyond 20,000, or
        where the variance is unknown); `images`, at the pilot's mean number of images per group.

    Raises:
        SettingsError: For both or none of `effect` and `width`, and for values out of range.
    """
    if (effect is None) == (width is None):
        raise SettingsError(f"Give one of effect and width. Received: {effect=}, {width=}.")
    real_number("power", power, 0, 1, "()")
    if effect is not None:
        what = find_metric(metric)
        largest = what.highest - what.lowest if what.scale == "share" else np.inf
        effect = real_number("effect", abs(real_number("effect", effect, -largest, largest)), 0, largest, "()")
        rows = compare(frame, metric, level=level, estimand="models", side=side)
        pairs, names = max(int((rows["role"] == "confirmatory").sum()), 1), ["first", "second"]
    else:
        real_number("width", width, 0, np.inf, "()")
        rows = evaluate(frame, metrics=metric, level=level, estimand="models", side=side)
        pairs, names = 1, ["backbone"]
    groups, needed, pilots = np.arange(2 * FEWEST_GROUPS, _MOST_GROUPS + 1), [], rows["groups"].fillna(rows["images"])
    for row, pilot in zip(rows.to_dict("records"), pilots, strict=True):
        error = row["standard_error"] * np.sqrt(pilot / groups)
        df = np.maximum(row["degrees_of_freedom"] * groups / pilot, 1.0)
        quantile = stats.t.ppf(1 - (1 - level) / (2 * pairs), df)
        with np.errstate(invalid="ignore", divide="ignore"):
            wide = effect is None
            enough = 2 * quantile * error <= width if wide else stats.nct.sf(quantile, df, effect / error) >= power
        needed.append(int(groups[enough.argmax()]) if enough.any() and row["standard_error"] > 0 else pd.NA)
    table = rows[names].assign(metric=metric, effect=effect, width=width, power=power if effect else np.nan)
    table = table.dropna(axis="columns", how="all").assign(groups_pilot=pilots, groups=pd.array(needed, "Int64"))
    return table.assign(images=(table["groups"] * (rows["images"] / pilots)).round().astype("Int64"))
