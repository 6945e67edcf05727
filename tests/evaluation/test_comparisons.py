import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import compare, evaluate
from leukemia_dl.evaluation.comparisons import holm
from predictions import clustered

SMALL = ((5, 9, 12, 30, 8, 20), (7, 3, 25, 11, 6))


def right(frame):
    return frame["probability_all"].gt(0.5).eq(frame["label"].eq("all"))


def balanced(frame):
    return (right(frame)[frame["label"] == "all"].mean() + right(frame)[frame["label"] == "hem"].mean()) / 2


def auroc(frame):
    return sk.roc_auc_score(frame["label"] == "all", frame["probability_all"])


@pytest.mark.parametrize(("metric", "statistic"), [("balanced_accuracy", balanced), ("auroc", auroc)])
def test_a_difference_equals_a_plain_version(metric, statistic):
    frame = clustered(SMALL)

    def gap(part):
        return statistic(part[part["backbone"] == "one"]) - statistic(part[part["backbone"] == "other"])

    variance, parts = 0.0, []
    for name in ("hem", "all"):
        own = frame[(frame["label"] == name) & (frame["backbone"] == "one")]
        sizes = own.groupby("group").size()
        without = np.array([gap(frame[frame["group"] != group]) for group in sizes.index])
        part = (len(without) - 1) / len(without) * ((without - without.mean()) ** 2).sum()
        variance += part
        parts.append((part, sizes.sum() ** 2 / (sizes**2).sum() - 1))
    df = variance**2 / sum(part**2 / d for part, d in parts)
    reach = stats.t.ppf(0.975, df) * variance**0.5
    (row,) = compare(frame, metric).to_dict("records")
    assert row["difference"] == pytest.approx(gap(frame))
    assert row["standard_error"] == pytest.approx(variance**0.5)
    assert (row["low"], row["high"]) == pytest.approx((gap(frame) - reach, gap(frame) + reach))
    assert row["p"] == pytest.approx(2 * stats.t.sf(abs(gap(frame)) / variance**0.5, df))
    power = stats.t.ppf(0.975, df) + stats.t.ppf(0.8, df)
    assert row["detectable"] == pytest.approx(power * variance**0.5)


@pytest.mark.parametrize("metric", ["accuracy", "auroc"])
def test_images_are_paired_by_their_names_not_by_the_order_of_rows(metric):
    """With the rows of one backbone shuffled, the test gives the same p."""
    frame = clustered(((20, 30), (25, 15)), distance=0.8).drop(columns="group")
    other = frame[frame["backbone"] == "other"]
    shuffled = pd.concat([frame[frame["backbone"] == "one"], other.sample(frac=1, random_state=1)])
    first, second = compare(frame, metric), compare(shuffled, metric)
    assert first["test"].iloc[0] == "the jackknife over images"
    assert 0 < first["p"].iloc[0] < 1
    pd.testing.assert_frame_equal(second, first)


def test_interval_and_p_agree_at_the_level():
    for seed in range(20):
        (row,) = compare(clustered(SMALL, seed=seed, distance=2.0)).to_dict("records")
        assert (row["p"] <= 0.05) == (row["low"] > 0 or row["high"] < 0)


def test_turning_a_pair_round_turns_the_sign():
    frame = clustered(SMALL, ["one", "other"])
    (row,), (turned,) = (
        compare(frame, backbones=names).to_dict("records") for names in (["one", "other"], ["other", "one"])
    )
    assert (row["first"], turned["first"]) == ("one", "other")
    assert turned["difference"] == pytest.approx(-row["difference"])
    assert (turned["low"], turned["high"]) == pytest.approx((-row["high"], -row["low"]))
    assert turned["p"] == pytest.approx(row["p"])


def test_equal_predictions_do_not_differ():
    frame = clustered(SMALL, ["one"])
    (row,) = compare(pd.concat([frame, frame.assign(backbone="copy")])).to_dict("records")
    assert (row["difference"], row["p"], row["low"], row["high"]) == (0, 1, 0, 0)
    assert np.isnan(row["detectable"])
    assert row["sentence"].endswith(": of these fitted models, both are equal in every group.")


