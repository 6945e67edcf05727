import math
from fractions import Fraction
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import accuracy_at_coverage, evaluate, operating_points

HEM, ALL = "probability_hem", "probability_all"
SHOWN = ["sensitivity", "specificity", "ppv", "npv", "accuracy", "balanced_accuracy"]
targets = st.sampled_from(["sensitivity", "specificity"])
both = pytest.mark.parametrize("call", [partial(operating_points, sensitivity=0.9), accuracy_at_coverage])


def side_of(side, labels, scores, **columns):
    """Predictions of one side; labels are 0 (hem) and 1 (all), scores the probabilities of all."""
    return pd.DataFrame(
        {"side": side, "sample": [f"{side}{i}" for i in range(len(labels))], HEM: [1 - s for s in scores], ALL: scores}
    ).assign(label=["all" if label else "hem" for label in labels], **columns)


@st.composite
def grids(draw):
    """Two sides of every backbone, seed and fold; scores are multiples of 1/16, so that many are equal."""
    labels = draw(st.lists(st.integers(0, 1), min_size=2, max_size=8))
    folds = draw(st.lists(st.lists(st.integers(0, 1), max_size=6), min_size=1, max_size=2))
    parts = []
    for backbone, seed in product(draw(st.sampled_from(["a", "ba"])), range(draw(st.integers(1, 2)))):
        for fold, more in enumerate(folds):
            for side, own in (("val", [0, 1] * 5 + more), ("test", labels[fold :: len(folds)])):
                scores = draw(st.lists(st.integers(0, 16), min_size=len(own), max_size=len(own)))
                part = side_of(side, own, [score / 16 for score in scores], backbone=backbone, seed=seed, fold=fold)
                parts.append(part.assign(sample=part["sample"] + f"_{fold}"))
    return pd.concat(parts, ignore_index=True)


def holds(rows, what, wanted, threshold):
    """Whether a threshold keeps the wanted share of one class right."""
    own = [row for row in rows if row["label"] == ("all" if what == "sensitivity" else "hem")]
    right = sum((row[ALL] >= threshold) == (what == "sensitivity") for row in own)
    return Fraction(right, len(own)) >= wanted


def best_threshold(rows, what, wanted):
    """Search all thresholds that part the scores differently: the scores themselves and just above each."""
    scores = {row[ALL] for row in rows}
    fits = [t for t in scores | {math.nextafter(score, 2) for score in scores} if holds(rows, what, wanted, t)]
    return max(fits) if what == "sensitivity" else min(fits)


def metrics_by_hand(verdicts):
    """Metrics in the order of SHOWN, from pairs (is positive, is called positive)."""

    def right(place, value):
        found = [one[0] == one[1] for one in verdicts if one[place] == value]
        return sum(found) / len(found) if found else math.nan

    accuracy = sum(label == called for label, called in verdicts) / len(verdicts)
    recalls = [right(0, 1), right(0, 0)]
    return [*recalls, right(1, 1), right(1, 0), accuracy, np.nanmean(recalls)]


@given(grids(), targets, st.integers(1, 20))
def test_each_model_has_the_best_threshold_of_its_own_and_is_tested_with_it(frame, what, twentieths):
    models = frame.groupby(["backbone", "seed", "fold", "side"]).apply(lambda rows: rows.to_dict("records"))
    result = operating_points(frame, **{what: twentieths / 20})
    assert list(dict.fromkeys(result["backbone"])) == list(dict.fromkeys(frame["backbone"]))
    assert set(result["target"]) == {f"{what} {twentieths / 20:g}"}
    for backbone, part in result.groupby("backbone"):
        limits, per_seed = [], []
        for seed in sorted(set(frame["seed"])):
            verdicts = []
            for fold in sorted(set(frame["fold"])):
                limits.append(best_threshold(models[backbone, seed, fold, "val"], what, Fraction(twentieths, 20)))
                tested = models[backbone, seed, fold, "test"]
                verdicts += [(int(row["label"] == "all"), int(row[ALL] >= limits[-1])) for row in tested]
            per_seed.append(metrics_by_hand(verdicts))
        assert part["metric"].tolist() == SHOWN
        assert part["value"].tolist() == pytest.approx(np.mean(per_seed, axis=0).tolist(), nan_ok=True)
        shown = part[["threshold", "threshold_lowest", "threshold_highest"]].drop_duplicates().to_numpy().tolist()
        assert shown == [pytest.approx([np.mean(limits), min(limits), max(limits)], rel=1e-14)]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 24)), max_size=25), targets, st.integers(1, 100))
