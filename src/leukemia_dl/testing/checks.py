"""Checks of a backbone for plugin authors. Each builds small nets on random pixels; nothing is downloaded."""

import contextlib
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.models import BackboneSpec, Classifier, build_model
from leukemia_dl.models.backbones import THIS_PROCESS, find_backbone
from leukemia_dl.models.build import batchnorm_layers
from leukemia_dl.models.reading import read_classifier
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.progress import safe_path
from leukemia_dl.training.backends import as_numpy, prepare


def check_backbone(spec: BackboneSpec) -> None:
    """Run every check of `BACKBONE_CHECKS` on `spec`, registered or not.

    Raises:
        AssertionError: If one does not hold; the message names the backbone and the finding.
        PluginError: If the builder returns no feature map, tokens or vector.
    """
    prepare()
    for check in BACKBONE_CHECKS:
        check(spec)


def parametrize_with_checks(specs: Iterable[BackboneSpec]) -> Any:
    """Return a pytest decorator that runs a test function for each of `specs` and check, as `test(spec, check)`."""
    import pytest

    pairs = [(spec, check) for spec in specs for check in BACKBONE_CHECKS]
    names = [f"{spec.name}-{check.__name__.removeprefix('check_')}" for spec, check in pairs]
    return pytest.mark.parametrize(("spec", "check"), pairs, ids=names)


def check_architecture(spec: BackboneSpec) -> None:
    """Several sizes give logits (batch, classes), with the declared parameters."""
    for size, classes in ((max(spec.min_size, 64), 5), (spec.min_size + 7, 3), (spec.min_size, 2)):
        model = build_model(spec, size, classes)
        shape = model.output_shape
        _hold(spec, shape == (None, classes), f"at {size} pixels and {classes} classes the output is {shape}")
    found = int(model.count_params() - model.get_layer("logits").count_params())
    declared = found if spec.parameters is None else spec.parameters
    if found != declared and spec.native_size != spec.min_size:  # positions of tokens are weights
        model = build_model(spec, spec.native_size, 2)
        found = int(model.count_params() - model.get_layer("logits").count_params())
    _hold(spec, found == declared, f"{declared:,} parameters are declared, and there are {found:,}")


def check_seed(spec: BackboneSpec) -> None:
    """The same seed gives the same weights, and another seed others."""
    import keras

    drawn = []
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(seed)
        drawn.append(_net(spec).get_weights())
    same = all(map(np.array_equal, drawn[0], drawn[1]))
    _hold(spec, same, "the same seed gives other weights: use Keras's initializers without a seed of your own")
    other = not all(map(np.array_equal, drawn[0][:-2], drawn[2][:-2]))  # without the head
    _hold(spec, other, "the weights do not depend on the seed")


def check_predictions(spec: BackboneSpec) -> None:
    """Logits are float32 and finite for black, white and random images; one at a time they are those of a batch."""
    model, images = _net(spec), _images(spec)
    images[0], images[1] = 0, 255
    logits = _logits(spec, model, images)
    alone = np.concatenate([np.asarray(model.predict_on_batch(image[None])) for image in images])
    gap = float(np.abs(alone - logits).max())
    _hold(spec, gap <= 1e-3 * (1 + float(np.abs(logits).max())), f"predicted alone, logits differ by {gap:.2g}")


def check_training(spec: BackboneSpec) -> None:
    """A training step moves every trainable weight, and no statistics but those of BatchNormalization."""
    model = _net(spec)
    moved = _moved(model, spec, model.variables)
    still = [weight.path for weight in model.trainable_variables if id(weight) not in moved]
    _hold(spec, not still, f"no gradient reaches {len(still)} weights, such as {still[:3]}")
    finite = all(np.isfinite(as_numpy(weight)).all() for weight in model.trainable_variables)
    _hold(spec, finite, "a training step leaves weights that are not finite")
    known = {id(weight) for layer in batchnorm_layers(model) for weight in layer.non_trainable_variables}
    statistics = [weight for weight in model.non_trainable_variables if "float" in weight.dtype]
    others = [weight.path for weight in statistics if id(weight) in moved.keys() - known]
    those = f"{len(others)} weights that no optimizer trains and no fit re-estimates, such as {others[:3]}"
    _hold(spec, not others, f"a training step moves {those}; use keras.layers.BatchNormalization")


