import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from leukemia_dl.datasets.splits import draw_folds
from leukemia_dl.errors import SettingsError
from leukemia_dl.training.heads import NEIGHBOURS, STRENGTHS, folded, neighbours_head, scaler_of, solve_logistic


def data(classes=2, count=200, width=30, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = random.normal(size=(classes, width))
    features = centres[labels] + 2.5 * random.normal(size=(count, width))
    return (features * random.uniform(0.01, 10, width) + random.normal(size=width)).astype(np.float32), labels


def folds_of(labels, groups=None):
    groups = np.arange(len(labels)) if groups is None else groups
    fold = draw_folds(labels, groups, 5, np.random.default_rng(0))
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(5)]


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("balanced", [False, True])
def test_the_head_is_scikit_learns_regression_on_standardised_features(classes, balanced):
    features, labels = data(classes)
    labels[:40] = 0
    kernel, bias, _, notes = solve_logistic(features, labels, classes, folds_of(labels), balanced)
    strength = float(notes[0].split("C=")[1].split()[0])
    scaled = StandardScaler().fit_transform(features.astype(float))
    weights = "balanced" if balanced else None
    oracle = LogisticRegression(C=strength, class_weight=weights, tol=1e-8, max_iter=10_000).fit(scaled, labels)
    found = softmax(features @ kernel + bias, axis=1)
    np.testing.assert_allclose(found, oracle.predict_proba(scaled), atol=1e-3)


def test_the_penalty_is_the_one_of_lowest_loss_on_images_of_other_groups():
    features, labels = data(count=300)
    folds = folds_of(labels)

    def loss(strength):
        total = 0.0
        for rows, held in folds:
            scaler = StandardScaler().fit(features[rows].astype(float))
            fit = LogisticRegression(C=strength, tol=1e-6, max_iter=10_000).fit(
                scaler.transform(features[rows]), labels[rows]
            )
            total -= fit.predict_log_proba(scaler.transform(features[held]))[np.arange(len(held)), labels[held]].sum()
        return total

    kernel, bias, out_of_fold, notes = solve_logistic(features, labels, 2, folds, False)
    best = min(STRENGTHS, key=loss)
    assert notes[0] == f"L2 penalty C={best:g} chosen on 5 inner folds"
    assert out_of_fold.shape == (300, 2)
    # The logits of held-out images are of fits that have not seen them, so worse than those of the whole fit.
    within = features @ kernel + bias
    assert (out_of_fold.argmax(axis=1) == labels).mean() < (within.argmax(axis=1) == labels).mean()


@settings(max_examples=5, deadline=None)
@given(st.floats(-4, 4), st.integers(0, 1_000))
def test_probabilities_do_not_depend_on_the_scale_of_features(power, seed):
    features, labels = data(count=60, width=5, seed=seed)
    scaled = (features * np.float32(10.0**power)).astype(np.float32)
    first, second = (solve_logistic(values, labels, 2, folds_of(labels), False) for values in (features, scaled))
    assert first[3] == second[3]
    ours, others = (softmax(x @ h[0] + h[1], axis=1) for x, h in ((features, first), (scaled, second)))
    np.testing.assert_allclose(ours, others, atol=1e-3)


def test_without_inner_folds_the_penalty_is_the_default_and_a_class_without_images_is_not_predicted():
    features, labels = data()
    kernel, bias, out_of_fold, notes = solve_logistic(features, labels, 3, [], False)
    assert notes == ("L2 penalty C=1: no inner folds",)
    assert out_of_fold is None
    assert softmax(features @ kernel + bias, axis=1)[:, 2].max() < 1e-6


def test_a_solver_that_does_not_converge_says_so(monkeypatch):
    monkeypatch.setattr("leukemia_dl.training.heads._MOST_ITERATIONS", 2)
    features, labels = data()
    (note,) = solve_logistic(features, labels, 2, [], False)[3][1:]
    assert note.startswith("not converged: lbfgs failed to converge after 2 iteration")


def test_a_constant_feature_changes_nothing():
    features, labels = data()
    constant = np.full((len(labels), 1), 0.1, np.float32)
    with_it = np.concatenate([features, constant + 1e-9 * np.arange(len(labels))[:, None]], axis=1).astype(np.float32)
    first, second = (solve_logistic(values, labels, 2, [], False) for values in (features, with_it))
    np.testing.assert_allclose(with_it @ second[0] + second[1], features @ first[0] + first[1], atol=1e-3)


def test_a_layer_for_standardised_features_is_folded_into_one_for_features_as_they_are():
    features, _ = data(count=5_000)
    random = np.random.default_rng(0)
    kernel, bias, scaler = random.normal(size=(30, 3)), random.normal(size=3), scaler_of(features)
    into = folded(scaler, kernel, bias)
    np.testing.assert_allclose(features @ into[0] + into[1], scaler.transform(features) @ kernel + bias, atol=1e-3)


@pytest.mark.parametrize("classes", [2, 3])
def test_neighbours_are_scikit_learns(classes):
    import keras

    features, labels = data(classes, count=120)
    inputs = keras.Input((30,))
    output, set_weights = neighbours_head(inputs, features, labels, classes)
    set_weights()
    others, _ = data(classes, count=50, seed=1)
    shares = np.exp(np.asarray(keras.Model(inputs, output).predict_on_batch(others)))
    oracle = KNeighborsClassifier(NEIGHBOURS, metric="cosine").fit(features, labels).predict_proba(others)
    np.testing.assert_allclose(shares, np.maximum(oracle, 1e-6), atol=1e-5)
    scaled = keras.Model(inputs, output).predict_on_batch(others * 255)
    np.testing.assert_allclose(np.exp(np.asarray(scaled)), shares, atol=1e-6)


def test_neighbours_of_too_few_images_are_an_error():
    import keras

    with pytest.raises(SettingsError, match=r"20 training images\. Received: 19"):
        neighbours_head(keras.Input((30,)), *(array[:19] for array in data()), 2)
