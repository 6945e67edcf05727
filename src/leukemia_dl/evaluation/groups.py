"""One verdict per group of subjects, and the list of errors."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from scipy import stats

from leukemia_dl.errors import DataError
from leukemia_dl.evaluation.evaluate import check_settings
from leukemia_dl.evaluation.predictions import (
    PREFIX,
    arrays_of,
    class_names_of,
    models_of,
    select_side,
    unit_column,
    validated_predictions,
)

__all__ = ["error_list", "evaluate_groups", "group_table"]

_RULES = ("mean_probability", "majority_vote")


def group_table(frame: pd.DataFrame, side: str = "test") -> pd.DataFrame:
    """Return the verdicts of each backbone on each group, the group with the largest share of errors first.

    Predictions of all seeds are taken together. `by_mean_probability` is the class of the highest mean probability,
    `by_majority_vote` the class predicted most often (of equals, the one of higher mean probability). `frame` and
    `side` are those of `evaluate`.

    Returns:
        `backbone, group, label` (NA if the group has several), `images, predictions, errors, error_share`, the verdicts
        `by_mean_probability` and `by_majority_vote` (class names), and the mean of each `probability_<class>`.

    Raises:
        DataError: If subjects are unknown.
    """
    frame = validated_predictions(frame)
    if not models_of(frame, side)[0].by_group:
        raise DataError("Nothing is known of subjects: the predictions need a column group or subject without gaps.")
    rows, names = _predicted(frame, side), list(class_names_of(frame))
    order, unit = list(rows["backbone"].unique()), unit_column(rows)
    groups = rows.groupby(["backbone", unit])
    labels, count = groups["label"].agg(["first", "nunique"]), groups.size()
    # Rounded, so that errors of the last digit do not decide between equal means.
    means = groups[[PREFIX + name for name in names]].mean().round(12)
    votes = groups["predicted"].value_counts().unstack(fill_value=0).reindex(columns=names, fill_value=0)
    errors = count - groups["right"].sum()
    columns = {
        "label": labels["first"].where(labels["nunique"] == 1, None),
        "images": groups["sample"].nunique() if "sample" in rows else count,
        "predictions": count,
        "errors": errors,
        "error_share": errors / count,
        "by_mean_probability": means.set_axis(names, axis=1).idxmax(axis=1),
        # Votes differ by at least one; the mean, halved, only decides between equals.
        "by_majority_vote": (votes + means.set_axis(names, axis=1) / 2).idxmax(axis=1),
    }
    table = means.assign(**columns)[[*columns, *means]].rename_axis(["backbone", "group"]).reset_index()
    table = table.sort_values("error_share", ascending=False, kind="stable")
    return table.sort_values("backbone", key=lambda column: column.map(order.index), kind="stable", ignore_index=True)


def evaluate_groups(frame: pd.DataFrame, level: float = 0.95, side: str = "test") -> pd.DataFrame:
    """Return how often the verdict on a whole group is right, with exact intervals (Clopper and Pearson 1934).

    Predictions of all seeds are taken together, as a committee. Groups with images of several classes have no verdict
    and are left out (column `reason`). `frame`, `level` and `side` are those of `evaluate`.

    Returns:
        A row per backbone, rule ("mean_probability", "majority_vote") and metric (accuracy; with two classes also
        sensitivity and specificity): `backbone, rule, metric, value, low, high, unit` ("group"), `right, groups,
        reason`.
    """
    check_settings(level)
    names, table = class_names_of(frame), group_table(frame, side)
    of_class = {"sensitivity": names[1], "specificity": names[0]} if len(names) == 2 else {}
    rows = []
    for backbone, part in table.groupby("backbone", sort=False):
        pure = part[part["label"].notna()]
        left_out = len(part) - len(pure)
        mixed = f"{left_out} groups with images of several classes are left out" if left_out else ""
        for rule, metric in itertools.product(_RULES, ("accuracy", *of_class)):
            groups = pure[pure["label"] == of_class[metric]] if metric in of_class else pure
            right, count = int((groups[f"by_{rule}"] == groups["label"]).sum()), len(groups)
            value = low = high = np.nan
            if count:
                value = right / count
                low, high = stats.binomtest(right, count).proportion_ci(level, method="exact")
            row = {"backbone": backbone, "rule": rule, "metric": metric, "value": value, "low": low, "high": high}
            reason = mixed if count else "no group"
            rows.append(row | {"unit": "group", "right": right, "groups": count, "reason": reason})
    return pd.DataFrame(rows)


def error_list(frame: pd.DataFrame, side: str = "test") -> pd.DataFrame:
    """Return the wrong predictions, by backbone, those of the group with the most errors first.

    These are rows of `frame` on one `side`, with `predicted` (class name), `confidence` (its probability) and, where
    groups are known, `errors_in_group` (in all seeds); within a group the highest confidence first.
    """
    frame = validated_predictions(frame)
    models_of(frame, side)  # checks
    rows = _predicted(frame, side)
    found = rows[~rows["right"]].drop(columns="right")
    order = {"backbone": True, "confidence": False}
    if unit := unit_column(rows):
        found["errors_in_group"] = found.groupby(["backbone", unit])[unit].transform("size").astype(np.int64)
        order = {"backbone": True, "errors_in_group": False, unit: True, "confidence": False}
    return found.sort_values(list(order), ascending=list(order.values()), kind="stable", ignore_index=True)


def _predicted(frame: pd.DataFrame, side: str) -> pd.DataFrame:
    """Return the rows of one side with the predicted class, its probability, and whether it is right."""
    rows = select_side(frame, side)
    _, probabilities = arrays_of(rows)
    predicted = np.asarray(class_names_of(rows), dtype=object)[probabilities.argmax(axis=1)]
    return rows.assign(
        predicted=predicted, confidence=probabilities.max(axis=1), right=predicted == rows["label"].to_numpy()
    )
