from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import METRICS, error_list, evaluate, evaluate_groups, group_table

NET = "probability_"
RULES = ("mean_probability", "majority_vote")


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


def exact(right, count, level):
    """Clopper and Pearson's interval from quantiles of beta distributions."""
    tail = (1 - level) / 2
    low = beta.ppf(tail, right, count - right + 1) if right else 0.0
    return low, beta.ppf(1 - tail, right + 1, count - right) if right < count else 1.0


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
@given(frames(), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_verdicts_equal_a_plain_implementation_with_exact_intervals(case, level):
    names, rows = case
    table = table_by_hand(rows, names)
    expected = []
    for backbone in dict.fromkeys(row["backbone"] for row in table):
        groups = [row for row in table if row["backbone"] == backbone]
        pure = [row for row in groups if row["label"]]
        mixed = len(groups) - len(pure)
        metrics = {"accuracy": names}
        metrics |= {"sensitivity": names[1], "specificity": names[0]} if len(names) == 2 else {}
        for rule in RULES:
            for metric, of in metrics.items():
                hits = [row[f"by_{rule}"] == row["label"] for row in pure if row["label"] in of]
                reason = f"{mixed} groups with images of several classes are left out" if mixed else ""
                row = {"backbone": backbone, "rule": rule, "metric": metric, "reason": reason if hits else "no group"}
                numbers = [sum(hits) / len(hits), *exact(sum(hits), len(hits), level)] if hits else [np.nan] * 3
                row |= dict(zip(("value", "low", "high"), numbers, strict=True))
                expected.append(row | {"right": sum(hits), "groups": len(hits)})
    result = evaluate_groups(pd.DataFrame(rows), level=level)
    assert list(result) == ["backbone", "rule", "metric", "value", "low", "high", "unit", "right", "groups", "reason"]
    for got, row in zip(result.to_dict("records"), expected, strict=True):
        for name, value in row.items():
            assert got[name] == (pytest.approx(value, abs=1e-9, nan_ok=True) if isinstance(value, float) else value)


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
    result = evaluate_groups(frame).set_index(["rule", "metric"])
    for rule in RULES:
        assert result.loc[rule, "groups"].to_dict() == {"accuracy": 2, "sensitivity": 1, "specificity": 1}
        assert result.loc[rule, "value"].to_dict() == {"accuracy": 0.5, "sensitivity": 1.0, "specificity": 0.0}
    assert set(result["reason"]) == {"1 groups with images of several classes are left out"}
    only = evaluate_groups(mixed)
    assert only[["value", "low", "high"]].isna().all(axis=None)
    assert only["groups"].tolist() == [0] * 6


def test_intervals_of_all_and_of_none_right_are_one_sided():
    frame = pd.concat([binary(0.75, group=f"g{i}") for i in range(10)], ignore_index=True)
    result = evaluate_groups(frame).set_index(["rule", "metric"]).loc["majority_vote"]
    assert result.loc["accuracy", ["value", "high"]].tolist() == [1.0, 1.0]
    assert result.loc["accuracy", "low"] == pytest.approx(0.025 ** (1 / 10))
    result = evaluate_groups(frame.assign(label="p")).set_index(["rule", "metric"]).loc["majority_vote"]
    assert result.loc["specificity", ["value", "low"]].tolist() == [0.0, 0.0]
    assert result.loc["specificity", "high"] == pytest.approx(1 - 0.025 ** (1 / 10))


def test_the_side_that_is_asked_for_is_taken():
    frame = pd.concat([binary(0.75, side="test"), binary(0.25, 0.25, group="h", side="val")], ignore_index=True)
    assert group_table(frame)["group"].tolist() == ["g"]
    assert group_table(frame, side="val")[["group", "errors"]].to_numpy().tolist() == [["h", 2]]
    assert evaluate_groups(frame, side="val")["right"].tolist() == [0] * 6
    assert error_list(frame).empty
    assert error_list(frame, side="val")["sample"].tolist() == ["h0", "h1"]


def test_subjects_stand_in_for_groups_and_without_both_there_is_no_verdict():
    frame = binary(0.25, 0.75, 0.25).assign(subject=["u", "v", "u"])
    assert group_table(frame.drop(columns="group"))["group"].tolist() == ["u", "v"]
    assert error_list(frame.assign(group=None))["errors_in_group"].tolist() == [2, 2]
    for nothing in (frame.drop(columns=["group", "subject"]), frame.assign(group=None, subject=None)):
        for function in (group_table, evaluate_groups):
            with pytest.raises(DataError, match="Nothing is known of subjects"):
                function(nothing)
        assert error_list(nothing)["predicted"].tolist() == ["p", "p"]


@pytest.mark.parametrize("level", [0, 1, 95, "0.95", True, 0.4])
def test_a_level_out_of_range_is_refused(level):
    with pytest.raises(SettingsError, match="level must be a number"):
        evaluate_groups(binary(0.75), level=level)


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
