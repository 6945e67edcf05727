import math

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import METRICS, score
from leukemia_dl.evaluation.metrics import Run, metric, values
from predictions import scored

UNBOUNDED = {"loss", "balanced_loss", "calibration_slope", "calibration_intercept"}
FITTED = {"calibration_slope", "calibration_intercept"}
quick = settings(max_examples=80, deadline=None)


def by_hand(labels, p):
    """The same numbers in plain Python."""
    n, k = p.shape
    guess = [max(range(k), key=lambda c: (row[c], -c)) for row in p]
    recall, loss, f1, precision = {}, {}, {}, {}
    for c in range(k):
        hits = sum(g == c and t == c for g, t in zip(guess, labels, strict=True))
        true, said = sum(t == c for t in labels), sum(g == c for g in guess)
        if true:
            recall[c] = hits / true
            loss[c] = sum(-math.log(max(p[i, c], 1e-15)) for i in range(n) if labels[i] == c) / true
        if said:
            precision[c] = hits / said
        if true + said:
            f1[c] = 2 * hits / (true + said)
    aucs = []
    for c in range(k) if k > 2 else [1]:
        pos = [p[i, c] for i in range(n) if labels[i] == c]
        neg = [p[i, c] for i in range(n) if labels[i] != c]
        wins = sum((a > b) + 0.5 * (a == b) for a in pos for b in neg)
        aucs.append(wins / len(pos) / len(neg) if pos and neg else math.nan)
    error = 0.0
    for b in range(15):
        inside = [i for i in range(n) if b / 15 < p[i].max() <= (b + 1) / 15]
        error += abs(sum(p[i].max() - (guess[i] == labels[i]) for i in inside)) / n
    two = k == 2
    return {
        "accuracy": sum(g == t for g, t in zip(guess, labels, strict=True)) / n,
        "loss": sum(-math.log(max(p[i, t], 1e-15)) for i, t in enumerate(labels)) / n,
        "balanced_accuracy": sum(recall.values()) / len(recall),
        "balanced_loss": sum(loss.values()) / len(loss),
        "weighted_f1": sum(f1.get(c, 0) * sum(t == c for t in labels) for c in range(k)) / n,
        "macro_f1": sum(f1.values()) / len(f1),
        "auroc": sum(aucs) / len(aucs),
        "sensitivity": recall.get(1, math.nan) if two else math.nan,
        "specificity": recall.get(0, math.nan) if two else math.nan,
        "ppv": precision.get(1, math.nan) if two else math.nan,
        "npv": precision.get(0, math.nan) if two else math.nan,
        "prevalence": sum(t == 1 for t in labels) / n if two else math.nan,
        "brier": sum((p[i, c] - (labels[i] == c)) ** 2 for i in range(n) for c in range(k)) / n / (2 if two else 1),
        "ece": error,
    }


@quick
@given(scored())
def test_equals_a_plain_implementation(case):
    labels, p = case
    got = score(labels, p)
    assert tuple(got) == METRICS
    for name, value in by_hand(labels, p).items():
        assert got[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name


@quick
@given(scored())
def test_equals_scikit_learn(case):
    labels, p = case
    got, guess, k = score(labels, p), p.argmax(axis=1), p.shape[1]
    assert got["accuracy"] == sk.accuracy_score(labels, guess)
    assert got["loss"] == pytest.approx(-np.log(np.clip(p[np.arange(len(p)), labels], 1e-15, 1)).mean())
    assert got["weighted_f1"] == pytest.approx(sk.f1_score(labels, guess, average="weighted", zero_division=0))
    assert got["macro_f1"] == pytest.approx(sk.f1_score(labels, guess, average="macro", zero_division=0))
    if len(set(labels)) > 1:
        # scikit-learn warns of, and leaves out, classes that are predicted but do not occur.
        present = [c for c in range(k) if (labels == c).any()]
        recalls = sk.recall_score(labels, guess, labels=present, average="macro", zero_division=0)
        assert got["balanced_accuracy"] == pytest.approx(recalls)
        if len(set(guess)) > 1:
            assert got["mcc"] == pytest.approx(sk.matthews_corrcoef(labels, guess))
        else:
            assert math.isnan(got["mcc"])
    if len(set(labels)) == k:
        positives = [1] if k == 2 else range(k)
        aucs = [sk.roc_auc_score(labels == c, p[:, c]) for c in positives]
        precisions = [sk.average_precision_score(labels == c, p[:, c]) for c in positives]
        assert got["auroc"] == pytest.approx(np.mean(aucs))
        assert got["auprc"] == pytest.approx(np.mean(precisions))
    if k == 2:
        assert got["brier"] == pytest.approx(sk.brier_score_loss(labels, p[:, 1], labels=[0, 1], pos_label=1))


@quick
@given(scored(), st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(case, random):
    labels, p = case
    order = list(range(len(labels)))
    random.shuffle(order)
    once, again = score(labels, p), score(labels[order], p[order])
    for name in METRICS:
        assert again[name] == pytest.approx(once[name], abs=1e-6, nan_ok=True), name


@quick
@given(scored())
def test_stays_within_its_bounds(case):
    for name, value in score(*case).items():
        if name not in UNBOUNDED:
            highest = 2.0 if name == "brier" and case[1].shape[1] > 2 else 1.0
            assert math.isnan(value) or metric(name).lowest - 1e-9 <= value <= highest + 1e-9, name


@quick
@given(scored(classes=2))
def test_swapping_the_classes_swaps_their_measures(case):
    labels, p = case
    strict = p[:, 0] != p[:, 1]  # of equals the first class is predicted, whichever it is
    labels, p = labels[strict], p[strict]
    assume(len(labels))
    one, other = score(labels, p), score(1 - labels, p[:, ::-1])
    pairs = {"sensitivity": "specificity", "specificity": "sensitivity", "ppv": "npv", "npv": "ppv"}
    for name in set(METRICS) - FITTED - {"auprc", "prevalence"}:
        assert other[pairs.get(name, name)] == pytest.approx(one[name], abs=1e-9, nan_ok=True), name
    assert other["prevalence"] == pytest.approx(1 - one["prevalence"])
    assert other["calibration_slope"] == pytest.approx(one["calibration_slope"], rel=1e-4, nan_ok=True)
    turned = score(1 - labels, p)
    assert turned["auroc"] == pytest.approx(1 - one["auroc"], abs=1e-9, nan_ok=True)
    assert turned["accuracy"] == pytest.approx(1 - one["accuracy"])


@quick
@given(scored(largest=15), st.data())
def test_a_weight_of_three_is_three_predictions(case, data):
    labels, p = case
    times = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(labels), max_size=len(labels))))
    assume(times.any())
    weighted = values(Run.of(labels, p), np.stack([times, np.ones_like(times)]).astype(float))
    repeated = score(np.repeat(labels, times), np.repeat(p, times, axis=0))
    # Where every probability is 0 or 1 a whole range of intercepts is as good.
    for name in METRICS if p.min() > 0 else set(METRICS) - FITTED:
        assert weighted[name][0] == pytest.approx(repeated[name], rel=1e-5, abs=1e-6, nan_ok=True), name
        assert weighted[name][1] == pytest.approx(score(labels, p)[name], rel=1e-5, abs=1e-6, nan_ok=True), name


