import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import METRICS, evaluate, score
from leukemia_dl.evaluation.predictions import class_names_of, models_of, select_side

NET = "probability_"


def bug(raises, reason):
    return pytest.mark.xfail(strict=True, raises=raises, reason=reason)


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
    models = models_of(frame)
    assert [model.name for model in models] == list(expected)
    for model in models:
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
    assert models_of(frame_of(["hem"])[[NET + "all", "label", NET + "hem"]])[0].runs[0].labels.tolist() == [1]


@pytest.mark.parametrize("column", ["label", NET + "hem", NET + "all"])
def test_a_missing_column_is_named_with_what_there_is(column):
    frame = frame_of(["hem", "all"], backbone="cnn").drop(columns=column)
    with pytest.raises(DataError, match=rf"column label and a column probability_.*Received: {', '.join(frame)}\."):
        models_of(frame)


@pytest.mark.parametrize("frame", [None, [1, 2], {"label": ["hem"]}, np.zeros((2, 3))])
def test_what_is_no_frame_is_refused_by_its_type(frame):
    with pytest.raises(DataError, match=f"Received: {type(frame).__name__}"):
        evaluate(frame)


def test_a_label_without_a_column_is_named_and_only_it():
    with pytest.raises(DataError, match=r"no probability_ column: blast\. Classes: hem, all"):
        models_of(frame_of(["hem", "blast", "all", "blast"]))


@bug(TypeError, "with pandas 3, astype(str) leaves NaN as it is, and the message joins and sorts it with strings")
@pytest.mark.parametrize("others", [["hem", "all"], ["hem", "blast"]])
@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
@pytest.mark.parametrize("dtype", [object, "string"])
def test_a_missing_label_says_that_it_cannot_be_scored(missing, others, dtype):
    labels = pd.Series([*others, missing], dtype=dtype)
    with pytest.raises(DataError, match="without a label cannot be scored"):
        evaluate(frame_of(labels))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, "Int64", object, "category"])
def test_labels_that_are_integers_match_the_names_of_columns(dtype):
    labels = pd.Series([1, 0, 1], dtype=dtype)
    frame = pd.DataFrame({"label": labels, NET + "0": [0.25, 0.75, 0.5], NET + "1": [0.75, 0.25, 0.5]})
    assert models_of(frame)[0].runs[0].labels.tolist() == [1, 0, 1]
    assert models_of(frame)[0].runs[0].predicted.tolist() == [1, 0, 0]
    assert evaluate(frame, metrics="accuracy")["value"].item() == pytest.approx(2 / 3)


def test_labels_that_are_true_and_false_match_columns_of_these_names():
    frame = pd.DataFrame({"label": [True, False], NET + "False": [0.25, 0.25], NET + "True": [0.75, 0.75]})
    assert models_of(frame)[0].runs[0].labels.tolist() == [1, 0]


@pytest.mark.parametrize("positive", [[np.nan, 0.5], [np.inf, 0.5], [1.25, 0.5], [-0.25, 0.5]])
def test_what_is_no_probability_is_refused(positive):
    with pytest.raises(DataError, match="finite, not negative, and sum to 1"):
        models_of(frame_of(["hem", "all"], positive))


def test_rows_sum_to_one_up_to_rounding_and_are_taken_as_they_are():
    rounded = frame_of(["hem", "all"], [0.333, 0.667]).assign(**{NET + "hem": [0.6665, 0.3335]})
    assert models_of(rounded)[0].runs[0].probabilities.tolist() == [[0.6665, 0.333], [0.3335, 0.667]]
    with pytest.raises(DataError, match="sum to 1"):
        models_of(rounded.assign(**{NET + "hem": [0.6665, 0.335]}))


@bug((ValueError, TypeError), "the error of to_numpy(float64) comes through bare")
@pytest.mark.parametrize("value", ["high", pd.NA])
def test_a_probability_that_is_no_number_is_a_data_error(value):
    with pytest.raises(DataError):
        models_of(frame_of(["hem", "all"]).assign(**{NET + "hem": pd.Series([0.75, value], dtype=object)}))


def test_one_side_is_taken_and_the_others_are_left():
    frame = frame_of(["hem", "all", "all"], side=["val", "test", "val"], sample=["a", "b", "c"])
    assert select_side(frame, "val")["sample"].tolist() == ["a", "c"]
    assert models_of(frame)[0].runs[0].samples.tolist() == ["b"]
    assert models_of(frame, "val")[0].runs[0].samples.tolist() == ["a", "c"]
    with pytest.raises(DataError, match=r"side 'train'. The column side has: val, test\."):
        select_side(frame, "train")
    with pytest.raises(DataError, match="no rows at all"):
        select_side(frame.iloc[:0], "test")
    no_side = frame.drop(columns="side")
    assert select_side(no_side, "anything")["sample"].tolist() == ["a", "b", "c"]
    with pytest.raises(DataError, match="the frame is empty"):
        models_of(no_side.iloc[:0])


