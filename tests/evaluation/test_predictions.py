import logging
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import METRICS, evaluate, score
from leukemia_dl.evaluation.predictions import (
    class_names_of,
    groups_of,
    models_of,
    select_side,
    unit_column,
    validated_predictions,
)

NET = "probability_"


def models(frame, *args, **settings):
    return models_of(validated_predictions(frame), *args, **settings)


def frame_of(labels, positive=None, **columns):
    """Binary predictions of the classes hem and all."""
    positive = [0.25] * len(labels) if positive is None else positive
    return pd.DataFrame(
        {"label": labels, NET + "hem": [1 - p for p in positive], NET + "all": positive, **columns},
    )


@st.composite
def runs(draw):
    """Rows of several backbones, seeds and repeats, shuffled; every probability is a multiple of 1/16."""
    images = draw(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("pqr")), min_size=1, max_size=6))
    rows = []
    for backbone in draw(st.sampled_from(["a", "ab", "bac"])):
        for seed in range(draw(st.integers(1, 2))):
            for repeat in range(draw(st.integers(1, 2))):
                for number, (group, label) in enumerate(images):
                    cuts = sorted(draw(st.tuples(st.integers(0, 16), st.integers(0, 16))))
                    shares = [cuts[0] / 16, (cuts[1] - cuts[0]) / 16, 1 - cuts[1] / 16]
                    row = {"backbone": backbone, "seed": seed, "repeat": repeat, "fold": number % 2}
                    row |= {"sample": f"s{number}", "group": f"g{group}", "label": label}
                    rows.append(row | {NET + name: share for name, share in zip("pqr", shares, strict=True)})
    return pd.DataFrame(draw(st.permutations(rows)))


@settings(max_examples=60)
@given(runs())
def test_a_run_holds_the_rows_of_one_backbone_seed_and_repeat_in_their_order(frame):
    expected = {}
    for row in frame.to_dict("records"):
        expected.setdefault(row["backbone"], {}).setdefault((row["seed"], row["repeat"]), []).append(row)
    found = models(frame)
    assert [model.name for model in found] == list(expected)
    for model in found:
        assert len(model.runs) == len(expected[model.name])
        assert len(set(model.units)) == len(model.units)
        for run, rows in zip(model.runs, expected[model.name].values(), strict=True):
            shares = [[row[NET + name] for name in "pqr"] for row in rows]
            assert run.samples.tolist() == [row["sample"] for row in rows]
            assert run.labels.tolist() == ["pqr".index(row["label"]) for row in rows]
            assert run.probabilities.tolist() == shares
            assert run.predicted.tolist() == [max(range(3), key=lambda c, p=p: (p[c], -c)) for p in shares]
            assert [model.units[code] for code in run.unit] == [row["group"] for row in rows]
            same_fold = run.fold[:, None] == run.fold[None, :]
            folds = np.array([row["fold"] for row in rows])
            np.testing.assert_array_equal(same_fold, folds[:, None] == folds[None, :])


def test_classes_are_in_the_order_of_their_columns():
    assert class_names_of(frame_of(["hem"])) == ("hem", "all")
    assert class_names_of(frame_of(["hem"])[[NET + "all", "label", NET + "hem"]]) == ("all", "hem")
    assert models(frame_of(["hem"])[[NET + "all", NET + "hem", "label"]])[0].runs[0].labels.tolist() == [1]


def test_predictions_without_the_truth_are_refused_with_how_to_join_it():
    """20.1: what `predict` returns is no frame to evaluate, whatever is called predicted in it."""
    frame = frame_of(["hem", "all", "all"]).rename(columns={"label": "predicted"})
    for key in ("sample", "path"):
        with pytest.raises(DataError, match=rf"no column label, the true class.*truth\[\['{key}', 'label'\]\]"):
            evaluate(frame.assign(**{key: list("abc")}))


@pytest.mark.parametrize("column", [NET + "hem", NET + "all"])
def test_a_missing_column_is_named_with_what_there_is(column):
    frame = frame_of(["hem", "all"], backbone="cnn").drop(columns=column)
    with pytest.raises(DataError, match=rf"column label and a column probability_.*Received: {', '.join(frame)}\."):
        models(frame)