def test_the_detectable_difference_is_that_of_the_corrected_verdict():
    """Of three nets there are three pairs: the level that Bonferroni's correction leaves, and more for one pair."""
    frame = clustered(SMALL, ["a", "b", "c"])
    rows = compare(frame, descriptive="loss")
    for row in rows.to_dict("records"):
        pairs = 3 if row["role"] == "confirmatory" else 1
        quantiles = stats.t.ppf([1 - 0.025 / pairs, 0.8], row["degrees_of_freedom"])
        assert row["detectable"] == pytest.approx(quantiles.sum() * row["standard_error"])


def test_two_seeds_are_of_the_procedure_and_the_sentence_says_so():
    frame = clustered(SMALL, seeds=(0, 1))
    (row,) = compare(frame).to_dict("records")
    (asked,) = compare(frame, estimand="procedure").to_dict("records")
    assert row == asked
    assert " for the procedure over 2 seeds" in row["sentence"]
    (one,) = compare(frame[frame["seed"] == 0]).to_dict("records")
    assert " for these fitted models" in one["sentence"]


def test_folds_make_a_difference_less_certain():
    frame = clustered(SMALL)
    folded = frame.assign(fold=pd.factorize(frame["group"])[0] % 5)
    of_one = pd.concat([folded[folded["backbone"] == "one"], frame[frame["backbone"] == "other"]])
    (one,), (other,), (mixed,) = (compare(part).to_dict("records") for part in (frame, folded, of_one))
    assert other["standard_error"] == pytest.approx(one["standard_error"] * np.sqrt(1 + 5 / 4))
    assert mixed["standard_error"] == other["standard_error"]


def test_a_large_difference_is_found_and_said():
    frame = clustered(SMALL)
    better = frame["backbone"].eq("one")
    truth = frame["label"].eq("all")
    frame.loc[better, "probability_all"] = np.where(truth[better], 0.9, 0.1)
    frame["probability_hem"] = 1 - frame["probability_all"]
    (row,) = compare(frame, "balanced_accuracy").to_dict("records")
    assert row["p"] < 0.05
    assert row["p_holm"] == row["p"]
    value = evaluate(frame, metrics="balanced_accuracy")["value"].iloc[1]
    assert row["sentence"].startswith(
        f"On 136 images of 11 groups of patients, balanced accuracy is 1.000 for one and {value:.3f} for other: a "
    )
    assert row["sentence"].endswith(": of these fitted models, one is better at the 5% level.")
    turned, level = compare(frame, "loss", level=0.9).iloc[0], 0.1
    assert turned["difference"] < 0
    assert turned["p_holm"] <= level
    assert "one is better at the 10% level" in turned["sentence"]


def test_holm_is_over_all_pairs_of_backbones_and_the_primary_metric_only():
    frame = clustered(SMALL, ["a", "b", "c"]).assign(kind="backbone")
    floor = clustered(SMALL, ["majority"], seed=5).assign(kind="baseline", seed=pd.NA)
    table = compare(pd.concat([frame, floor], ignore_index=True), descriptive=["auroc"])
    assert len(table) == 2 * 6
    confirmatory = table[table["role"] == "confirmatory"]
    assert set(zip(confirmatory["first"], confirmatory["second"], strict=True)) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert set(confirmatory["metric"]) == {"accuracy"}
    assert list(confirmatory["p_holm"]) == pytest.approx(holm(confirmatory["p"]))
    rest = table[table["role"] == "descriptive"]
    assert rest["p_holm"].isna().all()
    assert rest["p"].notna().all()
    assert rest["sentence"].str.endswith(", without correction for multiple comparisons.").all()
    assert confirmatory["sentence"].str.contains("Holm's correction for 3 pairs").all()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_equals_a_plain_version(p):
    order = sorted(range(len(p)), key=lambda i: p[i])
    expected, highest = [0.0] * len(p), 0.0
    for place, i in enumerate(order):
        highest = max(highest, (len(p) - place) * p[i])
        expected[i] = min(highest, 1.0)
    assert holm(p) == pytest.approx(expected)
    assert all(after >= before for after, before in zip(holm(p), p, strict=True))


