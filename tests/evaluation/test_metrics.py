import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leukemia_dl.errors import DataError
from leukemia_dl.evaluation import METRICS, score


@st.composite
def predictions(draw, classes=None):
    k = classes or draw(st.integers(2, 5))
    n = draw(st.integers(1, 60))
    labels = np.array(draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n)), dtype=np.int64)
    raw = (
        np.array(draw(st.lists(st.integers(0, 1000), min_size=n * k, max_size=n * k)), dtype=float).reshape(n, k) + 1e-9
    )
    return labels, raw / raw.sum(axis=1, keepdims=True)


def by_hand(labels, p):
    """The same numbers in plain Python."""
    n, k = p.shape
    guess = [max(range(k), key=lambda c: (row[c], -c)) for row in p]
    recall = {}
    f1 = {}
    for c in range(k):
        hits = sum(g == c and t == c for g, t in zip(guess, labels, strict=True))
        true, said = sum(t == c for t in labels), sum(g == c for g in guess)
        if true:
            recall[c] = hits / true
        f1[c] = 2 * hits / (true + said) if true + said else 0.0
    aucs = []
    for c in range(k) if k > 2 else [1]:
        pos = [p[i, c] for i in range(n) if labels[i] == c]
        neg = [p[i, c] for i in range(n) if labels[i] != c]
        if not pos or not neg:
            aucs.append(math.nan)
            continue
        wins = sum((a > b) + 0.5 * (a == b) for a in pos for b in neg)
        aucs.append(wins / len(pos) / len(neg))
    return {
        "accuracy": sum(g == t for g, t in zip(guess, labels, strict=True)) / n,
        "loss": sum(-math.log(max(p[i, t], 1e-15)) for i, t in enumerate(labels)) / n,
        "balanced_accuracy": sum(recall.values()) / len(recall),
        "weighted_f1": sum(f1[c] * sum(t == c for t in labels) for c in range(k)) / n,
        "macro_f1": sum(f1.values()) / k,
        "auroc": sum(aucs) / len(aucs),
        "sensitivity": recall.get(1, math.nan) if k == 2 else math.nan,
        "specificity": recall.get(0, math.nan) if k == 2 else math.nan,
    }


@settings(max_examples=200, deadline=None)
@given(predictions())
def test_equals_a_plain_implementation(case):
    labels, p = case
    got, expected = score(labels, p), by_hand(labels, p)
    assert tuple(got) == METRICS
    for name in METRICS:
        assert got[name] == pytest.approx(expected[name], abs=1e-9, nan_ok=True), name


@given(predictions(), st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(case, random):
    labels, p = case
    order = list(range(len(labels)))
    random.shuffle(order)
    once, again = score(labels, p), score(labels[order], p[order])
    for name in METRICS:
        assert again[name] == pytest.approx(once[name], abs=1e-9, nan_ok=True)


def test_perfect_and_uniform_predictions():
    labels = np.array([0, 1, 1, 0])
    perfect = score(labels, np.eye(2)[labels])
    assert perfect == {name: 0.0 if name == "loss" else 1.0 for name in METRICS}
    uniform = score(labels, np.full((4, 2), 0.5))
    assert uniform["loss"] == pytest.approx(math.log(2))
    assert uniform["auroc"] == 0.5


def test_undefined_is_nan_not_zero():
    only_ones = score(np.array([1, 1]), np.array([[0.4, 0.6], [0.7, 0.3]]))
    assert math.isnan(only_ones["auroc"])
    assert math.isnan(only_ones["specificity"])
    assert only_ones["sensitivity"] == 0.5
    assert only_ones["balanced_accuracy"] == 0.5


def test_loss_of_a_certain_error_is_finite():
    assert score(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]))["loss"] == pytest.approx(-math.log(1e-15) / 2)


@pytest.mark.parametrize(
    ("labels", "p", "says"),
    [
        ([0, 1], [[0.5, 0.5]], r"\(2,\) and \(1, 2\)"),
        ([], np.empty((0, 2)), "empty"),
        ([0, 2], [[0.5, 0.5]] * 2, "from 0 to 2"),
        ([0, -1], [[0.5, 0.5]] * 2, "cannot be scored"),
        ([0, 1], [[0.5, 0.6]] * 2, "sum to 1"),
        ([0, 1], [[np.nan, 0.5]] * 2, "finite"),
        ([0, 1], [[1.5, -0.5]] * 2, "not negative"),
    ],
)
def test_bad_input_is_refused(labels, p, says):
    with pytest.raises(DataError, match=says):
        score(np.array(labels, dtype=np.int64), np.array(p, dtype=float))