def test_auroc_compares_images_of_one_fold_only():
    random = np.random.default_rng(0)
    labels, fold = random.integers(0, 2, 300), random.integers(0, 3, 300)
    # The folds' models disagree about the level of all scores.
    scores = np.clip(0.25 * labels + 0.2 * fold + 0.2 * random.random(300), 0, 1)
    run = Run.of(labels, np.stack([1 - scores, scores], axis=1))
    run = Run(run.labels, run.probabilities, run.predicted, run.unit, fold, run.samples)
    found = values(run, np.ones((1, 300)), ["auroc", "auprc"])
    wins = pairs = 0.0
    for f in range(3):
        for a in scores[(labels == 1) & (fold == f)]:
            for b in scores[(labels == 0) & (fold == f)]:
                wins, pairs = wins + (a > b) + 0.5 * (a == b), pairs + 1
    assert found["auroc"][0] == pytest.approx(wins / pairs)
    assert found["auroc"][0] > sk.roc_auc_score(labels, scores) + 0.1
    each = [sk.average_precision_score(labels[fold == f], scores[fold == f]) for f in range(3)]
    positives = [labels[fold == f].sum() for f in range(3)]
    assert found["auprc"][0] == pytest.approx(np.average(each, weights=positives))


def test_perfect_predictions():
    labels = np.array([0, 1, 1, 0])
    found = score(labels, np.eye(2)[labels])
    expected = dict.fromkeys(METRICS, 1.0) | dict.fromkeys(("loss", "balanced_loss", "brier", "ece"), 0.0)
    expected |= {"prevalence": 0.5, "calibration_slope": math.nan, "calibration_intercept": 0.0}
    assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_constant_predictions():
    found = score(np.array([0, 1, 1, 0]), np.full((4, 2), 0.5))
    assert found["loss"] == pytest.approx(math.log(2))
    assert found["auroc"] == found["auprc"] == 0.5
    assert found["calibration_intercept"] == pytest.approx(0, abs=1e-9)
    assert math.isnan(found["calibration_slope"])


def test_undefined_is_nan_not_zero():
    only_ones = score(np.array([1, 1]), np.array([[0.4, 0.6], [0.7, 0.3]]))
    undefined = {name for name, value in only_ones.items() if math.isnan(value)}
    assert undefined == {"auroc", "auprc", "specificity", "mcc", *FITTED}
    assert only_ones["sensitivity"] == only_ones["balanced_accuracy"] == 0.5
    three = score(np.array([0, 1, 2]), np.eye(3))
    assert {name for name, value in three.items() if math.isnan(value)} == {
        "sensitivity", "specificity", "ppv", "npv", "prevalence", *FITTED
    }  # fmt: skip


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


def test_labels_that_are_no_indices_are_refused():
    with pytest.raises(DataError, match="class indices from 0 to"):
        score(np.array([0.0, 1.0]), np.full((2, 2), 0.5))


def test_an_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(SettingsError, match=r"metric must be one of .*'balanced_accuracy'.*Received: metric='acuracy'"):
        metric("acuracy")
