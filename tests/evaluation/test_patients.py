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
    frame.loc[::5, "probability_all"] = 0.7  # is counted by "share 0.7"
    frame["probability_hem"] = 1 - frame["probability_all"]
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
    frame = two_sides()
    for kept in ([0, 1, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]):  # of one class enough
        few = frame[(frame["side"] == "test") | frame["group"].isin([f"vg{i}" for i in kept])]
        said = {"mean probability, for want of 5 patients of each class on val"}
        assert set(patient_predictions(few)["rule"]) == said
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
    # A patient of one class on each side is not mixed.
    other = frame.assign(side="val", fold=0, label=np.where(frame["group"] == frame["group"][0], "hem", frame["label"]))
    assert len(patient_predictions(pd.concat([frame.assign(side="test"), other])).query("side == 'test'")) == 12
    assert caplog.text == ""
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


def test_the_rule_is_chosen_by_the_balanced_accuracy_of_patients():
    """Of many leukemic patients and few others: to call all of them leukemic is the most accurate, and useless."""
    labels = np.array(["hem"] * 5 + ["all"] * 20)
    positive = np.array([0.62] * 5 + [0.75] * 14 + [0.55] * 6)
    sides = [
        pd.DataFrame({"label": labels, "probability_hem": 1 - positive, "probability_all": positive}).assign(
            side=side, sample=[f"{side}{i}" for i in range(25)], group=[f"{side}{i}" for i in range(25)]
        )
        for side in ("val", "test")
    ]
    assert set(patient_predictions(pd.concat(sides))["rule"]) == {"share 0.7, chosen on val"}


def test_patients_of_another_side_have_a_leaderboard_too():
    frame = two_sides(("one", "other"))
    renamed = frame.assign(side=frame["side"].replace({"test": "preliminary"}))
    board, expected = leaderboard(renamed, unit="patient", side="preliminary"), leaderboard(frame, unit="patient")
    pd.testing.assert_frame_equal(board, expected)


def test_patients_of_several_folds_have_no_exact_interval_and_a_level_is_kept():
    frame = clustered(SIZES, ["one"])
    row = evaluate(frame, unit="patient", metrics="accuracy", level=0.8).iloc[0]
    exact = stats.binomtest(round(12 * row["value"]), 12).proportion_ci(0.8, method="exact")
    assert (row["low"], row["high"]) == pytest.approx((exact.low, exact.high))
    folded = frame.assign(fold=pd.factorize(frame["group"])[0] % 3)
    other = evaluate(folded, unit="patient", metrics="accuracy").iloc[0]
    assert other["value"] == row["value"]
    assert other["method"] == "delete-one-group jackknife"
    assert other["standard_error"] == pytest.approx(row["standard_error"] * np.sqrt(1 + 3 / 2))
