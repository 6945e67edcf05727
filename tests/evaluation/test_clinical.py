"""What a clinician and a reviewer ask for: likelihood ratios, predictive values, net benefit, classes, planning."""

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
from scipy import stats

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import compare, evaluate, net_benefit, plan_study
from predictions import clustered

SIZES = ((20,) * 12, (20,) * 10)


def table_of(frame, **settings):
    return evaluate(frame, **settings).set_index("metric")


def test_likelihood_ratios_and_predictive_values_at_a_prevalence_follow_from_the_recalls():
    frame = clustered(SIZES, ["one"])
    names = ["sensitivity", "specificity", "lr_positive", "lr_negative", "ppv", "npv"]
    found = table_of(frame, metrics=names, prevalence=0.05)["value"]
    sensitivity, specificity = found["sensitivity"], found["specificity"]
    assert found["lr_positive"] == pytest.approx(sensitivity / (1 - specificity))
    assert found["lr_negative"] == pytest.approx((1 - sensitivity) / specificity)
    # By counting a thousand people.
    cases, others = 50.0, 950.0
    assert found["ppv"] == pytest.approx(cases * sensitivity / (cases * sensitivity + others * (1 - specificity)))
    assert found["npv"] == pytest.approx(others * specificity / (others * specificity + cases * (1 - sensitivity)))
    table = table_of(frame, metrics=names, prevalence=0.05)
    assert ((table["low"] < table["value"]) & (table["value"] < table["high"])).all()
    at_own = table_of(frame, metrics="ppv", prevalence=frame["label"].eq("all").mean())
    assert at_own.loc["ppv", "value"] == pytest.approx(table_of(frame, metrics="ppv").loc["ppv", "value"])
    assert table.loc[["ppv", "npv"], "prevalence"].tolist() == [0.05, 0.05]
    with pytest.raises(SettingsError, match="prevalence must be a number"):
        evaluate(frame, prevalence=5)
    with pytest.raises(SettingsError, match="does not go with by"):
        evaluate(frame, prevalence=0.05, by="class")


def test_a_predictive_value_varies_with_the_groups_without_such_predictions_too():
    """One false alarm of one patient among ten: with another patient there could be none, or two."""
    frame = clustered(((1,) * 12, (1,) * 18), ["one"])
    positive = np.where(frame["label"] == "all", 0.9, 0.1)
    positive[frame.index[frame["label"] == "hem"][0]] = 0.9
    frame = frame.assign(probability_all=positive, probability_hem=1 - positive)
    row = table_of(frame, metrics="ppv").loc["ppv"]
    assert row["value"] == pytest.approx(12 / 13)
    assert row["standard_error"] > 0
    assert row["low"] < row["value"] < row["high"]


def test_a_ratio_without_a_false_alarm_has_a_reason():
    frame = clustered(SIZES, ["one"])
    positive = frame["label"].eq("all") * 0.8 + 0.1
    frame = frame.assign(probability_all=positive, probability_hem=1 - positive)
    row = table_of(frame, metrics=["lr_positive", "lr_negative"])
    assert np.isnan(row.loc["lr_positive", "value"])
    assert row.loc["lr_positive", "reason"] == "no image of class hem is predicted wrongly"
    assert row.loc["lr_negative", "value"] == 0


def test_the_net_benefit_is_that_of_vickers_and_elkin():
    frame = clustered(SIZES, ["one", "other"])
    frame.loc[frame.index[::9], ["probability_all", "probability_hem"]] = 0.5  # at a threshold they act
    table = net_benefit(frame, thresholds=[0.1, 0.5, 0.8]).set_index(["backbone", "x"])
    rows = frame[frame["backbone"] == "one"]
    labels, count = rows["label"].eq("all"), len(rows)
    for threshold in (0.1, 0.5, 0.8):
        acted = rows["probability_all"] >= threshold
        odds = threshold / (1 - threshold)
        expected = ((acted & labels).sum() - odds * (acted & ~labels).sum()) / count
        assert table.loc[("one", threshold), "y"] == pytest.approx(expected)
        everyone = (labels.sum() - odds * (~labels).sum()) / count
        assert table.loc[("all", threshold), "y"] == pytest.approx(everyone)
        assert table.loc[("none", threshold), ["y", "low", "high"]].tolist() == [0, 0, 0]
    drawn = table.dropna()
    assert ((drawn["low"] <= drawn["y"]) & (drawn["y"] <= drawn["high"])).all()
    assert len(net_benefit(frame)) == 4 * 99
    with pytest.raises(SettingsError, match="probabilities between 0 and 1"):
        net_benefit(frame, thresholds=[0, 0.5])
    with pytest.raises(DataError, match="one of two classes"):
        net_benefit(frame.assign(probability_third=0.0))


