from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import METRICS, error_list, evaluate, group_table

NET = "probability_"


@st.composite
def frames(draw, classes=None):
    """Rows of predictions, shuffled; probabilities are multiples of 1/8, so that equal means are equal to the bit."""
    names = "pqrs"[: classes or draw(st.integers(2, 4))]
    pure = draw(st.booleans())
    images = draw(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(names)), min_size=1, max_size=9))
    rows = []
    for backbone in draw(st.sampled_from(["a", "ba"])):
        for seed in range(draw(st.integers(1, 3))):
            for number, (group, label) in enumerate(images):
                cuts = sorted(draw(st.tuples(*[st.integers(0, 8)] * (len(names) - 1))))
                shares = [(high - low) / 8 for low, high in zip([0, *cuts], [*cuts, 8], strict=True)]
                row = {"backbone": backbone, "seed": seed, "sample": f"s{number}", "kind": "backbone"}
                row |= {"group": f"g{group}", "label": names[group % len(names)] if pure else label}
                rows.append(row | {NET + name: share for name, share in zip(names, shares, strict=True)})
    return names, draw(st.permutations(rows))


def most(shares):
    """The first of the highest."""
    return max(shares, key=lambda name: shares[name])


def predicted(row, names):
    return most({name: row[NET + name] for name in names})


def table_by_hand(rows, names):
    found = []
    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        own = [row for row in rows if row["backbone"] == backbone]
        verdicts = []
        for group in sorted({row["group"] for row in own}):
            part = [row for row in own if row["group"] == group]
            labels = {row["label"] for row in part}
            said = [predicted(row, names) for row in part]
            means = {name: sum(row[NET + name] for row in part) / len(part) for name in names}
            votes = {name: (said.count(name), means[name]) for name in names}
            wrong = sum(guess != row["label"] for guess, row in zip(said, part, strict=True))
            verdicts.append(
                {
                    "backbone": backbone,
                    "group": group,
                    "label": labels.pop() if len(labels) == 1 else None,
                    "images": len({row["sample"] for row in part}),
                    "predictions": len(part),
                    "errors": wrong,
                    "error_share": Fraction(wrong, len(part)),
                    "by_mean_probability": most(means),
                    "by_majority_vote": most(votes),
                }
                | {NET + name: means[name] for name in names}
            )
        found += sorted(verdicts, key=lambda verdict: -verdict["error_share"])
    return found


@settings(max_examples=60)
@given(frames())
def test_the_table_equals_a_plain_implementation(case):
    names, rows = case
    table, expected = group_table(pd.DataFrame(rows)), table_by_hand(rows, names)
    assert list(table) == list(expected[0])
    assert len(table) == len(expected)
    for name in expected[0].keys() - {"label"}:
        values = [row[name] for row in expected]
        exactly = isinstance(values[0], (str, int))
        assert table[name].tolist() == (values if exactly else pytest.approx([float(value) for value in values])), name
    assert [None if pd.isna(label) else label for label in table["label"]] == [row["label"] for row in expected]


@settings(max_examples=40)
@given(frames(), st.booleans())
def test_the_list_of_errors_equals_a_plain_implementation(case, grouped):
    names, rows = case
    wrong = [row for row in rows if predicted(row, names) != row["label"]]
    assume(wrong)
    expected = []
    for row in wrong:
        alike = [one for one in wrong if (one["backbone"], one["group"]) == (row["backbone"], row["group"])]
        more = {"predicted": predicted(row, names), "confidence": max(row[NET + name] for name in names)}
        expected.append(row | more | {"errors_in_group": len(alike)})
    if grouped:
        expected.sort(key=lambda row: (row["backbone"], -row["errors_in_group"], row["group"], -row["confidence"]))
        assert error_list(pd.DataFrame(rows)).to_dict("records") == expected
    else:
        kept = [{name: row[name] for name in row if name not in ("group", "errors_in_group")} for row in expected]
        kept.sort(key=lambda row: (row["backbone"], -row["confidence"]))
        assert error_list(pd.DataFrame(rows).drop(columns="group")).to_dict("records") == kept


