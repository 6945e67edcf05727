"""Heads on features of a frozen encoder that are solved, not stepped: logistic regression and nearest neighbours."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from leukemia_dl.errors import SettingsError
from leukemia_dl.training.batches import Images, Subset

NEIGHBOURS = 20  # as DINOv2 and DinoBloom are evaluated
# Inverse strengths of the L2 penalty in scikit-learn's sense, the strongest first.
STRENGTHS = tuple(float(f"1e{power}") for power in range(-6, 3))
_MOST_ITERATIONS = 1_000
_ROUGH, _EXACT = 1e-3, 1e-6  # largest mean gradient where the solver ends: to choose a penalty, and of the head itself
_CONSTANT = 1e-5  # a deviation below this share of the mean is one of rounding
_FEWEST = 1e-6  # of a class among neighbours, since a share of 0 has no logarithm

Floats = NDArray[np.float32]
Folds = Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]  # row numbers, to train on and held out


def scaler_of(features: Images) -> Any:
    """Return a fitted `StandardScaler` of scikit-learn in which rounding errors of a constant are no spread."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features[:])
    scaler.scale_ = np.where(scaler.scale_ > _CONSTANT * np.abs(scaler.mean_), scaler.scale_, 1.0)
    return scaler


def folded(scaler: Any, kernel: NDArray[Any], bias: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return kernel (d, n) and bias (n,) of a layer that takes features as they are, with equal outputs."""
    kernel = kernel / scaler.scale_[:, None]
    return kernel.astype(np.float32), (bias - scaler.mean_ @ kernel).astype(np.float32)


def solve_logistic(
    features: Images, labels: NDArray[np.int64], classes: int, folds: Folds, balanced: bool
) -> tuple[Floats, Floats, NDArray[np.float64] | None, tuple[str, ...]]:
    """Fit scikit-learn's logistic regression with an L2 penalty to standardised features (n, d).

    The strength of the penalty is the one of `STRENGTHS` with the lowest loss over inner `folds`, or C = 1 without
    folds. The search starts with the strongest and ends when two in a row are worse than the best. `balanced` weights
    classes equally.

    Returns kernel (d, classes) and bias (classes,) for features as they are, logits (n, classes) of the training images
    by fits without their fold, None without folds, and notes on the penalty and on convergence.
    """
    sides = []
    for rows, held in folds:
        scaler = scaler_of(Subset.of(features, rows))
        inputs, others = (scaler.transform(Subset.of(features, part)[:]) for part in (rows, held))
        sides.append((_regression(balanced, _ROUGH), inputs, labels[rows], others, held))
    best, chosen, found, worse = np.inf, 1.0, None, 0
    for strength in STRENGTHS if sides else ():
        logits = np.empty((len(labels), classes))
        for fit, inputs, answers, others, held in sides:
            _solve(fit, inputs, answers, strength)
            kernel, bias = _weights(fit, classes)
            logits[held] = others @ kernel + bias
        loss = -float(np.take_along_axis(log_softmax(logits, axis=1), labels[:, None], axis=1).mean())
        worse = 0 if loss < best else worse + 1
        if loss < best:
            best, chosen, found = loss, strength, logits
        if worse == 2:
            break
    sides.clear()  # the memory of standardised features
    scaler, whole = scaler_of(features), _regression(balanced, _EXACT)
    # float32 has too few digits to converge.
    problem = _solve(whole, scaler.transform(features[:].astype(np.float64)), labels, chosen)
    how = f" chosen on {len(folds)} inner folds" if folds else ": no inner folds"
    how += ", the last one tried" if folds and chosen in (STRENGTHS[0], STRENGTHS[-1]) else ""
    notes = [f"L2 penalty C={chosen:g}{how}", *([f"not converged: {problem}"] if problem else [])]
    return *folded(scaler, *_weights(whole, classes)), found, tuple(notes)


def _regression(balanced: bool, tolerance: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    weights = "balanced" if balanced else None
    return LogisticRegression(class_weight=weights, max_iter=_MOST_ITERATIONS, tol=tolerance, warm_start=True)


def _solve(fit: Any, features: NDArray[Any], labels: NDArray[np.int64], strength: float) -> str:
    """Fit in place from where the last fit ended, and return the solver's reason if it has not converged."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit.set_params(C=strength).fit(features, labels)
    reasons = [str(item.message).splitlines()[0] for item in caught if issubclass(item.category, ConvergenceWarning)]
    return reasons[0].rstrip(":") if reasons else ""


def _weights(fit: Any, classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return kernel (d, classes) and bias of the classes that a fit has seen; others get the lowest logit."""
    kernel, bias = np.zeros((fit.coef_.shape[1], classes)), np.full(classes, -30.0)
    seen, coefficients, intercept = fit.classes_, fit.coef_, fit.intercept_
    if len(seen) == 2:  # one weighted sum, of the second class
        coefficients, intercept = np.r_[0 * coefficients, coefficients], np.r_[0 * intercept, intercept]
    kernel[:, seen], bias[seen] = coefficients.T, intercept
    return kernel, bias


def neighbours_head(inputs: Any, features: Images, labels: NDArray[np.int64], classes: int) -> tuple[Any, Any]:
    """Return the output of a nearest-neighbour head on symbolic features, and a function that sets its weights.

    The output is the logarithm of each class's share among the `NEIGHBOURS` training features of the highest cosine
    similarity, all of equal similarity included. The trained layers hold the training features.
    """
    from keras import layers, ops

    if len(labels) < NEIGHBOURS:
        raise SettingsError(f"k nearest neighbours need {NEIGHBOURS} training images. Received: {len(labels)}.")
    unit = layers.UnitNormalization(dtype="float32", name="unit")(inputs)
    store = layers.Dense(len(labels), use_bias=False, trainable=False, dtype="float32", name="training_features")
    similar = store(unit)
    nearest = ops.top_k(similar, NEIGHBOURS)[0][:, -1:]
    votes = layers.Dense(classes, use_bias=False, trainable=False, dtype="float32", name="training_labels")
    counted = votes(ops.cast(similar >= nearest, "float32"))
    shares = counted / ops.sum(counted, axis=-1, keepdims=True)

    def set_weights() -> None:
        known = features[:]
        norms = np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-12)
        store.set_weights([(known / norms).T])
        votes.set_weights([np.eye(classes, dtype=np.float32)[labels]])

    return ops.log(ops.maximum(shares, _FEWEST)), set_weights
