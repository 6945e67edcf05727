import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import expit, logit, softmax
from sklearn.linear_model import LogisticRegression

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import apply_temperature, calibrate, evaluate, fit_temperature, score
from leukemia_dl.evaluation.calibration import choose_temperature
from leukemia_dl.evaluation.metrics import Run, values
from predictions import scored

HALVES = np.arange(10) % 2


def drawn(n, slope, intercept, seed):
    """Predictions whose true calibration slope and intercept are known."""
    random = np.random.default_rng(seed)
    odds = random.normal(0.3, 1.5, n)
    labels = (random.random(n) < expit(intercept + slope * odds)).astype(np.int64)
    p = expit(odds)
    return labels, np.stack([1 - p, p], axis=1), odds


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 3), st.floats(-2, 2), st.integers(20, 300))
def test_slope_and_intercept_equal_scikit_learn_and_a_root(seed, slope, intercept, n):
    labels, p, odds = drawn(n, slope, intercept, seed)
    assume(len(set(labels)) == 2)
    found = score(labels, p)
    assert found["calibration_intercept"] == pytest.approx(
        brentq(lambda a: (expit(a + odds) - labels).sum(), -50, 50), abs=1e-6
    )
    overlap = odds[labels == 0].max() > odds[labels == 1].min() and odds[labels == 1].max() > odds[labels == 0].min()
    if overlap:
        model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(odds[:, None], labels)
        assert found["calibration_slope"] == pytest.approx(model.coef_[0, 0], rel=1e-3, abs=1e-4)
    else:
        assert np.isnan(found["calibration_slope"])


def test_what_was_put_in_comes_out():
    labels, p, _ = drawn(200_000, slope=0.5, intercept=0.8, seed=0)
    assert score(labels, p)["calibration_slope"] == pytest.approx(0.5, abs=0.02)
    labels, p, _ = drawn(200_000, slope=1.0, intercept=0.8, seed=1)
    assert score(labels, p)["calibration_intercept"] == pytest.approx(0.8, abs=0.02)