@settings(max_examples=30)
@given(frames(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter_to_what_is_said_of_a_group(case, random):
    _, rows = case
    again = random.sample(rows, len(rows))
    key = ["backbone", "group"]
    one, other = (group_table(pd.DataFrame(part)).sort_values(key, ignore_index=True) for part in (rows, again))
    pd.testing.assert_frame_equal(one, other)


def binary(*positive, label="q", group="g", **columns):
    return pd.DataFrame({NET + "p": [1 - x for x in positive], NET + "q": positive}).assign(
        label=label, group=group, sample=[f"{group}{i}" for i in range(len(positive))], **columns
    )


def test_equal_votes_go_to_the_higher_mean_probability_and_else_to_the_first_class():
    for positive, mean, vote in [
        ([0.875, 0.375], "q", "q"),
        ([0.625, 0.125], "p", "p"),
        ([0.75, 0.25], "p", "p"),
        ([0.625, 0.625, 0.0], "p", "q"),
    ]:
        row = group_table(binary(*positive)).iloc[0]
        assert (row["by_mean_probability"], row["by_majority_vote"]) == (mean, vote), positive


def test_three_equal_votes_of_three_classes_are_decided_by_the_mean():
    shares = np.array([[0.5, 0.25, 0.25], [0.0, 0.5625, 0.4375], [0.25, 0.0, 0.75]])
    frame = pd.DataFrame(shares, columns=[NET + name for name in "pqr"]).assign(label="p", group="g")
    assert group_table(frame)[["by_mean_probability", "by_majority_vote"]].to_numpy().tolist() == [["r", "r"]]


def test_a_mixed_group_has_no_label_and_no_verdict():
    mixed = binary(0.75, 0.75, group="m").assign(label=["p", "q"])
    frame = pd.concat([binary(0.75), binary(0.75, group="h", label="p"), mixed], ignore_index=True)
    table = group_table(frame).set_index("group")
    assert table["label"].isna().to_dict() == {"h": False, "m": True, "g": False}
    assert table["error_share"].to_dict() == {"h": 1.0, "m": 0.5, "g": 0.0}


def test_the_side_that_is_asked_for_is_taken():
    frame = pd.concat([binary(0.75, side="test"), binary(0.25, 0.25, group="h", side="val")], ignore_index=True)
    assert group_table(frame)["group"].tolist() == ["g"]
    assert group_table(frame, side="val")[["group", "errors"]].to_numpy().tolist() == [["h", 2]]
    assert error_list(frame).empty
    assert error_list(frame, side="val")["sample"].tolist() == ["h0", "h1"]


def test_subjects_stand_in_for_groups_and_without_both_there_is_no_verdict():
    frame = binary(0.25, 0.75, 0.25).assign(subject=["u", "v", "u"])
    assert group_table(frame.drop(columns="group"))["group"].tolist() == ["u", "v"]
    assert error_list(frame.assign(group=None))["errors_in_group"].tolist() == [2, 2]
    for nothing in (frame.drop(columns=["group", "subject"]), frame.assign(group=None, subject=None)):
        with pytest.raises(DataError, match="Nothing is known of subjects"):
            group_table(nothing)
        assert error_list(nothing)["predicted"].tolist() == ["p", "p"]


@pytest.mark.parametrize("level", [0, 1, 95, "0.95", True, 0.4])
def test_a_level_out_of_range_is_refused(level):
    with pytest.raises(SettingsError, match="level must be a number"):
        evaluate(binary(0.75), level=level)


def test_a_list_without_errors_has_the_columns_of_one_with_errors():
    assert error_list(binary(0.75))["errors_in_group"].tolist() == []


@pytest.mark.parametrize("labels", [[0.0, 1.0], [False, True]])
def test_labels_that_evaluate_takes_for_classes_are_not_errors(labels):
    frame = pd.DataFrame({NET + "0": [0.75, 0.25], NET + "1": [0.25, 0.75], "label": labels, "group": ["g", "h"]})
    assert group_table(frame)["errors"].tolist() == [0, 0]
    assert error_list(frame).empty


@pytest.mark.parametrize("metrics", [None, [], ["accuracy"], pd.Series(["accuracy"]), np.array(["loss", "accuracy"])])
def test_metrics_are_named_in_any_list(metrics):
    frame = pd.DataFrame({"label": ["p", "q"] * 20, "group": [f"g{row // 2}" for row in range(40)]})
    frame = frame.assign(probability_p=[0.8, 0.3] * 20, probability_q=[0.2, 0.7] * 20)
    expected = METRICS if metrics is None or not len(metrics) else list(metrics)
    assert evaluate(frame, metrics=metrics)["metric"].tolist() == list(expected)