pair, numbered = frame_of(["hem", "all"]), pd.DataFrame({NET + "0": [0.5] * 3, NET + "1": 0.5})
same_group = pair.assign(sample="s1", label="all", seed=[0, 1], group=["g1", f"g{len(pair) - 1}"])


def test_rows_of_images_that_could_not_be_read_are_refused_with_what_to_do():
    """20.23: `predict` gives them a row with the reason in the column error, and no probabilities."""
    frame = pd.DataFrame({"label": ["a", "b"], "probability_a": [0.9, None], "probability_b": [0.1, None]})
    with pytest.raises(DataError, match=r"1 of 2 rows are images that could not be read.*frame\['error'\].isna"):
        validated_predictions(frame.assign(error=[None, "it is cut off"]))
    assert len(validated_predictions(frame[:1].assign(error=[None]))) == 1


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        ([1, 2], "Received: list"),
        (np.zeros((2, 3)), "Received: ndarray"),
        (pair.iloc[:0], "The frame has: no rows at all"),
        (frame_of(["hem", "blast", "all", "blast"]), r"without a probability_ column: blast\. Classes: hem, all"),
        (numbered.assign(label=[1.0, 0.0, 0.5]), "without a probability_ column: .*0.5"),
        (numbered.assign(label=[1.0, 0.0, np.inf]), "probability_ column: .*inf"),
        (pair.assign(**{NET + "hem": ["0.75", "high"]}), "must hold numbers.*high"),
        (pair.assign(**{NET + "hem": pd.Series([0.75, pd.NA], dtype=object)}), "must hold numbers.*NA"),
        (pair.assign(sample="s1", label="hem", backbone="cnn"), "cnn has several .* 's1' in one run.*seed.*repeat"),
        (pair.assign(sample="s1", seed=[0, 1]), "'s1' has two values of label: 'hem' and 'all'"),
        (pair.assign(sample="s1", label="all", seed=[0, 1], group=["g", "h"]), "two values of group: 'g' and 'h'"),
        (same_group.assign(subject=["u", "v"]), "two values of subject: 'u' and 'v'"),
        (pair.assign(backbone=["cnn", None]), "1 of 2 predictions have no backbone"),
        (pair.assign(sample=["s", None]), "1 of 2 predictions have no sample"),
        (pair.assign(kind="net"), "column kind holds 'backbone' or 'baseline'.*net"),
        (pair.assign(label="all", seed=[0, 1]), "several seeds .* need a column sample"),
        (pd.concat([pair, pair[[NET + "hem"]]], axis=1), f"column '{NET}hem' is there twice"),
    ],
)
def test_what_is_no_prediction_frame_is_refused_with_what_came(frame, says):
    with pytest.raises(DataError, match=says):
        evaluate(frame)


@pytest.mark.parametrize("others", [["hem", "all"], ["hem", "blast"]])
@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
@pytest.mark.parametrize("dtype", [object, "string"])
def test_a_missing_label_says_that_it_cannot_be_scored(missing, others, dtype):
    labels = pd.Series([*others, missing], dtype=dtype)
    with pytest.raises(DataError, match="without a label cannot be scored"):
        evaluate(frame_of(labels))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, "Int64", float, "Float64", bool, "boolean", object, "category"])
def test_labels_that_are_numbers_or_true_and_false_match_the_names_of_columns(dtype):
    labels = pd.Series([1, 0, 1], dtype=dtype)
    frame = pd.DataFrame({"label": labels, NET + "0": [0.25, 0.75, 0.5], NET + "1": [0.75, 0.25, 0.5]})
    assert models(frame)[0].runs[0].labels.tolist() == [1, 0, 1]
    assert models(frame)[0].runs[0].predicted.tolist() == [1, 0, 0]
    assert models(frame.assign(label=["1.0", "0.0", "1"]))[0].runs[0].labels.tolist() == [1, 0, 1]  # from a CSV file
    named = pd.DataFrame({"label": labels.astype(bool), NET + "False": 0.25, NET + "True": 0.75})
    assert models(named)[0].runs[0].labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("positive", [[np.nan, 0.5], [np.inf, 0.5], [1.25, 0.5], [-0.25, 0.5]])
