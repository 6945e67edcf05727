"""Predictions of whole patients: the images of each are combined by a rule that is chosen on the val side."""

import logging

import numpy as np
import pandas as pd

from leukemia_dl.checks import choice
from leukemia_dl.errors import DataError
from leukemia_dl.evaluation import predictions
from leukemia_dl.evaluation.metrics import Floats, score
from leukemia_dl.evaluation.predictions import FEWEST_GROUPS, PREFIX, arrays_of, class_names_of

RULES = {"mean": "mean probability", "majority": "share of images predicted so"}
_THRESHOLDS = {f"share {t:.1f}": t for t in np.arange(1, 10) / 10}  # of the positive class's probability
_log = logging.getLogger(__name__)


def patient_predictions(frame: pd.DataFrame, rule: str | None = None, side: str = "test") -> pd.DataFrame:
    """Return a prediction frame of patients (groups), which every function takes that takes one of images.

    A patient's probabilities are the means over its images (rule "mean"), or the shares of images predicted as each
    class ("majority"). By "share 0.7" (two classes; 0.1 to 0.9) they are the share of images whose probability of the
    positive class is at least 0.7. For None, each fitted model takes the rule with the highest balanced accuracy of
    patients on its val side (the first of equals), or "mean" where val has fewer than five patients of a class. For
    thresholds on the result see `operating_points`. Patients with images of several classes are left out (a warning).

    Args:
        frame: Predictions of images, with `group` or `subject`.
        rule: For all backbones; None to choose.
        side: The tested side, on which a patient's images in several folds are combined.

    Returns:
        A row per fitted model, side and patient: `sample` and `group` (its name), `label`, a `probability_<class>` per
        class, `images` (their number) and `rule`.

    Raises:
        DataError, SettingsError: If patients are not known; for another rule.
    """
    frame = predictions.validated_predictions(frame)
    unit = predictions.unit_column(frame)
    if unit is None:
        raise DataError("Nothing is known of patients: the predictions need a column group or subject without gaps.")
    if rule is not None:
        choice("rule", rule, (*RULES, *(_THRESHOLDS if len(class_names_of(frame)) == 2 else ())))
    frame = frame if "side" in frame else frame.assign(side=side)
    predictions.models_of(frame, side)  # checks
    arrays_of(frame[frame["label"].notna()])
    frame = frame[frame["label"].notna() & frame[unit].notna()]
    mixed = frame.groupby(["side", unit])["label"].transform("nunique") > 1
    if mixed.any():
        _log.warning("%d patients with images of several classes are left out", frame.loc[mixed, unit].nunique())
    parts = []
    for _, rows in frame[~mixed].groupby(predictions.model_keys(frame), dropna=False, sort=False):
        val = rows[rows["side"] == "val"]
        chosen, why = (rule, "as asked for") if rule else _chosen_rule(val, unit)
        parts.append(_scored(rows, chosen).assign(rule=f"{RULES.get(chosen, chosen)}, {why}"))
    if (mixed | (frame["side"] != side)).all():
        raise DataError(f"No patient of the side {side!r} has images of one class only.")
    scored = pd.concat(parts)
    keys = [name for name in ("backbone", "kind", "seed", "repeat", "side", unit) if name in scored]
    if "fold" in scored:
        first = scored.groupby(keys, dropna=False)["fold"].transform("min")
        scored["fold"] = scored["fold"].mask(scored["side"] == side, first)
        keys.append("fold")
    groups = scored.groupby(keys, dropna=False, sort=False)
    table = groups[[PREFIX + name for name in class_names_of(frame)]].mean()
    table = table.assign(label=groups["label"].first(), images=groups.size())
    table["rule"] = groups["rule"].agg(lambda rules: "; ".join(dict.fromkeys(rules)))
    return table.reset_index().assign(sample=lambda f: f[unit], group=lambda f: f[unit])


def _scored(rows: pd.DataFrame, rule: str) -> pd.DataFrame:
    columns = [PREFIX + name for name in class_names_of(rows)]
    shares: Floats = rows[columns].to_numpy(np.float64)
    if rule == "majority":
        shares = np.eye(len(columns))[shares.argmax(axis=1)]
    elif rule != "mean":
        shares = np.eye(2)[(shares[:, 1] >= _THRESHOLDS[rule]).astype(np.int64)]
    return rows.drop(columns=columns).join(pd.DataFrame(shares, rows.index, columns))


def _chosen_rule(rows: pd.DataFrame, unit: str) -> tuple[str, str]:
    """Return the rule with the highest balanced accuracy of patients on a val side, and how it was chosen."""
    names, found = class_names_of(rows), dict[str, float]()
    patients = rows.groupby("label")[unit].nunique().reindex(names, fill_value=0)
    if rows.empty or patients.min() < FEWEST_GROUPS:
        return "mean", f"for want of {FEWEST_GROUPS} patients of each class on val"
    for rule in [*RULES, *(_THRESHOLDS if len(names) == 2 else ())]:
        groups = _scored(rows, rule).groupby(unit)
        means = groups[[PREFIX + name for name in names]].mean()
        labels, probabilities = arrays_of(means.assign(label=groups["label"].first()))
        found[rule] = round(score(labels, probabilities)["balanced_accuracy"], 9)
    return max(found, key=lambda rule: found[rule]), "chosen on val"
