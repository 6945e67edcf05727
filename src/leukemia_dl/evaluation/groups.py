"""One verdict per group of subjects, and where the errors are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from leukemia_dl.checks import real_number
from leukemia_dl.errors import DataError
from leukemia_dl.evaluation.predictions import PREFIX, Model, class_names_of, models_of, select_side, tidy

__all__ = ["error_list", "evaluate_groups", "group_table"]

_RULES = ("mean_probability", "majority_vote")


def group_table(frame: pd.DataFrame, side: str = "test") -> pd.DataFrame:
    """Return what each backbone says of each group: a row per backbone and group, of each backbone most wrong first.

    Predictions of all seeds are taken together. `by_mean_probability` is the class of the highest mean probability,
    `by_majority_vote` the class predicted most often (of equals, the one of higher mean probability).

    Args:
        frame: The prediction frame, see `evaluate`.
        side: Which rows of the column `side`.

    Returns:
        `backbone, group, label` (NA if the group has several), `images, predictions, errors, error_share`, the verdicts
        `by_mean_probability` and `by_majority_vote` (class names), and the mean of each `probability_<class>`.

    Raises:
        DataError: If nothing is known of subjects.
    """
    frame = tidy(frame)
    names = class_names_of(frame)
    return pd.concat([_of_model(model, names) for model in _grouped(frame, side)], ignore_index=True)


def evaluate_groups(frame: pd.DataFrame, level: float = 0.95, side: str = "test") -> pd.DataFrame:
    """Return how often the verdict on a whole group is right, with exact intervals.

    Predictions of all seeds are taken together, as a committee. Groups with images of several classes have no verdict
    and are left out (column `reason`).

    Args:
        frame: The prediction frame, see `evaluate`.
        level: Of the intervals (Clopper and Pearson 1934).
        side: Which rows of the column `side`.

    Returns:
        A row per backbone, rule ("mean_probability", "majority_vote") and metric (accuracy; with two classes also
        sensitivity and specificity): `backbone, rule, metric, value, low, high, right, groups, reason`.

    Raises:
        DataError: If nothing is known of subjects.
    """
    real_number("level", level, 0.5, 1, "[)")
    names, table = class_names_of(frame), group_table(frame, side)
    rows: list[dict[str, Any]] = []
    for backbone, part in table.groupby("backbone", sort=False):
        pure = part[part["label"].notna()]
        mixed = f"{len(part) - len(pure)} groups with images of several classes are left out"
        of_class = {"accuracy": pure} | (
            {"sensitivity": pure[pure["label"] == names[1]], "specificity": pure[pure["label"] == names[0]]}
            if len(names) == 2
            else {}
        )
        for rule in _RULES:
            for metric, groups in of_class.items():
                right = int((groups[f"by_{rule}"] == groups["label"]).sum())
                row = {"backbone": backbone, "rule": rule, "metric": metric}
                reason = mixed if len(pure) < len(part) else ""
                rows.append(row | _exact(right, len(groups), level) | {"reason": reason if len(groups) else "no group"})
    return pd.DataFrame(rows)


def error_list(frame: pd.DataFrame, side: str = "test") -> pd.DataFrame:
    """Return the predictions that are wrong, by backbone, those of the group with the most errors first.

    Args:
        frame: The prediction frame, see `evaluate`; groups need not be known.
        side: Which rows of the column `side`.

    Returns:
        Its rows that are wrong, with `predicted` (class name), `confidence` (its probability) and `errors_in_group` (in
        all seeds); within a group the surest errors first.

    Raises:
        DataError: If the frame is not one of predictions.
    """
    frame = tidy(frame)
    names, chosen = class_names_of(frame), select_side(frame, side)
    models_of(frame, side)  # checks
    probabilities = chosen[[PREFIX + name for name in names]].to_numpy(dtype=np.float64)
    predicted = np.asarray(names, dtype=object)[probabilities.argmax(axis=1)]
    found = chosen.assign(predicted=predicted, confidence=probabilities.max(axis=1))
    found = found[found["predicted"] != found["label"]].reset_index(drop=True)
    unit = next((name for name in ("group", "subject") if name in found and found[name].notna().all()), None)
    if unit is not None:
        found["errors_in_group"] = found.groupby(["backbone", unit])[unit].transform("size").astype(np.int64)
        order, rising = ["backbone", "errors_in_group", unit, "confidence"], [True, False, True, False]
    else:
        order, rising = ["backbone", "confidence"], [True, False]
    return found.sort_values(order, ascending=rising, kind="stable", ignore_index=True)


def _grouped(frame: pd.DataFrame, side: str) -> list[Model]:
    models = models_of(frame, side)
    if not models[0].by_group:
        raise DataError("Nothing is known of subjects: the predictions need a column group or subject without gaps.")
    return models


def _of_model(model: Model, names: tuple[str, ...]) -> pd.DataFrame:
    units, k = len(model.units), len(names)
    votes, labels, means = (np.zeros((units, k)) for _ in range(3))
    for run in model.runs:
        votes += np.bincount(run.unit * k + run.predicted, minlength=units * k).reshape(units, k)
        labels += np.bincount(run.unit * k + run.labels, minlength=units * k).reshape(units, k)
        np.add.at(means, run.unit, run.probabilities)
    counts = labels.sum(axis=1)
    means = np.round(means / counts[:, None], 12)  # so that rounding does not decide between equals
    right = np.zeros(units)
    for run in model.runs:
        right += np.bincount(run.unit, run.predicted == run.labels, units)
    classes = np.array(names, dtype=object)
    label = classes[labels.argmax(axis=1)]
    label[(labels > 0).sum(axis=1) > 1] = None
    table = pd.DataFrame(
        {
            "backbone": model.name,
            "group": list(model.units),
            "label": label,
            "images": [
                len(set(np.concatenate([run.samples[run.unit == u] for run in model.runs]))) for u in range(units)
            ],
            "predictions": counts.astype(np.int64),
            "errors": (counts - right).astype(np.int64),
            "error_share": 1 - right / counts,
            "by_mean_probability": classes[means.argmax(axis=1)],
            # Shares of votes differ by at least one vote; the mean only decides between equals.
            "by_majority_vote": classes[(votes + means / 2).argmax(axis=1)],
            **{PREFIX + name: means[:, code] for code, name in enumerate(names)},
        }
    )
    return table.sort_values("error_share", ascending=False, kind="stable", ignore_index=True)


def _exact(right: int, count: int, level: float) -> dict[str, Any]:
    if not count:
        return {"value": np.nan, "low": np.nan, "high": np.nan, "right": 0, "groups": 0}
    interval = stats.binomtest(right, count).proportion_ci(level, method="exact")
    ends = {"low": float(interval.low), "high": float(interval.high)}
    return {"value": right / count} | ends | {"right": right, "groups": count}