@example([(1, score) for score in range(20)], "sensitivity", 28)  # 7 of 25, but .28 * 25 > 7
def test_on_the_choosing_side_the_target_holds_and_the_next_threshold_breaks_it(drawn, what, percent):
    labels, scores = zip(*[(0, 5), (1, 5)] * 5, *drawn, strict=True)
    val, test = (side_of(side, labels, [score / 24 for score in scores]) for side in ("val", "test"))
    threshold = operating_points(pd.concat([val, test]), **{what: percent / 100})["threshold"].iloc[0]
    beyond = math.nextafter(threshold, 2 if what == "sensitivity" else -1)
    assert holds(val.to_dict("records"), what, Fraction(percent, 100), threshold)
    assert not holds(val.to_dict("records"), what, Fraction(percent, 100), beyond)


def two_sides(seed=0, **columns):
    """One model with 12 groups of two images on either side."""
    random, labels = np.random.default_rng(seed), np.arange(24) % 2
    parts = [side_of(s, labels, random.beta(1.5 + 2 * labels, 2.5), **columns) for s in ("val", "test")]
    return pd.concat(parts, ignore_index=True).assign(group=lambda f: f["side"] + [f"{i % 12}" for i in range(48)])


def test_intervals_are_those_of_evaluate_for_the_verdicts_whatever_sides_are_called():
    frame = two_sides()
    limit = best_threshold(frame.query("side == 'val'").to_dict("records"), "specificity", Fraction(9, 10))
    verdicts = frame.assign(**{ALL: (frame[ALL] >= limit) * 1.0, HEM: (frame[ALL] < limit) * 1.0})
    expected = evaluate(verdicts, metrics=SHOWN, level=0.9)
    renamed = frame.replace({"side": {"val": "out_of_fold", "test": "preliminary"}})
    result = operating_points(renamed, specificity=0.9, level=0.9, thresholds_from="out_of_fold", side="preliminary")
    assert result["low"].notna().all()
    pd.testing.assert_frame_equal(result[expected.columns], expected)


def test_perfect_scores_keep_every_target():
    frame = pd.concat([side_of(side, [0, 0, 1, 1] * 3, [0.0, 0.25, 0.75, 1.0] * 3) for side in ("val", "test")])
    for what, threshold in [("sensitivity", 0.75), ("specificity", math.nextafter(0.25, 1))]:
        result = operating_points(frame, **{what: 1})
        assert result[["value", "threshold"]].to_numpy().tolist() == [[1.0, threshold]] * 6


@pytest.mark.parametrize("constant", [0.0, 0.5, 1.0])
def test_a_constant_score_calls_all_images_positive_or_none(constant):
    frame = pd.concat([side_of(side, [0, 0, 0, 1] * 5, [constant] * 20) for side in ("val", "test")])
    all_positive, none = operating_points(frame, sensitivity=0.05), operating_points(frame, specificity=0.05)
    assert all_positive["value"].tolist()[:4] == pytest.approx([1, 0, 0.25, np.nan], nan_ok=True)
    assert none["value"].tolist()[:4] == pytest.approx([0, 1, np.nan, 0.75], nan_ok=True)


@both
def test_thresholds_from_the_tested_images_are_refused_and_from_their_groups_noted(call):
    frame = two_sides()
    assert not call(frame)["reason"].str.contains("too good").any()
    note = "6 groups are on the sides 'val' and 'test': too good"
    shared = frame["group"].replace({f"test{i}": f"val{i}" for i in range(6)})
    assert call(frame.assign(group=shared))["reason"].str.endswith(note).all()
    with pytest.raises(SettingsError, match="looks better than it is"):
        call(frame, thresholds_from="test")
    with pytest.raises(DataError, match="among those of the side 'val' of one model"):
        call(frame.assign(sample=frame["sample"].replace({"val7": "test7"})))
    with pytest.raises(DataError, match="the predictions need a column side"):
        call(frame[frame["side"] == "test"].drop(columns="side"))