def test_groups_that_are_all_alike_leave_the_net_benefit_without_a_band():
    frame = pd.DataFrame(
        {"group": np.repeat([f"P{i}" for i in range(12)], 4), "label": ["all", "all", "hem", "hem"] * 12}
    )
    frame["probability_all"] = [0.9, 0.2, 0.7, 0.1] * 12
    frame = frame.assign(probability_hem=1 - frame["probability_all"], backbone="one", sample=range(48))
    row = net_benefit(frame, thresholds=[0.5]).set_index("backbone").loc["one"]
    assert row["y"] == 0  # one of four found, one false alarm at odds of 1
    assert np.isnan([row["low"], row["high"]]).all()


def three_classes():
    random = np.random.default_rng(3)
    group = np.repeat(np.arange(24), 15)
    labels = group % 3
    scores = 1.2 * np.eye(3)[labels] + random.normal(size=(24, 3))[group] * 0.5 + random.normal(size=(360, 3))
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    frame = pd.DataFrame(shares, columns=[f"probability_{name}" for name in "abc"])
    return frame.assign(label=np.array(list("abc"))[labels], group=group, sample=np.arange(360)), labels, shares


def test_each_class_has_its_recall_precision_and_f1_with_intervals():
    frame, labels, shares = three_classes()
    table = evaluate(frame, by="class").set_index(["class", "metric"])
    said = shares.argmax(axis=1)
    expected = sk.precision_recall_fscore_support(labels, said)[:3]
    for code, name in enumerate("abc"):
        found = [table.loc[(name, metric), "value"] for metric in ("precision", "recall", "f1")]
        assert found == pytest.approx([values[code] for values in expected])
        assert (
            (table.loc[name, "low"] < table.loc[name, "value"]) & (table.loc[name, "high"] > table.loc[name, "value"])
        ).all()
    areas = evaluate(frame, by="class", metrics="auroc")["value"]
    assert areas.tolist() == pytest.approx([sk.roc_auc_score(labels == code, shares[:, code]) for code in range(3)])
    named = evaluate(frame, by="class", metrics=["recall", "precision"])
    assert named["metric"].tolist() == ["recall", "precision"] * 3
    own = evaluate(frame.assign(**{"class": "one"}), by="class", metrics="accuracy")
    assert own["metric"].tolist() == ["accuracy"], "a column of this name is split by"


def test_the_accuracy_of_patients_counts_each_once():
    frame = clustered(((5, 50, 5, 5, 5), (5, 5, 5, 5, 5)), ["one"])
    right = frame["probability_all"].gt(0.5).eq(frame["label"].eq("all"))
    row = table_of(frame, metrics="patient_accuracy").loc["patient_accuracy"]
    of_groups = right.groupby(frame["group"]).mean()
    assert row["value"] == pytest.approx(of_groups.mean())
    spread = [of_groups[frame.groupby("group")["label"].first() == name].var() for name in ("hem", "all")]
    assert row["standard_error"] == pytest.approx(np.sqrt(sum(5 * variance for variance in spread)) / 10, rel=0.2)


