"""Predictions of whole patients."""

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import evaluate, leaderboard, operating_points, patient_predictions
from predictions import clustered

SIZES = ((5, 9, 12, 30, 8, 20), (7, 3, 25, 11, 6, 9))


def two_sides(names=("one",), **settings):
    val = clustered(SIZES, names, seed=1, **settings)
    val = val.assign(side="val", sample="v" + val["sample"], group="v" + val["group"])
    return pd.concat([clustered(SIZES, names, **settings).assign(side="test"), val], ignore_index=True)


def of_test(frame, **settings):
    found = patient_predictions(frame, **settings)
    return found[found["side"] == "test"].set_index("group")


def test_each_rule_is_a_mean_over_the_images_of_a_patient():
    frame = two_sides()
    rows = frame[frame["side"] == "test"].groupby("group")["probability_all"]
    for rule, expected in {
        "mean": rows.mean(),
        "majority": rows.agg(lambda p: (p > 0.5).mean()),
        "share 0.7": rows.agg(lambda p: (p >= 0.7).mean()),
    }.items():
        found = of_test(frame, rule=rule)
        pd.testing.assert_series_equal(found["probability_all"].sort_index(), expected, check_names=False)
        assert (found["probability_hem"] + found["probability_all"]).to_numpy() == pytest.approx(1)
        assert found["images"].sum() == sum(map(sum, SIZES))


def test_the_rule_is_the_best_on_val_and_never_looks_at_the_tested_side():
    frame = two_sides()
    # On val an image is leukemic from .7 on: only the share above .7 tells patients apart there.
    val = frame["side"] == "val"
    frame.loc[val, "probability_all"] = np.where(frame.loc[val, "label"] == "all", 0.75, 0.65)
    frame["probability_hem"] = 1 - frame["probability_all"]
    assert set(patient_predictions(frame)["rule"]) == {"share 0.7, chosen on val"}
    other = frame.assign(label=frame["label"].where(val, "hem"))
    assert set(patient_predictions(other)["rule"]) == {"share 0.7, chosen on val"}
    # Each fitted model has a rule of its own.
    second = frame.assign(seed=1, probability_all=np.where(frame["label"] == "all", 0.9, 0.1))
    second["probability_hem"] = 1 - second["probability_all"]
    rules = patient_predictions(pd.concat([frame, second])).groupby("seed")["rule"].first()
    assert rules.tolist() == ["share 0.7, chosen on val", "mean probability, chosen on val"]


def test_where_val_has_few_patients_the_mean_is_taken_and_said():
    few = two_sides()
    few = few[(few["side"] == "test") | few["group"].isin(["vg0", "vg1", "vg6", "vg7"])]
    assert set(patient_predictions(few)["rule"]) == {"mean probability, for want of 5 patients of each class on val"}
    alone = clustered(SIZES, ["one"])
    assert set(patient_predictions(alone)["rule"]) == {"mean probability, for want of 5 patients of each class on val"}


@settings(max_examples=10)
@given(st.integers(1, 4), st.integers(0, 11))
def test_images_that_are_there_several_times_change_no_patient(times, group):
    frame = clustered(SIZES, ["one"])
    inside = frame["group"] == f"g{group}"
    more = [frame[inside].assign(sample=lambda f, i=i: f["sample"] + f"_{i}") for i in range(times)]
    both = pd.concat([frame, *more], ignore_index=True)
    metrics = ["accuracy", "balanced_accuracy", "auroc", "sensitivity"]
    one, other = (evaluate(part, unit="patient", metrics=metrics) for part in (frame, both))
    pd.testing.assert_frame_equal(one, other)
    assert evaluate(frame, metrics="patient_accuracy")["value"][0] == pytest.approx(
        evaluate(both, metrics="patient_accuracy")["value"][0]
    )


def test_metrics_of_patients_are_those_of_scikit_learn_with_exact_intervals():
    frame = two_sides()
    rows = of_test(frame, rule="mean")
    table = evaluate(rows.reset_index()).set_index("metric")
    labels, said = rows["label"].eq("all"), rows["probability_all"].gt(0.5)
    assert table.loc["auroc", "value"] == pytest.approx(sk.roc_auc_score(labels, rows["probability_all"]))
    for name, inside in {"accuracy": labels | ~labels, "sensitivity": labels, "specificity": ~labels}.items():
        right = int((labels == said)[inside].sum())
        exact = stats.binomtest(right, int(inside.sum())).proportion_ci(0.95, method="exact")
        assert table.loc[name, ["low", "high"]].tolist() == pytest.approx([exact.low, exact.high])
        assert table.loc[name, "method"].startswith("exact")
    asked = evaluate(frame, unit="patient", metrics="accuracy").iloc[0]
    assert (asked["unit"], asked["images"], asked["groups"]) == ("patient", 12, 12)


def test_patients_have_a_leaderboard_and_an_operating_point_of_their_own():
    frame = two_sides(("one", "other"))
    board = leaderboard(frame, "balanced_accuracy", unit="patient")
    assert set(board["images"]) == {12}
    point = operating_points(patient_predictions(frame), specificity=0.8).set_index(["backbone", "metric"])
    assert point.loc[("one", "specificity"), "images"] == 12
    assert point["threshold"].between(0, 1 + 1e-9).all()


def test_folds_of_a_leaky_protocol_are_taken_together_and_mixed_patients_are_left_out(caplog):
    frame = clustered(SIZES, ["one"]).assign(fold=lambda f: np.arange(len(f)) % 3)
    found = patient_predictions(frame)
    assert len(found) == 12
    turned = patient_predictions(frame.sample(frac=1, random_state=1))
    pd.testing.assert_frame_equal(
        found.sort_values("sample", ignore_index=True), turned.sort_values("sample", ignore_index=True)
    )
    frame.loc[0, "label"] = "hem"
    assert len(patient_predictions(frame)) == 11
    assert "1 patients with images of several classes are left out" in caplog.text


def test_without_patients_or_with_another_rule_it_says_what_is_needed():
    frame = clustered(SIZES, ["one"])
    with pytest.raises(DataError, match="Nothing is known of patients"):
        patient_predictions(frame.drop(columns="group"))
    with pytest.raises(SettingsError, match=r"rule must be one of.*'median'"):
        patient_predictions(frame, rule="median")
    with pytest.raises(SettingsError, match=r"rule must be one of 'mean', 'majority'\..*'share 0.5'"):
        patient_predictions(frame.assign(probability_third=0.0), "share 0.5")
    for damaged in ({"probability_all": np.nan}, {"probability_all": 1.5}):
        with pytest.raises(DataError, match="finite, not negative"):
            patient_predictions(
                frame.assign(**{name: frame[name].where(frame.index != 3, value) for name, value in damaged.items()})
            )
    with pytest.raises(DataError, match="several predictions of sample"):
        patient_predictions(pd.concat([frame, frame.iloc[:3]]))
    with pytest.raises(DataError, match="1 of 145 predictions have no group"):
        patient_predictions(frame.assign(group=frame["group"].where(frame.index != 3)))
    with pytest.raises(DataError, match="No patient of the side 'test' has images of one class only"):
        patient_predictions(frame.assign(group=frame["sample"].str[-1].where(frame.index < 0, "one")))
    with pytest.raises(SettingsError, match="unit must be one of"):
        evaluate(frame, unit="person")
