"""Checks of a backbone for plugin authors. Each builds small nets on random pixels; nothing is downloaded."""

from __future__ import annotations

import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.checks import choice
from leukemia_dl.models import BackboneSpec, Classifier, build_model, load_classifier
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.progress import safe_path
from leukemia_dl.training.backends import prepare
from leukemia_dl.training.batchnorm import batchnorm_layers

__all__ = ["BACKBONE_CHECKS", "check_backbone", "parametrize_with_checks"]

Check = Callable[[BackboneSpec], None]
_SEED = 0


def check_backbone(spec: BackboneSpec, skip: Iterable[str] = ()) -> None:
    """Run every check of `BACKBONE_CHECKS` on a backbone.

    Args:
        spec: The record, registered or not.
        skip: Names of checks to leave out, such as "check_mixed_precision".

    Raises:
        AssertionError: If one does not hold; the message names the backbone, the check and what was found.
        SettingsError: If `skip` names no check.
        PluginError: If the builder returns no feature map.
    """
    checks, left_out = {check.__name__: check for check in BACKBONE_CHECKS}, list(skip)
    for name in left_out:
        choice("skip", name, checks)
    prepare()
    for name, check in checks.items():
        if name not in left_out:
            check(spec)


def parametrize_with_checks(specs: Iterable[BackboneSpec]) -> Any:
    """Return a pytest decorator that runs a test function for each of `specs` and check, as `test(spec, check)`."""
    import pytest

    pairs = [(spec, check) for spec in specs for check in BACKBONE_CHECKS]
    names = [f"{spec.name}-{check.__name__.removeprefix('check_')}" for spec, check in pairs]
    return pytest.mark.parametrize(("spec", "check"), pairs, ids=names)


def check_shapes(spec: BackboneSpec) -> None:
    """Several sizes and numbers of classes give logits (batch, classes), and the smallest size is accepted."""
    for size, classes in ((spec.min_size, 2), (spec.min_size + 7, 3), (max(spec.min_size, 64), 5)):
        shape = build_model(spec, size, classes).output_shape
        _hold(spec, shape == (None, classes), f"at {size} pixels and {classes} classes the output is {shape}")


def check_flat(spec: BackboneSpec) -> None:
    """The backbone's layers are layers of the model itself, so that they can be frozen and explained by name."""
    import keras

    nested = [layer.name for layer in _net(spec).layers if isinstance(layer, keras.Model)]
    _hold(spec, not nested, f"models are nested in the model: {nested}; call their layers on `inputs` instead")


def check_parameters(spec: BackboneSpec) -> None:
    """The declared number of parameters is the real one."""
    if spec.parameters is None:
        return
    model = _net(spec)
    found = int(model.count_params() - model.get_layer("logits").count_params())
    _hold(spec, found == spec.parameters, f"{spec.parameters:,} parameters are declared, and there are {found:,}")


def check_seed(spec: BackboneSpec) -> None:
    """The same seed gives the same weights, and another seed others."""
    import keras

    drawn = []
    for seed in (_SEED, _SEED, _SEED + 1):
        keras.utils.set_random_seed(seed)
        drawn.append(_net(spec).get_weights())
    same = all(map(np.array_equal, drawn[0], drawn[1]))
    other = not all(map(np.array_equal, drawn[0][:-2], drawn[2][:-2]))  # without the head
    _hold(spec, same, "the same seed gives other weights: use Keras's initializers without a seed of your own")
    _hold(spec, other, "the weights do not depend on the seed")


def check_predictions(spec: BackboneSpec) -> None:
    """Logits are float32 and finite for black, white and random images; one at a time they are those of a batch."""
    model, images = _net(spec), _images(spec)
    images[0], images[1] = 0, 255
    logits = np.asarray(model.predict_on_batch(images))
    _hold(spec, logits.dtype == np.float32, f"logits are {logits.dtype}, not float32")
    _hold(spec, bool(np.isfinite(logits).all()), "logits are not finite for black, white or random images")
    alone = np.concatenate([np.asarray(model.predict_on_batch(image[None])) for image in images])
    gap = float(np.abs(alone - logits).max())
    _hold(spec, gap <= 1e-3 * (1 + float(np.abs(logits).max())), f"predicted alone, logits differ by {gap:.2g}")


def check_gradients(spec: BackboneSpec) -> None:
    """A training step moves every trainable weight, to a finite value."""
    model = _compiled(_net(spec))
    weights = model.trainable_variables
    moved = _moved(model, spec, weights)
    still = [weight.path for weight in weights if weight.path not in moved]
    _hold(spec, not still, f"no gradient reaches {len(still)} weights, such as {still[:3]}")
    finite = all(np.isfinite(_value(weight)).all() for weight in weights)
    _hold(spec, finite, "a training step leaves weights that are not finite")