def test_many_weightings_at_once_equal_one_at_a_time():
    labels, p, _ = drawn(400, 0.7, 0.2, seed=3)
    run = Run.of(labels, p)
    weights = np.random.default_rng(0).exponential(1, (50, 400)) * (np.random.default_rng(1).random((50, 400)) < 0.5)
    together = values(run, weights, ["calibration_slope", "calibration_intercept"])
    for row in range(50):
        for name, found in values(run, weights[row : row + 1], list(together)).items():
            assert together[name][row] == pytest.approx(found[0], rel=1e-5, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(scored())
def test_a_fitted_temperature_is_never_worse_than_none(case):
    labels, p = case
    temperature = fit_temperature(labels, p)
    assert 0.01 <= temperature <= 100.01
    before, after = score(labels, p), score(labels, apply_temperature(p, temperature))
    assert after["loss"] <= before["loss"] + 1e-6


@settings(max_examples=60, deadline=None)
@given(scored(), st.floats(0.05, 20))
def test_a_temperature_changes_no_prediction_and_can_be_undone(case, temperature):
    _, p = case
    p = np.clip(p, 1e-3, 1)
    p /= p.sum(axis=1, keepdims=True)
    softened = apply_temperature(p, temperature)
    np.testing.assert_allclose(softened.sum(axis=1), 1)
    best = p.max(axis=1, keepdims=True)
    assert (softened[p == best] >= softened.max(axis=1).repeat((p == best).sum(axis=1)) - 1e-12).all()
    if temperature >= 0.5:
        np.testing.assert_allclose(apply_temperature(softened, 1 / temperature), p, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(apply_temperature(p, 1.0), p, atol=1e-12)


def test_overconfidence_is_found_and_cured():
    labels, p, _ = drawn(50_000, slope=1.0, intercept=0.0, seed=5)
    sharp = expit(3 * logit(p[:, 1]))
    assert fit_temperature(labels, np.stack([1 - sharp, sharp], axis=1)) == pytest.approx(3, rel=0.05)
    three = softmax(np.random.default_rng(0).normal(size=(50_000, 3)), axis=1)
    draws = np.random.default_rng(1).random((50_000, 1))
    labels = (draws > three.cumsum(axis=1)).sum(axis=1)
    assert fit_temperature(labels, apply_temperature(three, 0.5)) == pytest.approx(2, rel=0.05)


def test_each_fitted_model_gets_the_temperature_of_its_val_side():
    parts = []
    for seed, sharpness in ((0, 3.0), (1, 0.5)):
        for side in ("val", "test"):
            labels, p, _ = drawn(4000, 1.0, 0.0, seed=10 * seed + (side == "test"))
            sharp = expit(sharpness * logit(p[:, 1]))
            columns = {"seed": seed, "side": side, "sample": [f"{seed} {side} {i}" for i in range(4000)]}
            columns |= {"label": np.where(labels, "b", "a"), "probability_a": 1 - sharp, "probability_b": sharp}
            parts.append(pd.DataFrame(columns))
    frame = pd.concat(parts, ignore_index=True)
    before = frame.copy()
    found = calibrate(frame)
    pd.testing.assert_frame_equal(frame, before)
    assert len(found) == 8000
    temperatures = found.groupby("seed")["temperature"].unique()
    assert temperatures[0] == pytest.approx([3.0], rel=0.1)
    assert temperatures[1] == pytest.approx([0.5], rel=0.1)
    test = frame[(frame["side"] == "test") & (frame["seed"] == 0)]
    p = test[["probability_a", "probability_b"]].to_numpy()
    expected = apply_temperature(p, temperatures[0][0])
    np.testing.assert_allclose(found.loc[found["seed"] == 0, ["probability_a", "probability_b"]], expected)
    errors = [evaluate(one, metrics="ece", side="test")["value"][0] for one in (frame, found)]
    assert errors[1] < errors[0] / 2
    with pytest.raises(SettingsError, match="take another side"):
        calibrate(frame, fitted_on="test")
    with pytest.raises(DataError, match="are among those"):
        calibrate(frame.assign(sample=frame["sample"].str.replace("val", "test")))


def test_probabilities_that_say_nothing_keep_the_temperature_of_one():
    assert choose_temperature(HALVES, np.full((10, 2), 0.5)) == (1.0, "predictions do not differ between classes")


def test_predictions_that_are_all_right_tell_no_temperature():
    right = np.where(HALVES[:, None] == [0, 1], 0.7, 0.3)
    assert choose_temperature(HALVES, right) == (1.0, "no prediction is wrong")
    assert 0.1 < fit_temperature(HALVES, np.concatenate([right[-1:], right[:-1]])) < 90
    tied = right.copy()
    tied[0] = 0.5
    assert fit_temperature(HALVES, tied) == 1.0
    three = np.where(np.arange(15)[:, None] % 3 == [0, 1, 2], 0.5, 0.25)
    assert fit_temperature(np.arange(15) % 3, three) == 1.0


def test_a_side_that_cannot_support_a_temperature_keeps_one():
    """20.4: a temperature of 99.99994 was fitted to a tiny val side, and made every prediction 0.49 or 0.51."""
    confident = np.tile([[0.95, 0.05], [0.05, 0.95], [0.05, 0.95], [0.95, 0.05]], (10, 1))
    labels = np.tile([0, 1, 0, 1], 10)  # right and wrong by turns: the best temperature lies at its bound
    assert choose_temperature(labels, confident) == (1.0, "the loss still falls at the bound")
    useful = confident.copy()
    useful[2:36:4] = useful[2:36:4, ::-1]  # most of what was wrong is right now
    assert fit_temperature(labels, useful) > 1.5
    few = np.arange(40) // 10  # four patients, with images of both classes
    assert choose_temperature(labels, useful, few) == (1.0, "fewer than 5 groups of a class")
    assert choose_temperature(labels, useful, np.arange(40) // 8)[0] == fit_temperature(labels, useful)
    assert choose_temperature(labels[:9], useful[:9])[1] == "fewer than 5 images of a class"
    third = np.concatenate([useful, np.full((40, 1), 1e-3)], axis=1)  # a class without an image
    assert fit_temperature(labels, third / third.sum(axis=1, keepdims=True)) == 1.0


def test_calibrate_follows_the_rule_of_the_runner_and_says_where_it_changes_nothing(caplog):
    """20.4: the same rule in `evaluation.calibrate`, by groups where they are known."""
    labels, p, _ = drawn(80, 1.0, 0.0, seed=0)
    sharp = np.stack([1 - expit(3 * logit(p[:, 1])), expit(3 * logit(p[:, 1]))], axis=1)
    frame = pd.DataFrame(sharp, columns=["probability_a", "probability_b"]).assign(label=np.where(labels, "b", "a"))
    frame = frame.assign(side=["val", "test"] * 40, sample=[f"s{i}" for i in range(80)])
    assert (calibrate(frame)["temperature"] > 1.3).all()
    found = calibrate(frame.assign(group=np.arange(80) // 20))
    assert (found["temperature"] == 1).all()
    assert found["probability_a"].tolist() == pytest.approx(sharp[1::2, 0])
    assert "1 of 1 models stays 1: fewer than 5 groups of a class" in caplog.text


@pytest.mark.parametrize("temperature", [0, -1, np.nan, np.inf])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(DataError, match="positive number"):
        apply_temperature(np.full((1, 2), 0.5), temperature)