def test_what_is_no_probability_is_refused_with_the_first_row_that_is_not(positive):
    row = re.escape(f"[{1 - positive[0]}, {positive[0]}]")
    with pytest.raises(DataError, match=f"finite, not negative, and sum to 1.* 1 rows are not so.*: {row}"):
        models(frame_of(["hem", "all", "all"], [0.5, *positive]))


def test_thirds_of_two_digits_sum_to_one_up_to_rounding():
    thirds = pd.DataFrame({"label": ["p", "q"], NET + "p": 0.33, NET + "q": 0.33, NET + "r": 0.33})
    assert models(thirds)[0].runs[0].predicted.tolist() == [0, 0]


def test_rows_sum_to_one_up_to_rounding_and_are_taken_as_they_are():
    rounded = frame_of(["hem", "all"], [0.33, 0.667]).assign(**{NET + "hem": [0.666, 0.33]})
    assert models(rounded)[0].runs[0].probabilities.tolist() == [[0.666, 0.33], [0.33, 0.667]]
    with pytest.raises(DataError, match=r"sum to 1 in each row \(within 0.01\)\. 1 rows"):
        models(rounded.assign(**{NET + "hem": [0.666, 0.36]}))


def test_one_side_is_taken_and_the_others_are_left():
    frame = frame_of(["hem", "all", "all"], side=["val", "test", "val"], sample=["a", "b", "c"])
    assert select_side(frame, "val")["sample"].tolist() == ["a", "c"]
    assert models(frame)[0].runs[0].samples.tolist() == ["b"]
    assert models(frame, "val")[0].runs[0].samples.tolist() == ["a", "c"]
    with pytest.raises(DataError, match=r"side 'train'. The frame has: val, test\."):
        select_side(frame, "train")
    with pytest.raises(DataError, match="no rows at all"):
        select_side(frame.iloc[:0], "test")
    assert select_side(frame.drop(columns="side"), "anything")["sample"].tolist() == ["a", "b", "c"]


def test_images_without_a_label_on_another_side_do_not_matter():
    frame = frame_of(["hem", "all", None], side=["test", "test", "final"])
    assert evaluate(frame, metrics="accuracy")["value"].tolist() == [0.5]


@pytest.mark.parametrize("column", [{"seed": [0, 1]}, {"repeat": [0, 1]}, {"seed": ["x", "y"], "repeat": 0}])
def test_a_sample_twice_is_right_where_a_column_tells_the_runs_apart(column):
    twice = frame_of(["all", "all"], [0.25, 0.75], sample="s", **column)
    assert [run.predicted.tolist() for run in models(twice)[0].runs] == [[0], [1]]
    assert evaluate(twice, metrics="accuracy")[["value", "seeds", "images"]].to_numpy().tolist() == [[0.5, 2, 1]]


@pytest.mark.parametrize("column", ["seed", "repeat"])
def test_a_backbone_has_a_seed_in_all_rows_or_in_none(column):
    frame = frame_of(["all"] * 3, backbone=["a", "a", "b"], sample=["s", "t", "s"], **{column: [0, 0, None]})
    assert [len(model.runs) for model in models(frame)] == [1, 1]
    with pytest.raises(DataError, match=f"Some predictions of a have no {column}"):
        models(frame.assign(**{column: [0, None, None]}))
    for nothing in (None, pd.array([pd.NA] * 3, "Int64")):
        assert [len(model.runs) for model in models(frame.assign(**{column: nothing}))] == [1, 1]


def test_a_column_that_looks_like_subjects_is_pointed_at(caplog):
    with caplog.at_level(logging.WARNING):
        assert models(frame_of(["hem", "all"], Patient_ID=["u", "v"]))[0].unit == "image"
    assert "'Patient_ID'" in caplog.text
    caplog.clear()
    assert models(frame_of(["hem", "all"], Patient_ID=["u", "v"], subject=["u", "v"]))[0].unit == "group"
    assert not caplog.text