def check_freezing(spec: BackboneSpec) -> None:
    """With the backbone's layers frozen a training step moves the head alone: BatchNorm statistics stay too."""
    model = _net(spec)
    for layer in model.layers:
        layer.trainable = layer.name == "logits"
    _compiled(model)
    moved = _moved(model, spec, model.weights)
    outside = [path for path in moved if not path.startswith("logits")]
    _hold(spec, not outside, f"weights move although their layers are frozen: {outside[:3]}")
    _hold(spec, bool(moved), "the head does not learn")


def check_statistics(spec: BackboneSpec) -> None:
    """A training step moves no statistics but those of BatchNormalization layers, which a fit re-estimates."""
    model = _compiled(_net(spec))
    known = {id(weight) for layer in batchnorm_layers(model) for weight in layer.non_trainable_variables}
    others = [w for w in model.non_trainable_variables if id(w) not in known and "float" in w.dtype]
    moved = _moved(model, spec, others)
    those = f"{len(moved)} weights that no optimizer trains and no fit re-estimates, such as {moved[:3]}"
    _hold(spec, not moved, f"a training step moves {those}; use keras.layers.BatchNormalization")


def check_mixed_precision(spec: BackboneSpec) -> None:
    """Under mixed_bfloat16 the head stays float32, and logits and a training step are finite."""
    model = _compiled(_net(spec, dtype_policy="mixed_bfloat16"))
    logits = np.asarray(model.predict_on_batch(_images(spec)))
    _hold(spec, logits.dtype == np.float32, f"under mixed_bfloat16 logits are {logits.dtype}, not float32")
    loss = _train(model, spec)
    _hold(spec, bool(np.isfinite(logits).all() and np.isfinite(loss)), "under mixed_bfloat16 values are not finite")


def check_saving(spec: BackboneSpec) -> None:
    """A saved classifier loads with `safe_mode=True` and predicts the same; custom layers load in a new process."""
    from joblib.externals.loky import ProcessPoolExecutor

    model, images = _net(spec), _images(spec)
    classifier = Classifier(model, ("one", "other"), Pipeline.default(images.shape[1]))
    before = np.asarray(model.predict_on_batch(images))
    with tempfile.TemporaryDirectory() as name:
        file = classifier.save(Path(name) / "model.keras")
        after = np.asarray(load_classifier(file).model.predict_on_batch(images))
        with zipfile.ZipFile(file) as archive:
            modules = re.findall(r'"module": "([^".]*)', archive.read("config.json").decode())
        if set(modules) - {"keras", "builtins"}:
            try:
                with safe_path(), ProcessPoolExecutor(1) as pool:
                    pool.submit(_load, spec, file).result()
            except Exception as error:
                _hold(spec, False, f"a saved classifier does not load in a new process: {error}")
    gap = float(np.abs(after - before).max())
    _hold(spec, gap <= 1e-4 * (1 + float(np.abs(before).max())), f"saved and loaded, logits differ by {gap:.2g}")


def _load(spec: BackboneSpec, file: Path) -> None:
    """Load a classifier after its backbone was built, in a new process."""
    build_model(spec, spec.min_size, 2)
    load_classifier(file)


BACKBONE_CHECKS: tuple[Check, ...] = (
    check_shapes, check_flat, check_parameters, check_seed, check_predictions, check_gradients, check_freezing,
    check_statistics, check_mixed_precision, check_saving,
)  # fmt: skip
"""Every check, a function of a `BackboneSpec` that raises AssertionError where it does not hold."""


def _hold(spec: BackboneSpec, holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(f"{spec.name}: {otherwise}.")


def _net(spec: BackboneSpec, dtype_policy: str = "float32") -> Any:
    return build_model(spec, spec.min_size, 2, dtype_policy=dtype_policy)


def _compiled(model: Any) -> Any:
    import keras

    # Without XLA, which takes longest to compile on a CPU. Lion moves weights by the sign of a gradient, however small.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Lion(1e-2), loss, jit_compile=False)
    return model


def _train(model: Any, spec: BackboneSpec) -> float:
    with warnings.catch_warnings():
        # check_gradients names the weights that no gradient reaches.
        warnings.filterwarnings("ignore", "Gradients do not exist", UserWarning)
        return float(np.asarray(model.train_on_batch(_images(spec), np.array([0, 1, 1, 1]))).ravel()[0])


def _moved(model: Any, spec: BackboneSpec, weights: list[Any]) -> list[str]:
    """Return the paths of those weights that a training step changes."""
    before = [_value(weight) for weight in weights]
    _train(model, spec)
    pairs = zip(weights, before, strict=True)
    return [weight.path for weight, old in pairs if not np.array_equal(_value(weight), old)]


def _value(weight: Any) -> NDArray[Any]:
    import keras

    return np.array(keras.ops.convert_to_numpy(weight), copy=True)  # a step may change the original in place


def _images(spec: BackboneSpec) -> NDArray[np.float32]:
    random = np.random.default_rng(_SEED)
    return random.integers(0, 256, (4, spec.min_size, spec.min_size, 3)).astype(np.float32)
