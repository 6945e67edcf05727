"""Curves, against scikit-learn, and their bands, against the interval of the metric that a point is."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from sklearn import calibration, metrics

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import evaluate, precision_recall_curves, reliability_curves, roc_curves
from predictions import clustered, scored

FRAME = clustered()


def as_frame(labels, probabilities):
    names = [f"c{code}" for code in range(probabilities.shape[1])]
    columns = {f"probability_{name}": probabilities[:, code] for code, name in enumerate(names)}
    return pd.DataFrame({"label": [names[code] for code in labels], **columns})


@settings(deadline=None)
@given(scored(classes=2))
def test_the_roc_curve_is_scikit_learns(drawn):
    labels, probabilities = drawn
    found = roc_curves(as_frame(labels, probabilities))
    if len(set(labels)) < 2:
        assert found["y"].isna().all()
        return
    rates, found_rates, _ = metrics.roc_curve(labels, probabilities[:, 1], drop_intermediate=False)
    np.testing.assert_allclose(found["y"], np.interp(found["x"], rates, found_rates), atol=1e-9)


@settings(deadline=None)
@given(scored(classes=2))
def test_precision_is_that_of_the_highest_threshold_that_reaches_a_recall(drawn):
    labels, probabilities = drawn
    found = precision_recall_curves(as_frame(labels, probabilities))
    if len(set(labels)) < 2:
        assert found["y"].isna().all()
        return
    precision, recall, thresholds = metrics.precision_recall_curve(labels, probabilities[:, 1])
    for x, y in zip(found["x"], found["y"], strict=True):
        reach = np.flatnonzero(recall[:-1] >= x - 1e-9)
        assert y == pytest.approx(precision[reach[thresholds[reach].argmax()]])


@pytest.mark.parametrize("classes", [2, 3])
def test_the_area_is_the_metric_over_folds_seeds_and_classes(classes):
    random = np.random.default_rng(1)
    labels = random.integers(0, classes, 600)
    # Folds with unequal shares of classes, and unequally hard: a wrong weight of a fold moves the area.
    folds = (labels + (random.random(600) < 0.3) * random.integers(1, 3, 600)) % 3
    raw = random.random((600, classes)) + np.array([0.1, 0.7, 1.5])[folds, None] * np.eye(classes)[labels]
    frame = as_frame(labels, raw / raw.sum(axis=1, keepdims=True)).assign(fold=folds)
    frame["sample"] = [str(i) for i in range(600)]
    frame = pd.concat([frame.assign(seed=0), frame.assign(seed=1)])
    found = evaluate(frame, metrics=["auroc", "auprc"]).set_index("metric")["value"]
    roc, pr = (curves(frame, points=4001) for curves in (roc_curves, precision_recall_curves))
    assert np.trapezoid(roc["y"], roc["x"]) == pytest.approx(found["auroc"], abs=1e-3)
    assert pr["y"].iloc[1:].mean() == pytest.approx(found["auprc"], abs=1e-3)


def test_reliability_is_scikit_learns_and_counts_every_prediction():
    found = reliability_curves(FRAME[FRAME["backbone"] == "one"])
    one = FRAME[FRAME["backbone"] == "one"]
    share, mean = calibration.calibration_curve(one["label"] == "all", one["probability_all"], n_bins=10)
    np.testing.assert_allclose(found["y"], share)
    np.testing.assert_allclose(found["x"], mean)
    assert found["predictions"].sum() == len(one)


def test_a_band_is_the_interval_over_groups_of_the_same_share():
    """In one bin that holds everything, reliability is the prevalence; where all is said surely, accuracy."""
    frame = FRAME[FRAME["backbone"] == "one"].copy()
    always = frame.assign(probability_all=0.999, probability_hem=0.001)
    found = reliability_curves(always)
    assert found["y"].tolist() == [pytest.approx((frame["label"] == "all").mean())]
    # Class shares are held, so that there is no spread of the prevalence.
    assert found["low"].iloc[0] == pytest.approx(found["y"].iloc[0])
    positive = frame["probability_all"] > 0.5
    certain = frame.assign(probability_all=np.where(positive, 0.9, 0.1), probability_hem=np.where(positive, 0.1, 0.9))
    found = reliability_curves(certain)
    ppv, npv = (evaluate(frame, metrics=name).iloc[0] for name in ("ppv", "npv"))
    assert found["y"].tolist() == pytest.approx([1 - npv["value"], ppv["value"]])
    # A metric allows for patients of an unseen kind on the side of the errors; a share of events has no such side.
    assert ((found["low"] < found["y"]) & (found["y"] < found["high"])).all()
    assert found.loc[1, "high"] == pytest.approx(ppv["high"], abs=0.02)
    assert found.loc[0, "low"] == pytest.approx(1 - npv["high"], abs=0.02)


def test_a_bin_of_few_patients_gets_no_interval():
    frame = FRAME[FRAME["backbone"] == "one"].assign(probability_all=0.15)
    places = frame.groupby("group").head(1).index[:4]
    frame.loc[places, "probability_all"] = 0.95
    frame["probability_hem"] = 1 - frame["probability_all"]
    found = reliability_curves(frame)
    assert found["predictions"].tolist() == [len(frame) - 4, 4]
    assert found["low"].notna().tolist() == [True, False]


def test_bands_hold_their_curves_and_widen_with_the_correlation_within_groups():
    widths = []
    for correlation in (0.05, 0.8):
        frame = clustered(correlation=correlation)
        for curves in (roc_curves, precision_recall_curves, reliability_curves):
            found = curves(frame).dropna()
            assert (found["low"] <= found["y"] + 1e-12).all()
            assert (found["y"] <= found["high"] + 1e-12).all()
            assert found["low"].min() >= 0
            assert found["high"].max() <= 1
        middle = roc_curves(frame).dropna()
        widths.append((middle["high"] - middle["low"]).mean())
    assert widths[1] > 1.5 * widths[0]


def test_the_band_of_a_roc_curve_is_about_the_interval_of_the_sensitivity():
    """At the rate that the threshold .5 has; they differ in that the curve holds the rate, the metric the threshold."""
    frame = clustered(backbones=("one",), correlation=0.3)
    sensitivity, specificity = (evaluate(frame, metrics=name).iloc[0] for name in ("sensitivity", "specificity"))
    curve = roc_curves(frame, points=1001)
    at = curve.iloc[(curve["x"] - (1 - specificity["value"])).abs().argmin()]
    assert at["y"] == pytest.approx(sensitivity["value"], abs=5e-3)
    ratio = (at["high"] - at["low"]) / (sensitivity["high"] - sensitivity["low"])
    assert 0.5 < ratio < 2.5


def test_with_few_groups_there_is_a_curve_without_a_band():
    found = roc_curves(clustered(sizes=((30, 30), (30, 30, 30, 30, 30))))
    assert found["y"].notna().all()
    assert found[["low", "high"]].isna().all(axis=None)


def test_what_is_wrong_is_said():
    with pytest.raises(SettingsError, match="level"):
        precision_recall_curves(FRAME, level=95)
    with pytest.raises(DataError, match="no predictions of the side 'val'"):
        roc_curves(FRAME, side="val")


def test_a_fold_without_negatives_counts_in_precision_as_it_does_in_average_precision():
    frame = pd.DataFrame({"probability_b": [0.4, 0.4, 0.8, 0.8, 0.8], "label": list("abbbb"), "fold": [0, 0, 1, 1, 1]})
    frame = frame.assign(probability_a=1 - frame["probability_b"], sample=list("vwxyz"))
    frame = frame[["label", "fold", "sample", "probability_a", "probability_b"]]
    assert evaluate(frame, metrics="auprc")["value"].tolist() == [0.875]
    assert precision_recall_curves(frame, points=3)["y"].tolist() == [0.875] * 3


def test_a_bin_in_which_all_happens_gets_the_exact_bound_of_its_own_patients():
    frame = FRAME[FRAME["backbone"] == "one"].assign(probability_all=0.15)
    inside = frame["group"].isin([f"g{i}" for i in range(6)])  # of 28 patients, and leukemic
    frame.loc[inside, "probability_all"] = 0.95
    row = reliability_curves(frame.assign(probability_hem=lambda f: 1 - f["probability_all"])).iloc[1]
    assert (row["y"], row["high"]) == (1, 1)
    assert row["low"] == pytest.approx(0.025 ** (1 / 6))