def test_seeds_are_averaged_and_the_procedure_is_less_certain():
    frame = clustered(SMALL, seeds=(0, 1, 2))
    (models,), (procedure,) = (compare(frame, estimand=what).to_dict("records") for what in ("models", "procedure"))
    means = frame.assign(right=right(frame)).groupby(["backbone", "seed"])["right"].mean().unstack()
    assert models["difference"] == pytest.approx(means.loc["one"].mean() - means.loc["other"].mean())
    added = models["standard_error"] ** 2 + means.var(axis=1, ddof=1).sum() / 3
    assert procedure["standard_error"] == pytest.approx(added**0.5)
    assert procedure["seeds"] == "3, 3"
    floor = frame["backbone"].ne("other") | frame["seed"].eq(0)
    kinds = np.where(frame["backbone"] == "other", "baseline", "backbone")
    (against,) = compare(frame.assign(kind=kinds)[floor], estimand="procedure").to_dict("records")
    (fixed,) = compare(frame.assign(kind=kinds)[floor], estimand="models").to_dict("records")
    seeds = means.loc["one"].var(ddof=1) / 3
    assert against["standard_error"] == pytest.approx((fixed["standard_error"] ** 2 + seeds) ** 0.5)
    (alone,) = compare(frame[frame["seed"] == 0], estimand="procedure").to_dict("records")
    assert "one seed" in alone["reason"]
    assert alone["sentence"].startswith("Not testable, one seed: ")


def test_the_sentence_counts_the_seeds_of_nets():
    frame = clustered(SMALL, seeds=(0, 1))
    less = frame[frame["backbone"].ne("other") | frame["seed"].eq(0)]
    floor = less.assign(kind=np.where(less["backbone"] == "other", "baseline", "backbone"))
    for part, words in (
        (frame, ", 2 seeds each, accuracy is"),
        (less, ", 2 seeds of one and 1 seed of other, accuracy is"),
        (floor, " groups of patients, 2 seeds of one, accuracy is"),
        (frame[frame["seed"] == 0], " groups of patients, accuracy is"),
        (floor[floor["seed"] == 0], " groups of patients, accuracy is"),
    ):
        assert words in compare(part)["sentence"][0]


def test_only_images_that_both_have_are_compared_and_the_rest_counted():
    frame = clustered(SMALL)
    short = frame[~((frame["backbone"] == "other") & frame["sample"].isin(["s0", "s40"]))]
    (row,) = compare(short).to_dict("records")
    common = frame[~frame["sample"].isin(["s0", "s40"])]
    (expected,) = compare(common).to_dict("records")
    assert row["images"] == 134
    assert row["reason"] == "2 images are left out that not all runs have"
    assert (row["difference"], row["p"]) == pytest.approx((expected["difference"], expected["p"]))


def test_the_order_of_rows_does_not_matter():
    frame = clustered(SMALL, ["one", "other"], seeds=(0, 1))
    (row,) = compare(frame, "auroc").to_dict("records")
    shuffled = frame.sample(frac=1, random_state=3)
    (again,) = compare(shuffled, "auroc", backbones=["one", "other"]).to_dict("records")
    for name in ("difference", "low", "high", "p"):
        assert again[name] == pytest.approx(row[name])


def test_without_subjects_the_tests_are_of_images_and_the_unit_says_so():
    frame = clustered(SMALL).drop(columns="group")
    table = compare(frame, descriptive=["auroc", "balanced_accuracy"]).set_index("metric")
    assert set(table["unit"]) == {"image"}
    assert set(table["test"]) == {"the jackknife over images"}
    assert table["sentence"].str.contains("Images are taken as independent").all()
    one, other = (frame[frame["backbone"] == name] for name in ("one", "other"))
    hits = np.array([right(part).to_numpy() for part in (one, other)])
    # The textbook's tests of independent images are near: McNemar's with normal quantiles, and DeLong's.
    only_first, only_second = (hits[0] & ~hits[1]).sum(), (hits[1] & ~hits[0]).sum()
    mcnemar = 2 * stats.norm.sf(abs(only_first - only_second) / (only_first + only_second) ** 0.5)
    assert table.loc["accuracy", "p"] == pytest.approx(mcnemar, abs=0.03)
    labels = one["label"].eq("all").to_numpy(int)
    delong = delong_p(labels, *(part["probability_all"].to_numpy() for part in (one, other)))
    assert table.loc["auroc", "p"] == pytest.approx(delong, abs=0.03)