def test_a_study_is_planned_from_the_variance_between_the_groups_of_a_pilot():
    frame = clustered(SIZES, ["one", "other"])
    (row,) = plan_study(frame, effect=0.05).to_dict("records")
    (pair,) = compare(frame).to_dict("records")
    assert row["groups_pilot"] == 22
    error = pair["standard_error"] * np.sqrt(22 / row["groups"])
    df = pair["degrees_of_freedom"] * row["groups"] / 22
    power = stats.nct.sf(stats.t.ppf(0.975, df), df, 0.05 / error)
    assert 0.8 <= power < 0.82
    assert row["images"] == row["groups"] * 20
    assert plan_study(frame, effect=0.1)["groups"][0] < row["groups"]
    width = plan_study(frame, width=0.1).set_index("backbone")
    assert set(width["groups_pilot"]) == {22}
    one = evaluate(frame, metrics="accuracy").set_index("backbone").loc["one"]
    df = one["degrees_of_freedom"] * width.loc["one", "groups"] / 22
    reach = 2 * stats.t.ppf(0.975, df) * one["standard_error"] * np.sqrt(22 / width.loc["one", "groups"])
    assert 0.097 < reach <= 0.1
    assert pd.isna(plan_study(frame, effect=1e-9)["groups"][0])
    with pytest.raises(SettingsError, match="effect must be a number"):
        plan_study(frame, effect=5)
    with pytest.raises(SettingsError, match="effect must be a number in"):
        plan_study(frame, effect=0)
    for wrong in ({}, {"effect": 0.1, "width": 0.1}):
        with pytest.raises(SettingsError, match="Give one of effect and width"):
            plan_study(frame, **wrong)


@pytest.mark.slow
def test_a_planned_study_has_the_power_that_it_was_planned_for():
    """Within five points: a pilot of 400 groups plans a study, and the study is simulated."""
    random, found = np.random.default_rng(0), []

    def predictions(groups, better):
        positives = (10,) * (groups // 2)
        seed = int(random.integers(2**31))
        frame = clustered((positives, positives), ["one", "other"], seed=seed, correlation=0.2)
        scores = np.log(frame["probability_all"] / frame["probability_hem"])
        sign = np.where(frame["label"] == "all", 1, -1) * (frame["backbone"] == "one") * better
        positive = 1 / (1 + np.exp(-(scores + sign)))
        return frame.assign(probability_all=positive, probability_hem=1 - positive)

    pilot = predictions(400, 0.4)
    effect = float(np.mean([compare(predictions(400, 0.4))["difference"][0] for _ in range(20)]))
    groups = int(plan_study(pilot, effect=effect)["groups"][0])
    for _ in range(400):
        found.append(compare(predictions(2 * (groups // 2), 0.4))["p"][0] <= 0.05)
    assert np.mean(found) == pytest.approx(0.8, abs=0.05)


def test_a_plan_is_for_the_power_and_the_level_that_are_asked_for_and_corrected_for_all_pairs():
    frame = clustered(SIZES, ["a", "b", "c"])
    plan = plan_study(frame, effect=0.1, power=0.9, level=0.9)
    pairs = compare(frame, level=0.9).to_dict("records")
    assert len(pairs) == 3
    for row, pair in zip(plan.to_dict("records"), pairs, strict=True):
        groups = row["groups"] - np.array([1, 0])
        df, error = pair["degrees_of_freedom"] * groups / 22, pair["standard_error"] * np.sqrt(22 / groups)
        one_less, enough = stats.nct.sf(stats.t.ppf(1 - 0.1 / 2 / 3, df), df, 0.1 / error)
        assert one_less < 0.9 <= enough
    turned = plan_study(frame, effect=-0.1, power=0.9, level=0.9)
    assert turned["groups"].tolist() == plan["groups"].tolist()


def test_the_accuracy_of_patients_has_as_many_degrees_of_freedom_as_there_are_patients():
    """However many images the largest has: it is one of them, also where it owns its class."""
    frame = clustered(((5, 9, 12, 30, 8, 900), (7, 3, 25, 11, 6)), ["one"])
    right = frame["probability_all"].gt(0.5).eq(frame["label"].eq("all")).groupby(frame["group"]).mean()
    variance, parts = 0.0, 0.0
    for label in ("hem", "all"):
        names = frame.loc[frame["label"] == label, "group"].unique()
        without = [right.drop(name).mean() for name in names]
        part = (len(names) - 1) * np.var(without)
        variance, parts = variance + part, parts + part**2 / (len(names) - 1)
    row = table_of(frame, metrics="patient_accuracy").loc["patient_accuracy"]
    assert row["reason"] == ""
    assert row["standard_error"] == pytest.approx(variance**0.5)
    assert row["degrees_of_freedom"] == pytest.approx(variance**2 / parts)