def test_an_image_may_be_on_another_side_of_another_model():
    one, other = two_sides(fold=0), two_sides(fold=1)
    other["sample"] = [{"v": "test", "t": "val"}[name[0]] + name.lstrip("valtes") for name in other["sample"]]
    assert operating_points(pd.concat([one, other]), sensitivity=0.9)["images"].tolist() == [48] * 6


def test_a_model_without_a_choosing_side_is_named():
    frame = pd.concat([two_sides(fold=0), two_sides(fold=1).assign(sample=lambda f: "x" + f["sample"])])
    with pytest.raises(DataError, match="model has predictions of the side 'test' without any of the side 'val'"):
        operating_points(frame[(frame["fold"] == 0) | (frame["side"] == "test")], sensitivity=0.9)


@pytest.mark.parametrize("value", [0, 0.0, -0.5, 1.01, 95, math.nan, math.inf, True, "0.9"])
def test_one_target_is_asked_for_and_a_share_out_of_range_is_refused(value):
    for both_or_none in ({}, {"sensitivity": 0.9, "specificity": value}):
        with pytest.raises(SettingsError, match="Give one target"):
            operating_points(two_sides(), **both_or_none)
    for name in ("sensitivity", "specificity"):
        with pytest.raises(SettingsError, match=rf"{name} must be a number in \(0, 1\]"):
            operating_points(two_sides(), **{name: value})
    with pytest.raises(SettingsError, match=r"coverages must be a number in \(0, 1\]"):
        accuracy_at_coverage(two_sides(), [0.5, value])


def test_more_than_two_classes_have_no_operating_point():
    with pytest.raises(DataError, match=r"needs two classes. Received: hem, all, third\."):
        operating_points(two_sides().assign(probability_third=0.0), sensitivity=0.9)


@pytest.mark.parametrize(("what", "gone"), [("sensitivity", "all"), ("specificity", "hem")])
def test_without_the_class_of_the_target_no_threshold_can_be_chosen(what, gone):
    frame = pd.concat([two_sides(backbone="one"), two_sides(backbone="other")])
    gone = (frame["backbone"] == "one") & (frame["side"] == "val") & (frame["label"] == gone)
    result = operating_points(frame[~gone], **{what: 0.9}).set_index("backbone")
    assert result.loc["one", ["value", "low", "high", "threshold"]].isna().all(axis=None)
    assert set(result.loc["one", "reason"]) == {"no threshold is chosen on val: fewer than 5 groups of a class"}
    assert result.loc["other", "value"].notna().all()


def test_a_side_that_one_patient_owns_chooses_no_threshold():
    random, labels = np.random.default_rng(0), np.array([0] * 60 + [1] * 60)
    frame = pd.concat([side_of(s, labels, random.beta(1.5 + 2 * labels, 2.5)) for s in ("val", "test")])
    many = [f"h{i % 6}" for i in range(60)] + ["owner"] * 50 + [f"a{i}" for i in range(10)]
    frame["group"] = frame["side"] + np.array(many * 2, dtype=object)
    reason = "no threshold is chosen on val: effective number of groups of a class below 3"
    assert set(operating_points(frame, sensitivity=0.9)["reason"]) == {reason}


@both
@pytest.mark.parametrize("dtype", [int, float, bool])
def test_labels_and_backbones_may_be_numbers(call, dtype):
    frame = two_sides(backbone=18).rename(columns={HEM: "probability_0", ALL: "probability_1"})
    frame["label"] = (frame["label"] == "all").astype(dtype)
    pd.testing.assert_frame_equal(call(frame).select_dtypes("number"), call(two_sides()).select_dtypes("number"))


@pytest.mark.parametrize("value", [math.nan, 7.0, -3.0])
@both
def test_what_is_no_probability_chooses_no_threshold(call, value):
    with pytest.raises(DataError, match="finite, not negative, and sum to 1"):
        call(two_sides().assign(**{ALL: lambda f: f[ALL].where(f["sample"] != "val1", value)}))


