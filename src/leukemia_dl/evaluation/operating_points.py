"""Decisions by a limit that is chosen on one side and tested on another: thresholds, and when to abstain."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from leukemia_dl.checks import real_number
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import predictions
from leukemia_dl.evaluation.calibration import CHOSEN, checked_arrays, chosen_elsewhere, conformal_limit, threshold_of
from leukemia_dl.evaluation.evaluate import check_settings, evaluate
from leukemia_dl.evaluation.predictions import PREFIX, class_names_of, model_keys

_SHOWN = ("sensitivity", "specificity", "ppv", "npv", "accuracy", "balanced_accuracy")


def operating_points(
    frame: pd.DataFrame, *, sensitivity: float | None = None, specificity: float | None = None,
    thresholds_from: str = "val", side: str = "test", level: float = 0.95,
) -> pd.DataFrame:  # fmt: skip
    """Return the metrics of a threshold on the positive class's probability that keeps a sensitivity, or a specificity.

    Each fitted model (fold and seed) gets its own threshold, from its predictions of another side: the highest one with
    at least the `sensitivity` asked for, or the lowest one with the `specificity`. An image is positive from the
    threshold on. The target need not hold on the tested side. `thresholds_from` is the side to choose on: "val", or the
    name of a side with out-of-fold predictions. `frame` is of two classes; `side` and `level` are those of `evaluate`.

    Returns:
        A row per backbone and metric: `backbone, target, threshold` (mean over models), `threshold_lowest,
        threshold_highest`, and the columns of `evaluate`. Where a class has fewer than five groups to choose on, or an
        effective number of them below 3, values are NaN, and `reason` says so.

    Raises:
        SettingsError, DataError: For none or two targets; for frames that lack one of two classes on a side.
    """
    check_settings(level)
    if (sensitivity is None) == (specificity is None):
        raise SettingsError("Give one target: sensitivity=0.95, for instance, or specificity=0.95.")
    frame = predictions.validated_predictions(frame)
    names = class_names_of(frame)
    if len(names) != 2:
        raise DataError(f"An operating point needs two classes. Received: {', '.join(names)}.")
    target, own = ("specificity", names[0]) if sensitivity is None else ("sensitivity", names[1])
    wanted = real_number(target, specificity if sensitivity is None else sensitivity, 0, 1, "(]")
    negative, positive = (PREFIX + name for name in names)
    reasons = dict[str, str]()

    def choose(rows: pd.DataFrame) -> float:
        if few := checked_arrays(*predictions.arrays_of(rows), predictions.groups_of(rows))[2]:
            reasons[rows["backbone"].iloc[0]] = f"no threshold is chosen on {thresholds_from}: {few}"
            return 0.5
        scores = np.sort(rows.loc[rows["label"] == own, positive].to_numpy(dtype=np.float64))
        return threshold_of(scores, wanted, at_least=target == "sensitivity")

    tested = chosen_elsewhere(frame, thresholds_from, side, choose)
    above = (tested[positive] >= tested[CHOSEN]).astype(np.float64)
    # As probabilities of 0 and 1, the threshold's verdicts are scored like any prediction.
    result = evaluate(tested.assign(**{negative: 1 - above, positive: above}), metrics=_SHOWN, level=level, side=side)
    thresholds = tested.drop_duplicates(model_keys(tested)).groupby("backbone")[CHOSEN]
    shown = pd.DataFrame(thresholds.agg(threshold="mean", threshold_lowest="min", threshold_highest="max"))
    shown.insert(0, "target", f"{target} {wanted:g}")
    return _finished(result, shown, reasons, frame, thresholds_from, side)


def accuracy_at_coverage(
    frame: pd.DataFrame, coverages: float | Sequence[float] = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5), *,
    thresholds_from: str = "val", side: str = "test", level: float = 0.95,
) -> pd.DataFrame:  # fmt: skip
    """Return the accuracy on the images that a model is surest of: the reject option.

    Each fitted model rejects below a confidence (probability of the predicted class) at which the wanted share of the
    side `thresholds_from` is kept. The column `coverage` is the share of the tested `side` that is kept, and `patients`
    the share of groups that keep an image. `coverages` lie in (0, 1]; `frame` and `level` are those of `evaluate`.

    Returns:
        A row per backbone and coverage: `backbone, wanted, coverage, patients` (NaN if unknown), `threshold` (mean over
        models), and the columns of `evaluate` for accuracy on the images kept: NaN, with a `reason`, if one has none.
    """
    check_settings(level)
    frame = predictions.validated_predictions(frame)
    columns = [PREFIX + name for name in class_names_of(frame)]
    order = list(dict.fromkeys(predictions.select_side(frame, side)["backbone"]))
    parts = []
    given = np.atleast_1d(np.asarray(coverages, dtype=object))
    for wanted in [real_number("coverages", coverage, 0, 1, "(]") for coverage in given]:

        def choose(rows: pd.DataFrame, wanted: float = wanted) -> float:
            return 0.0 if wanted == 1 else threshold_of(np.sort(rows[columns].max(axis=1)), wanted, at_least=True)

        tested = chosen_elsewhere(frame, thresholds_from, side, choose)
        kept = tested[tested[columns].max(axis=1) >= tested[CHOSEN]]
        if kept.empty:
            continue
        result = evaluate(kept, metrics="accuracy", level=level, side=side)
        thresholds = tested.drop_duplicates(model_keys(tested)).groupby("backbone")[CHOSEN].mean()
        share = kept.groupby("backbone").size() / tested.groupby("backbone").size()
        found = {"wanted": wanted, "coverage": share, "patients": _patients_left(kept, tested), "threshold": thresholds}
        nets = tested.groupby(model_keys(tested), dropna=False).ngroup()
        silent = dict.fromkeys(tested.loc[~nets.isin(nets[kept.index]), "backbone"], "a net keeps no image")
        parts.append(_finished(result, pd.DataFrame(found), silent, frame, thresholds_from, side))
    joined = pd.concat(parts) if parts else pd.DataFrame({"backbone": []})
    return joined.sort_values("backbone", key=lambda column: column.map(order.index), kind="stable", ignore_index=True)


def conformal_sets(
    frame: pd.DataFrame, coverage: float = 0.9, *, thresholds_from: str = "val", side: str = "test",
    level: float = 0.95,
) -> pd.DataFrame:  # fmt: skip
    """Return how often the set of an image's possible classes holds the right one, and how often it is a single class.

    A class is possible from a limit on its probability on, which each fitted model gets from the side
    `thresholds_from`. For a random image of a new patient the right class is then possible with a probability of at
    least `coverage`, if patients are exchangeable. Each counts once, however many images it has (Lee, Barber and
    Willett 2023, arXiv:2306.06342). Without patients, images are taken as exchangeable. `frame`, `side` and `level` are
    those of `evaluate`.

    Returns:
        A row per backbone: `wanted`, `threshold` (mean over models), `single` (share of images with one possible
        class), `patients` (share of groups with such an image, NaN if unknown), `accuracy_single` (on these images).
        The columns of `evaluate` are of the share of images whose class is possible, each patient counted once. Values
        are NaN where a model has too few groups to choose on, and `reason` says so.
    """
    check_settings(level)
    wanted = real_number("coverage", coverage, 0, 1, "()")
    frame = predictions.validated_predictions(frame)
    names, reasons = class_names_of(frame), dict[str, str]()
    columns = [PREFIX + name for name in names]

    def choose(rows: pd.DataFrame) -> float:
        labels, probabilities = predictions.arrays_of(rows)
        own = probabilities[np.arange(len(labels)), labels]
        limit, reason = conformal_limit(own, predictions.groups_of(rows), wanted)
        if limit is None:
            reasons[rows["backbone"].iloc[0]] = f"no limit is chosen on {thresholds_from}: {reason}"
        return 0.0 if limit is None else limit

    tested = chosen_elsewhere(frame, thresholds_from, side, choose)
    labels, probabilities = predictions.arrays_of(tested)
    possible = probabilities >= tested[CHOSEN].to_numpy()[:, None]
    covered, single = possible[np.arange(len(labels)), labels], possible.sum(axis=1) == 1
    # Coverage is scored as an accuracy: of predictions that are right where the right class is possible.
    right = np.eye(len(names))[np.where(covered, labels, (labels + 1) % len(names))]
    metric = "patient_accuracy" if predictions.unit_column(tested) else "accuracy"
    result = evaluate(tested.assign(**dict(zip(columns, right.T, strict=True))), metrics=metric, level=level, side=side)
    correct = np.where(single, probabilities.argmax(axis=1) == labels, np.nan)
    shares = pd.DataFrame({"single": single, "accuracy_single": correct}).groupby(tested["backbone"]).mean()
    thresholds = tested.drop_duplicates(model_keys(tested)).groupby("backbone")[CHOSEN].mean()
    shares = shares.assign(wanted=wanted, threshold=thresholds, patients=_patients_left(tested[single], tested))
    shares = shares[["wanted", "threshold", "single", "patients", "accuracy_single"]]
    return _finished(result.assign(metric="coverage"), shares, reasons, frame, thresholds_from, side)


def _patients_left(kept: pd.DataFrame, tested: pd.DataFrame) -> pd.Series:
    """Return the share of groups of which a row is left, by backbone; empty where groups are unknown."""
    unit = predictions.unit_column(tested)
    if unit is None:
        return pd.Series(dtype=float)
    left, all_of = (rows.groupby("backbone")[unit].nunique() for rows in (kept, tested))
    return left.reindex(all_of.index, fill_value=0) / all_of


def _finished(
    result: pd.DataFrame, found: pd.DataFrame, reasons: dict[str, str], frame: pd.DataFrame, one: str, other: str
) -> pd.DataFrame:
    """Return a result with columns by backbone, reasons in place of values, and a note on groups on both sides."""
    for place, name in enumerate(found, 1):
        result.insert(place, str(name), result["backbone"].map(found[name]))
    unchosen = result["backbone"].isin(list(reasons))
    numbers = result.select_dtypes("float").columns.drop(["wanted", "prevalence"], errors="ignore")
    result.loc[unchosen, numbers] = np.nan
    result.loc[unchosen, "reason"] = result["backbone"].map(reasons)
    if unit := predictions.unit_column(frame):
        keys = [unit, *model_keys(frame)]
        sides = [frame.loc[frame["side"] == side, keys].dropna(subset=unit).drop_duplicates() for side in (one, other)]
        if count := sides[0].merge(sides[1])[unit].nunique():
            note = f"{count} groups are on the sides {one!r} and {other!r}: too good"
            result["reason"] = [f"{why}; {note}".removeprefix("; ") for why in result["reason"]]
    return result