def test_groups_come_before_subjects_and_subjects_before_images():
    both = frame_of(["hem", "hem"], sample=["s0", "s1"], group=["g", "g"], subject=["u", "v"])
    for frame, units, unit in [
        (both, ("g",), "group"),
        (both.drop(columns="group"), ("u", "v"), "group"),
        (both.assign(group=None), ("u", "v"), "group"),
        (both.assign(group=None, subject=np.nan), ("s0", "s1"), "image"),
        (both.drop(columns=["group", "subject"]), ("s0", "s1"), "image"),
    ]:
        model = models(frame)[0]
        assert (model.units, model.unit) == (units, unit)


@pytest.mark.parametrize(("column", "other"), [("group", {}), ("subject", {"group": None}), ("subject", {})])
def test_partly_missing_groups_are_counted_and_refused(column, other):
    frame = frame_of(["hem"] * 3, sample=list("abc"), **other, **{column: ["g", None, None]})
    with pytest.raises(DataError, match=rf"2 of 3 predictions have no {column}\."):
        models(frame)
    sides = frame.assign(side=["test", "val", "val"])
    assert models(sides)[0].units == ("g",)
    assert models(sides, "val")[0].unit == "image"


def test_only_takes_backbones_in_the_order_asked_for():
    frame = frame_of(["hem"] * 3, backbone=["a", "b", "c"], kind=["backbone", "backbone", "baseline"])
    assert [(model.name, model.kind) for model in models(frame)][2] == ("c", "baseline")
    assert [model.name for model in models(frame, only=["c", "a"])] == ["c", "a"]
    assert [model.name for model in models(frame, only="b")] == ["b"]
    assert [model.name for model in models(frame, only=(name for name in "ba"))] == ["b", "a"]
    with pytest.raises(SettingsError, match=r"each once: a, b, c\. Received: \['a', 'd', 'e'\]\."):
        models(frame, only=["a", "d", "e"])
    for names in ([], ["a", "a"]):
        with pytest.raises(SettingsError, match="each once"):
            models(frame, only=names)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 64)), min_size=2, max_size=30))
def test_an_external_frame_of_labels_and_probabilities_is_enough(rows):
    labels, p = np.array([int(label) for label, _ in rows]), np.array([share / 64 for _, share in rows])
    result = evaluate(frame_of(np.array(["hem", "all"])[labels], p))
    expected = score(labels, np.column_stack([1 - p, p]))
    assert result["metric"].tolist() == list(METRICS)
    assert result["value"].tolist() == pytest.approx([expected[name] for name in METRICS], nan_ok=True)
    assert set(result["backbone"]) == {"model"}
    assert set(result["seeds"]) == {1}
    assert set(result["images"]) == {len(rows)}
    assert result["groups"].isna().all()
    assert set(result["unit"]) == {"image"}
    assert (result["low"].isna() | (result["low"] <= result["value"] + 1e-9)).all()


@pytest.mark.parametrize("column", ["Side", "Backbone", "SUBJECT", " group"])
def test_columns_in_upper_case_are_refused(column):
    """20.1: `Side` was no column side, so that val and test rows were scored together."""
    frame = frame_of(["hem", "all"]).assign(**{column: "x"})
    frame = frame.drop(columns=[name for name in frame if name == column.strip().lower()])
    with pytest.raises(DataError, match=r"lower case: frame\.rename"):
        validated_predictions(frame)


def test_names_of_patients_follow_the_rule_of_data_sets():
    """20.19: "12" and "12.0" were two patients, and "unknown" was one."""
    frame = frame_of(["hem"] * 6, subject=["12", "12.0", "P1", "p1 ", "x", "x"])
    assert validated_predictions(frame)["subject"].tolist() == ["12", "12", "P1", "P1", "x", "x"]
    frame["subject"] = ["a", "a", "unknown", "NA", "-", "?"]
    with pytest.raises(DataError, match="4 of 6 predictions have no subject"):
        groups_of(validated_predictions(frame))
    frame["group"] = "-"
    assert unit_column(validated_predictions(frame)) == "subject"