thirds = st.lists(st.tuples(st.sampled_from("pqr"), st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=15)


@given(thirds, thirds, st.integers(1, 20))
def test_the_images_above_the_threshold_are_scored_and_counted(inner, outer, twentieths):
    outer = [*outer, ("q", 8, 8)]
    shares = [np.diff([0, *sorted(cuts), 8]) / 8 for _, *cuts in inner + outer]
    frame = pd.DataFrame(shares, columns=["probability_p", "probability_q", "probability_r"])
    frame["label"], frame["side"] = [cell[0] for cell in inner + outer], ["val"] * len(inner) + ["test"] * len(outer)
    result = accuracy_at_coverage(frame, [twentieths / 20])
    limit = result["threshold"].item()
    confidences = sorted(max(row) for row in shares[: len(inner)])
    assert limit == (0 if twentieths == 20 else confidences[-math.ceil(twentieths * len(inner) / 20)])
    kept = [(row, label) for row, (label, *_) in zip(shares[len(inner) :], outer, strict=True) if max(row) >= limit]
    right = ["pqr"[row.tolist().index(max(row))] == label for row, label in kept]
    numbers = [twentieths / 20, len(right) / len(outer), sum(right) / len(right), len(right)]
    assert result[["wanted", "coverage", "value", "images"]].to_numpy().tolist() == [pytest.approx(numbers)]


def test_each_fold_rejects_below_a_confidence_of_its_own():
    parts = []
    for fold, (low, high) in enumerate([(0.625, 0.875), (0.5625, 0.75)]):
        parts.append(side_of("val", [1] * 10, [low] * 4 + [high] * 6, fold=fold))
        parts.append(side_of("test", [1, 1, 0, 0], [0.6875, 0.8125, 0.9375, 0.0625], fold=fold))
    frame = pd.concat(parts)
    frame["sample"] += "_" + frame["fold"].astype(str)
    result = accuracy_at_coverage(frame, (0.5, 1.0)).set_index("wanted")
    assert result.loc[0.5, ["coverage", "threshold", "value"]].tolist() == pytest.approx([5 / 8, 0.8125, 3 / 5])
    assert result.loc[1.0, ["coverage", "threshold", "value"]].tolist() == pytest.approx([1.0, 0.0, 6 / 8])


def test_half_of_ten_images_that_all_differ_is_five_however_it_is_asked_for():
    frame = pd.concat([side_of(side, [1] * 10, [0.5 + i / 32 for i in range(10)]) for side in ("val", "test")])
    for asked in (0.5, [0.5], np.array([0.5])):
        assert accuracy_at_coverage(frame, asked)["coverage"].tolist() == [0.5]


def test_a_backbone_that_keeps_nothing_at_one_coverage_has_no_row_there():
    frame = pd.concat([side_of(s, [0, 1] * 5, [0.25, 0.75] * 5, backbone=b) for b in "ab" for s in ("val", "test")])
    frame.loc[(frame["backbone"] == "a") & (frame["side"] == "val"), [HEM, ALL]] = [0.0, 1.0]
    found = accuracy_at_coverage(frame, (0.5, 1.0))[["backbone", "wanted"]]
    assert found.to_numpy().tolist() == [["a", 1.0], ["b", 0.5], ["b", 1.0]]


@both
def test_an_image_may_be_on_the_val_side_of_several_folds(call):
    second = two_sides(seed=1, fold=1).replace({"sample": {f"test{i}": f"second{i}" for i in range(24)}})
    shared = pd.concat([two_sides(fold=0), second])
    apart = shared.assign(sample=shared["sample"] + "_" + shared["fold"].astype(str))
    pd.testing.assert_frame_equal(call(shared), call(apart))


def test_a_model_that_keeps_no_image_leaves_no_accuracy_of_the_others_in_its_place():
    sure = two_sides().assign(backbone="net", seed=0)
    unsure = sure.assign(seed=1)
    tested = unsure["side"] == "test"
    unsure.loc[tested, ["probability_hem", "probability_all"]] = 0.51, 0.49
    table = accuracy_at_coverage(pd.concat([sure, unsure]), [1, 0.8])
    assert table["value"].notna().tolist() == [True, False]
    assert table["low"].notna().tolist() == [True, False]
    assert "a net keeps no image" in table["reason"][1]