def delong_p(labels, *scores):
    """The p value of DeLong et al. 1988, by the definition."""
    v10, v01, areas = [], [], []
    for s in scores:
        pos, neg = s[labels == 1], s[labels == 0]
        psi = (pos[:, None] > neg) + 0.5 * (pos[:, None] == neg)
        v10.append(psi.mean(axis=1))
        v01.append(psi.mean(axis=0))
        areas.append(psi.mean())
    covariance = np.cov(v10) / len(v10[0]) + np.cov(v01) / len(v01[0])
    return 2 * stats.norm.sf(abs(areas[0] - areas[1]) / (np.array([1, -1]) @ covariance @ [1, -1]) ** 0.5)


def test_equal_differences_of_all_groups_leave_nothing_to_test_by():
    frame = clustered(SMALL)
    right = frame["label"].eq("all") | frame["backbone"].eq("other")
    frame["probability_all"] = np.where(right, 0.9, 0.1)
    frame["probability_hem"] = 1 - frame["probability_all"]
    (row,) = compare(frame, "balanced_accuracy").to_dict("records")
    assert row["difference"] == 0.5
    assert np.isnan(row["p"])
    assert "every group has the same difference" in row["sentence"]


def test_a_pair_without_an_image_in_common_is_a_row_that_says_so():
    frame = clustered(SMALL, ["one", "other", "third"])
    apart = frame.assign(sample=np.where(frame["backbone"] == "third", "x" + frame["sample"], frame["sample"]))
    table = compare(apart)
    assert list(table["reason"]) == ["", "no image in common", "no image in common"]
    assert table["p"].notna().tolist() == [True, False, False]
    assert table["sentence"].iloc[1] == "Not testable: one and third have no image in common."
    assert table["p_holm"].iloc[0] == table["p"].iloc[0]
    assert table["detectable"].iloc[0] == compare(apart, backbones=["one", "other"])["detectable"].iloc[0]


def test_fewer_than_five_groups_give_no_test_and_the_reason_first():
    """20.3: the sentence begins with the reason and the number of groups, and has no verdict."""
    (row,) = compare(clustered(((5, 9, 12, 30), SMALL[1]))).to_dict("records")
    assert np.isnan(row["p"])
    few = "fewer than 5 groups: 4 of class all (1 missing)"
    assert row["reason"] == few
    sentence = f"Not testable, {few}. On 108 images of 9 groups of patients, accuracy is "
    shown = f"{row['value_first']:.3f} for one and {row['value_second']:.3f} for other."
    assert row["sentence"] == sentence + shown


def test_predictions_of_different_data_are_refused():
    frame = clustered(SMALL)
    other = frame["backbone"] == "other"
    with pytest.raises(DataError, match="need a column sample"):
        compare(frame.drop(columns="sample"))
    wrong = frame.copy()
    wrong.loc[other & (frame["sample"] == "s3"), "group"] = "g5"
    with pytest.raises(DataError, match="'s3' has two values of group: 'g0' and 'g5'"):
        compare(wrong)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"metric": "speed"}, r"metric must be one of.*'speed'"),
        ({"backbones": ["one", "third"]}, r"one, other\. Received: \['one', 'third'\]"),
        ({"backbones": ["one"]}, "needs two backbones"),
        ({"level": 5}, "level must be"),
        ({"estimand": "all"}, "'models', 'procedure'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(SettingsError, match=says):
        compare(clustered(SMALL), **settings)
