"""Intervals at the edges: no error, one error, few groups, one patient with most images, predictions of one class."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from leukemia_dl.evaluation import evaluate
from predictions import clustered

SMALL = ((5, 9, 12, 30, 8, 20), (7, 3, 25, 11, 6))


def one(frame, metric, **settings):
    return evaluate(frame, metrics=metric, **settings).iloc[0]


def test_perfect_predictions_get_the_exact_bound_of_the_groups_that_a_metric_is_about():
    frame = clustered(SMALL, ["one"])
    right = frame["label"].eq("all").astype(float)
    frame["probability_all"], frame["probability_hem"] = right, 1 - right
    table = evaluate(frame).set_index("metric")
    assert (table.loc[["accuracy", "auroc", "sensitivity"], "high"] == 1).all()
    for name in ("accuracy", "balanced_accuracy", "auroc"):
        assert table.loc[name, "low"] == pytest.approx(stats.beta.ppf(0.025, 11, 1))
    # Of one class, all errors can only be on one side.
    assert table.loc["sensitivity", "low"] == pytest.approx(stats.beta.ppf(0.05, 6, 1))
    assert table.loc["specificity", "low"] == pytest.approx(stats.beta.ppf(0.05, 5, 1))
    assert table.loc["brier", "high"] == pytest.approx(1 - stats.beta.ppf(0.025, 11, 1))
    assert np.isnan(table.loc["loss", "low"])
    assert table.loc["loss", "reason"] == "the data do not bound it"


def test_precision_is_bounded_by_the_groups_with_such_predictions():
    """Two positive calls from two patients, both right: the exact bound of 2 of 2, and not of all groups."""
    frame = clustered(((6,) * 8, (6,) * 8), ["one"]).assign(probability_all=0.1, probability_hem=0.9)
    first = frame[frame["label"] == "all"].groupby("group").head(1).index[:2]
    frame.loc[first, ["probability_all", "probability_hem"]] = 0.9, 0.1
    row = one(frame, "ppv")
    assert (row["value"], row["high"]) == (1, 1)
    # False alarms of the other class by Bayes' theorem, whose recall may be as low as 0.05 ** (1 / 8).
    false = 48 * (1 - 0.05 ** (1 / 8))
    assert row["low"] == pytest.approx(min(0.025 ** (1 / 2), 2 / (2 + false)))
    rare = one(frame, "ppv", prevalence=0.01)
    assert rare["low"] == pytest.approx(2 / 48 * 0.01 / (2 / 48 * 0.01 + (1 - 0.05 ** (1 / 8)) * 0.99))


def right_in(frame, wrong):
    """Predictions that are right but for the first images, so many of each group."""
    number = frame.groupby("group").cumcount()
    right = number >= frame["group"].map(wrong).fillna(0)
    positive = (frame["label"].eq("all") == right) * 0.8 + 0.1
    return frame.assign(probability_all=positive, probability_hem=1 - positive)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 1), min_size=12, max_size=12), st.integers(0, 11), st.integers(1, 3))
def test_more_errors_never_tighten_the_side_of_the_errors(errors, group, more):
    frame = clustered(((5, 9, 12, 30, 8, 20), (7, 9, 25, 11, 6, 8)), ["one"])
    names = sorted(frame["group"].unique())
    before = dict(zip(names, errors, strict=True))
    after = before | {names[group]: before[names[group]] + more}
    metrics = ["accuracy", "balanced_accuracy", "sensitivity", "specificity"]
    fewer, many = (evaluate(right_in(frame, wrong), metrics=metrics)["low"] for wrong in (before, after))
    assert (many <= fewer + 1e-12).all()


def test_no_error_is_no_cliff():
    frame = clustered(((200,) * 16, (100,) * 12), ["one"])
    none, first = (one(right_in(frame, wrong), "accuracy") for wrong in ({}, {"g3": 1}))
    assert first["low"] == pytest.approx(none["low"], rel=1e-3)
    assert first["low"] < none["low"]


@settings(max_examples=20)
@given(st.integers(0, 100), st.randoms(use_true_random=False))
def test_an_interval_holds_its_value_lies_in_range_and_knows_no_names_and_no_order(seed, random):
    frame = clustered(SMALL, ["one"], seed=seed)
    names = list(frame["group"].unique())
    renamed = dict(zip(names, random.sample([f"patient {i}" for i in range(99)], len(names)), strict=True))
    order = random.sample(range(len(frame)), len(frame))
    table, other = evaluate(frame), evaluate(frame.iloc[order].assign(group=lambda f: f["group"].map(renamed)))
    known = table[table["low"].notna()].set_index("metric")
    assert ((known["low"] <= known["value"]) & (known["value"] <= known["high"])).all()
    bounded = known.drop(index=["loss", "balanced_loss", "calibration_slope", "calibration_intercept"], errors="ignore")
    lowest = np.where(bounded.index == "mcc", -1, 0)
    assert ((bounded["low"] >= lowest) & (bounded["high"] <= 1)).all()
    assert (known.loc[known.index.isin(["loss", "balanced_loss"]), "high"] < 34.6).all()
    for column in ("value", "low", "high"):
        np.testing.assert_allclose(table[column], other[column], rtol=1e-6, atol=1e-9)


def test_one_mixed_patient_changes_an_interval_by_little():
    frame = clustered(((30,) * 16, (30,) * 12), ["one"])
    place = frame.index[frame["group"] == frame["group"].iloc[0]][0]
    mixed = frame.copy()
    mixed.loc[place, "label"] = "hem"
    for name in ("accuracy", "balanced_accuracy", "specificity", "sensitivity"):
        before, after = one(frame, name), one(mixed, name)
        assert after["high"] - after["low"] == pytest.approx(before["high"] - before["low"], rel=0.15), name
        assert after["degrees_of_freedom"] == pytest.approx(before["degrees_of_freedom"], rel=0.15), name


def test_a_class_that_one_patient_owns_gets_no_interval():
    frame = clustered(((9, 9, 9, 9, 9, 900), (9,) * 8), ["one"])
    table = evaluate(frame).set_index("metric")
    assert table.loc["sensitivity", "reason"] == "effective number of groups below 3: 1.1 of class all"
    assert np.isnan(table.loc["sensitivity", "low"])
    assert np.isfinite(table.loc["specificity", "low"])


def test_the_design_effect_is_that_of_clustering():
    frame = clustered(((100,) * 20, (100,) * 20), ["one"], correlation=0.3)
    row = one(frame, "accuracy")
    assert row["icc"] == pytest.approx((row["design_effect"] - 1) / 99)
    assert 5 < row["design_effect"] < 45
    apart = one(frame.drop(columns="group"), "accuracy")
    assert apart["design_effect"] == pytest.approx(1, abs=0.25)


def test_no_interval_is_put_around_a_biased_error():
    row = one(clustered(SMALL, ["one"]), "ece")
    assert np.isnan(row["low"])
    assert row["reason"].startswith("biased upwards")


def test_a_ranking_is_not_constant_where_one_class_is_predicted():
    frame = clustered(SMALL, ["one"])
    frame["probability_all"] = np.where(frame["label"] == "all", 0.9, 0.7)
    frame["probability_hem"] = 1 - frame["probability_all"]
    row = one(frame, "auroc")
    assert (row["value"], row["high"]) == (1, 1)
    assert row["low"] == pytest.approx(0.025 ** (1 / 11))


def test_ends_on_the_log_and_on_the_linear_scale_are_those_of_the_t_distribution():
    table = evaluate(clustered(SMALL, ["one"]), level=0.9).set_index("metric")
    reach = stats.t.ppf(0.95, table["degrees_of_freedom"]) * table["standard_error"]
    for name in ("calibration_slope", "calibration_intercept"):
        row = table.loc[name]
        assert (row["high"] - row["value"], row["value"] - row["low"]) == pytest.approx([reach[name]] * 2)
    for name in ("loss", "balanced_loss"):  # by the delta method
        row = table.loc[name]
        factor = np.exp(reach[name] / row["value"])
        assert (row["low"], row["high"]) == pytest.approx((row["value"] / factor, row["value"] * factor))


def test_a_class_that_is_never_right_gets_the_exact_bound_of_no_success():
    frame = clustered(SMALL, ["one"])
    positive = np.where(frame["label"] == "all", 0.1, np.where(np.arange(len(frame)) % 2, 0.9, 0.1))
    frame = frame.assign(probability_all=positive, probability_hem=1 - positive)
    row = one(frame, "sensitivity")
    assert (row["low"], row["value"]) == (0, 0)
    assert row["high"] == pytest.approx(stats.beta.ppf(0.975, 1, 6))


def test_very_many_images_get_the_bound_of_all_of_them():
    """They are left out in 400 blocks, but each of them could have been wrong."""
    frame = clustered(((600,), (400,)), ["one"]).drop(columns="group")
    right = frame["label"].eq("all").astype(float)
    frame = frame.assign(probability_all=right, probability_hem=1 - right)
    assert one(frame, "auroc")["low"] == pytest.approx(stats.beta.ppf(0.025, 1000, 1))
    assert one(frame, "sensitivity")["low"] == pytest.approx(stats.beta.ppf(0.05, 600, 1))


def test_turning_the_classes_round_turns_the_predictive_values():
    frame = clustered(((6,) * 8, (9,) * 7), ["one"]).assign(probability_all=0.1, probability_hem=0.9)
    first = frame[frame["label"] == "all"].groupby("group").head(1).index[:6]
    frame.loc[first, ["probability_all", "probability_hem"]] = 0.9, 0.1
    names = {"probability_all": "probability_hem", "probability_hem": "probability_all"}
    turned = frame.rename(columns=names).assign(label=np.where(frame["label"] == "all", "hem", "all"))
    turned = turned[frame.columns]
    for share in (None, 0.02):
        ppv, npv = one(frame, "ppv", prevalence=share), one(turned, "npv", prevalence=share and 1 - share)
        ends = ["value", "low", "high"]
        assert npv[ends].tolist() == pytest.approx(ppv[ends].tolist())


def test_the_design_effect_is_kishs_also_for_unequal_groups_and_does_not_depend_on_folds():
    frame = clustered(((200, 20, 50, 90, 10, 70), (40, 30, 100, 60, 20)), ["one"], correlation=0.3)
    row = one(frame, "sensitivity")
    independent = row["value"] * (1 - row["value"]) / 440
    assert row["design_effect"] == pytest.approx(row["standard_error"] ** 2 / independent)
    size = sum(n * n for n in (200, 20, 50, 90, 10, 70)) / 440
    assert row["icc"] == pytest.approx((row["design_effect"] - 1) / (size - 1))
    folded = one(frame.assign(fold=pd.factorize(frame["group"])[0] % 2), "sensitivity")
    assert folded["design_effect"] == pytest.approx(row["design_effect"])
    assert folded["icc"] == pytest.approx(row["icc"])
    # Class shares are held: of independent images too, each class has a variance of its own.
    whole, recalls = one(frame, "accuracy"), np.array([row["value"], one(frame, "specificity")["value"]])
    independent = ([440, 250] * recalls * (1 - recalls)).sum() / 690**2
    assert whole["design_effect"] == pytest.approx(whole["standard_error"] ** 2 / independent)


def test_the_brier_score_of_three_classes_lies_between_0_and_2():
    random, labels = np.random.default_rng(0), np.arange(60) % 3
    said = (labels + random.choice(3, 60, p=[0.2, 0.4, 0.4])) % 3
    shares = np.where(np.arange(3) == said[:, None], 0.96, 0.02)
    frame = pd.DataFrame(shares, columns=[f"probability_{name}" for name in "abc"])
    row = one(frame.assign(label=np.array(list("abc"))[labels], group=np.arange(60) // 3 * 3 + labels), "brier")
    assert 1 < row["low"] < row["value"] < row["high"] < 2
    half, ratio = row["value"] / 2, stats.t.ppf(0.975, row["degrees_of_freedom"]) ** 2
    for end in (row["low"] / 2, row["high"] / 2):  # Wilson: so far that the value is at the end of its test
        assert (half - end) ** 2 == pytest.approx(
            ratio * (row["standard_error"] / 2) ** 2 * end * (1 - end) / (half * (1 - half))
        )