def test_a_sample_twice_in_one_run_is_named():
    with pytest.raises(DataError, match=r"cnn has several predictions of sample 's1' in one run.*repeat.*seed"):
        models_of(frame_of(["hem", "all", "all"], sample=["s0", "s1", "s1"], fold=[0, 0, 1], backbone="cnn"))


@pytest.mark.parametrize("column", ["seed", "repeat"])
@pytest.mark.parametrize("values", [[0, 1], [0, None], ["x", "y"]])
def test_a_sample_twice_is_right_where_a_column_tells_the_runs_apart(column, values):
    twice = frame_of(["all", "all"], [0.25, 0.75], sample="s", **{column: values})
    assert [run.predicted.tolist() for run in models_of(twice)[0].runs] == [[0], [1]]
    assert evaluate(twice, metrics="accuracy")[["value", "seeds", "images"]].to_numpy().tolist() == [[0.5, 2, 1]]


def test_without_seeds_there_is_one_run_also_where_every_seed_is_missing():
    for columns in ({}, {"seed": [None, None]}, {"seed": pd.array([pd.NA, pd.NA], "Int64"), "repeat": [0, 0]}):
        assert [len(run.labels) for run in models_of(frame_of(["hem", "all"], **columns))[0].runs] == [2]


def test_groups_come_before_subjects_and_subjects_before_images():
    both = frame_of(["hem", "hem"], sample=["s0", "s1"], group=["g", "g"], subject=["u", "v"])
    empty_group = both.assign(group=None)
    empty_both = empty_group.assign(subject=np.nan)
    for frame, units, by_group in [
        (both, ("g",), True),
        (both.drop(columns="group"), ("u", "v"), True),
        (empty_group, ("u", "v"), True),
        (empty_both, ("s0", "s1"), False),
        (both.drop(columns=["group", "subject"]), ("s0", "s1"), False),
    ]:
        model = models_of(frame)[0]
        assert (model.units, model.by_group) == (units, by_group)


@pytest.mark.parametrize(("column", "other"), [("group", {}), ("subject", {"group": None}), ("subject", {})])
def test_partly_missing_groups_are_counted_and_refused(column, other):
    frame = frame_of(["hem"] * 3, sample=list("abc"), **other, **{column: ["g", None, None]})
    with pytest.raises(DataError, match=rf"2 of 3 predictions have no {column}\."):
        models_of(frame)
    assert models_of(frame.iloc[:1])[0].units == ("g",)


def test_a_gap_on_another_side_does_not_matter():
    frame = frame_of(["hem", "all"], side=["val", "test"], group=[None, "g"])
    assert models_of(frame)[0].units == ("g",)
    assert models_of(frame, "val")[0].by_group is False


def test_only_takes_backbones_in_the_order_asked_for():
    frame = frame_of(["hem"] * 3, backbone=["a", "b", "c"], kind=["backbone", "backbone", "baseline"])
    assert [(model.name, model.kind) for model in models_of(frame)][2] == ("c", "baseline")
    assert [model.name for model in models_of(frame, only=["c", "a"])] == ["c", "a"]
    assert [model.name for model in models_of(frame, only="b")] == ["b"]
    assert [model.name for model in models_of(frame, only=(name for name in "ba"))] == ["b", "a"]
    with pytest.raises(SettingsError, match=r"No predictions of 'd', 'e'. The frame has: a, b, c\."):
        models_of(frame, only=["a", "d", "e"])


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
    assert "low" not in result
    assert (result["low_image_level"].isna() | (result["low_image_level"] <= result["value"])).all()


@bug(ValueError, "factorize gives a missing sample the unit -1, which bincount refuses")
def test_a_missing_sample_id_is_a_data_error_also_without_groups():
    with pytest.raises(DataError):
        evaluate(frame_of(["hem", "all"], sample=["s", None]))


@bug(IndexError, "a missing name equals no row, not even its own")
def test_a_missing_backbone_is_a_data_error():
    with pytest.raises(DataError):
        models_of(frame_of(["hem", "all"], backbone=["cnn", None]))


@bug(pd.errors.InvalidIndexError, "get_indexer of names that are there twice")
def test_two_columns_of_one_class_are_a_data_error():
    frame = frame_of(["hem", "all"])
    with pytest.raises(DataError):
        models_of(pd.concat([frame, frame[[NET + "hem"]]], axis=1))