def check_freezing(spec: BackboneSpec) -> None:
    """With the backbone's layers frozen a training step moves the head alone: BatchNorm statistics stay too."""
    model = _net(spec)
    for layer in model.layers:
        layer.trainable = layer.name == "logits"
    moved = _moved(model, spec, model.weights)
    head = {id(weight) for weight in model.get_layer("logits").weights}
    outside = [path for weight, path in moved.items() if weight not in head]
    _hold(spec, not outside, f"weights move although their layers are frozen: {outside[:3]}")
    _hold(spec, bool(moved), "the head does not learn")


def check_mixed_precision(spec: BackboneSpec) -> None:
    """Under mixed_bfloat16 the head stays float32, and logits and a training step are finite."""
    model = build_model(spec, spec.min_size, 2, dtype_policy="mixed_bfloat16")
    _logits(spec, model, _images(spec))
    _hold(spec, bool(np.isfinite(_train(model, spec))), "under mixed_bfloat16 the loss is not finite")


def check_saving(spec: BackboneSpec) -> None:
    """A saved classifier loads with `safe_mode=True` and predicts the same, with custom layers in a new process too."""
    from joblib.externals.loky import ProcessPoolExecutor

    model, images = _net(spec), _images(spec)
    before, trial = np.asarray(model.predict_on_batch(images)), dict[str, str]()
    with contextlib.suppress(LookupError):
        found = find_backbone(spec.name)
        if found.record == spec and found.plugin != THIS_PROCESS:
            trial = {"backbone": spec.name, "plugin": found.plugin, "plugin_version": found.version}
    with tempfile.TemporaryDirectory() as folder:
        classifier = Classifier(model, ("one", "other"), Pipeline.default(spec.min_size), {"trial": trial})
        file = classifier.save(Path(folder) / "model.keras")
        after = [_load(None, file, images)]
        if set(re.findall(r'"module": "([^".]*)', model.to_json())) - {"keras", "builtins"}:
            try:
                with safe_path(), ProcessPoolExecutor(1) as pool:
                    after.append(pool.submit(_load, None if trial else spec, file, images).result())
            except Exception as error:
                _hold(spec, False, f"a saved classifier does not load in a new process: {error}")
    gap = float(np.abs(np.stack(after) - before).max())
    _hold(spec, gap <= 1e-4 * (1 + float(np.abs(before).max())), f"saved and loaded, logits differ by {gap:.2g}")


def _load(spec: BackboneSpec | None, file: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits of a saved net; the net of `spec` is built first, if its file names no plugin to import."""
    if spec is not None:
        _net(spec)
    return np.asarray(read_classifier(file).model.predict_on_batch(images))


BACKBONE_CHECKS: tuple[Callable[[BackboneSpec], None], ...] = (
    check_architecture, check_seed, check_predictions, check_training, check_freezing, check_mixed_precision,
    check_saving,
)  # fmt: skip
"""Every check, a function of a `BackboneSpec` that raises AssertionError where it does not hold."""


def _hold(spec: BackboneSpec, holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(f"{spec.name}: {otherwise}.")


def _net(spec: BackboneSpec) -> Any:
    return build_model(spec, spec.min_size, 2)


def _images(spec: BackboneSpec) -> NDArray[np.float32]:
    return np.random.default_rng(0).integers(0, 256, (4, spec.min_size, spec.min_size, 3)).astype(np.float32)


def _logits(spec: BackboneSpec, model: Any, images: NDArray[np.float32]) -> NDArray[np.float32]:
    logits = np.asarray(model.predict_on_batch(images))
    _hold(spec, logits.dtype == np.float32, f"logits are {logits.dtype}, not float32")
    _hold(spec, bool(np.isfinite(logits).all()), "logits are not finite for black, white or random images")
    return logits


def _train(model: Any, spec: BackboneSpec, eager: bool = False) -> float:
    import keras

    # Without XLA, which takes longest to compile on a CPU. Lion moves weights by the sign of a gradient, however small.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    eager = eager and keras.backend.backend() == "tensorflow"  # which traces a step for seven times as long as it runs
    model.compile(keras.optimizers.Lion(1e-2), loss, jit_compile=False, run_eagerly=eager)
    with warnings.catch_warnings():
        # check_training names the weights that no gradient reaches.
        warnings.filterwarnings("ignore", "Gradients do not exist", UserWarning)
        return float(np.asarray(model.train_on_batch(_images(spec), np.array([0, 1, 1, 1]))).ravel()[0])


def _moved(model: Any, spec: BackboneSpec, weights: list[Any]) -> dict[int, str]:
    before = [as_numpy(weight) for weight in weights]
    _train(model, spec, eager=True)
    pairs = zip(weights, before, strict=True)
    return {id(weight): weight.path for weight, old in pairs if not np.array_equal(as_numpy(weight), old)}
