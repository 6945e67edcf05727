"""Maps of the pixels that a prediction depends on, with checks of each map; see docs/guides/use.md."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.errors import SettingsError
from leukemia_dl.identity import generator
from leukemia_dl.models.build import graphs
from leukemia_dl.models.encoders import EncodedNet
from leukemia_dl.models.exported import ExportedNet
from leukemia_dl.preprocess.foreground import foreground_mask

Floats = NDArray[np.float64]
Method = Literal["gradcam", "occlusion", "integrated_gradients"]
_STEPS, _PATCHES, _BATCH, _SHARES = 32, 8, 32, 10
_SAME = 0.95  # rank correlation with maps of random weights from which on a method ignores the weights
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Explanation:
    """Maps of images with their checks.

    Attributes:
        images: The pixels that the net takes, uint8 (n, size, size, 3).
        maps: How much each pixel counts for the class, float64 (n, size, size), from 0 to 1 in each image.
        checks: A row per image: its name as in `Classifier.predict`, `class` (the explained one), `probability`;
            `inside` (the share of the map that lies on the cell); `random_weights` (rank correlation, on the cell, with
            the map of the net at random weights, 0 if that is flat). `deletion` and `insertion` are mean probabilities
            while the most important pixels are removed, or added, first.
        method: How the maps were made.
    """

    images: NDArray[np.uint8]
    maps: Floats
    checks: pd.DataFrame
    method: Method


def explain(
    model: Any, images: NDArray[np.uint8], targets: NDArray[np.int64], names: tuple[str, ...], method: Method | None,
    probabilities: Callable[[NDArray[np.uint8]], Floats],
) -> Explanation:  # fmt: skip
    """Return maps of `images` (n, size, size, 3) for the classes `targets` (n,), see `Classifier.explain`."""
    if isinstance(model, (EncodedNet, ExportedNet)) and method not in (None, "occlusion"):
        raise SettingsError(f"{method} needs a Keras net. Use method='occlusion', which needs predictions only.")
    method = method or ("gradcam" if len(_feature_maps(model)) > 1 else "occlusion")
    maps = _METHODS[method](model, images, targets, probabilities)
    masks = np.stack([foreground_mask(image) for image in images])
    rows = {"class": [names[target] for target in targets]}
    checks = pd.DataFrame(rows).assign(
        probability=probabilities(images)[np.arange(len(images)), targets],
        inside=(maps * masks).sum(axis=(1, 2)) / np.maximum(maps.sum(axis=(1, 2)), 1e-12),
        random_weights=_at_random_weights(model, images, targets, method, maps, masks),
    )
    if (same := checks["random_weights"].median()) >= _SAME:
        _log.warning("These maps hardly depend on what the net has learned: %.2f of those at random weights", same)
    for name, removed in (("deletion", True), ("insertion", False)):
        checks[name] = _curve_area(images, maps, targets, probabilities, removed)
    return Explanation(images, maps, checks, method)


def _feature_maps(model: Any) -> list[Any]:
    """Return the tensors (n, height, width, channels) of a Keras net, its input first; none of another net."""
    nets = [] if isinstance(model, (EncodedNet, ExportedNet)) else graphs(model)[:1]
    return [layer.output for net in nets for layer in net.layers if len(layer.output.shape) == 4]


def _gradcam(model: Any, images: NDArray[np.uint8], targets: NDArray[np.int64], _: Any) -> Floats:
    """Return Grad-CAM (Selvaraju et al. 2017) at the last feature map, resized to the images."""
    import keras

    if len(found := _feature_maps(model)) < 2:
        raise SettingsError("Grad-CAM needs a net with feature maps. Use method='occlusion' or 'integrated_gradients'.")
    lower, upper = keras.Model(model.input, found[-1]), keras.Model(found[-1], model.output)
    maps = []
    for start in range(0, len(images), _BATCH):
        features = np.asarray(keras.ops.convert_to_numpy(lower(images[start : start + _BATCH].astype(np.float32))))
        slopes = _gradient(upper, features, targets[start : start + _BATCH]).mean(axis=(1, 2), keepdims=True)
        maps.append(np.maximum((features * slopes).sum(axis=-1), 0))
    size = images.shape[1:3]
    resized = keras.ops.image.resize(np.concatenate(maps)[..., None].astype(np.float32), size, "bilinear")
    return _scaled(np.asarray(keras.ops.convert_to_numpy(resized))[..., 0])


def _integrated_gradients(model: Any, images: NDArray[np.uint8], targets: NDArray[np.int64], _: Any) -> Floats:
    """Return integrated gradients (Sundararajan et al. 2017) from black, in absolute value, summed over channels."""
    total = np.zeros(images.shape)
    for step in (np.arange(_STEPS) + 0.5) / _STEPS:
        for start in range(0, len(images), _BATCH):
            part = slice(start, start + _BATCH)
            total[part] += _gradient(model, images[part].astype(np.float32) * np.float32(step), targets[part])
    return _scaled(np.abs(total * images).sum(axis=-1))


def _occlusion(_: Any, images: NDArray[np.uint8], targets: NDArray[np.int64], probabilities: Any) -> Floats:
    """Return by how much the probability falls where a patch is black, a mean over the patches that cover a pixel."""
    size, rows = images.shape[1], np.arange(len(images))
    patch = max(size // _PATCHES, 1)
    before, fall, covered = probabilities(images)[rows, targets], np.zeros(images.shape[:3]), np.zeros((size, size))
    for top in range(0, size - patch // 2, max(patch // 2, 1)):
        for left in range(0, size - patch // 2, max(patch // 2, 1)):
            hidden, box = images.copy(), np.s_[:, top : top + patch, left : left + patch]
            hidden[box] = 0
            fall[box] += (before - probabilities(hidden)[rows, targets])[:, None, None]
            covered[box[1:]] += 1
    return _scaled(np.maximum(fall / np.maximum(covered, 1), 0))


_METHODS: dict[str, Any] = {"gradcam": _gradcam, "occlusion": _occlusion, "integrated_gradients": _integrated_gradients}


def _scaled(maps: Floats) -> Floats:
    return np.asarray(maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12), np.float64)


def _gradient(model: Any, inputs: NDArray[np.float32], targets: NDArray[np.int64]) -> Floats:
    """Return the gradient of each image's output for its target by the inputs, by the backend's own means."""
    import keras

    backend, rows = keras.backend.backend(), np.arange(len(inputs))
    if backend == "tensorflow":
        import tensorflow as tf

        tensor = tf.convert_to_tensor(inputs)
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            total = tf.reduce_sum(tf.gather(_two(model(tensor, training=False)), targets, axis=1, batch_dims=1))
        return np.asarray(tape.gradient(total, tensor), np.float64)
    if backend == "jax":
        import jax

        weights = [[v.value for v in part] for part in (model.trainable_variables, model.non_trainable_variables)]
        total_of = lambda x: _two(model.stateless_call(*weights, x, training=False)[0])[rows, targets].sum()  # noqa: E731
        return np.asarray(jax.grad(total_of)(inputs), np.float64)
    tensor = keras.ops.convert_to_tensor(inputs).requires_grad_(True)
    _two(model(tensor, training=False))[rows, targets].sum().backward()
    return np.asarray(tensor.grad.cpu(), np.float64)


def _two(outputs: Any) -> Any:
    """Return outputs with two columns if they have one, of the second of two classes."""
    from keras import ops

    return ops.concatenate([-outputs, outputs], axis=1) if outputs.shape[-1] == 1 else outputs


def _at_random_weights(
    model: Any, images: NDArray[np.uint8], targets: NDArray[np.int64], method: str, maps: Floats, masks: Any
) -> Floats:
    """Return the rank correlation on the cell of maps with those at random weights (Adebayo et al. 2018), or NaN."""
    import keras
    from scipy.stats import spearmanr

    if method == "occlusion":  # which is a difference of predictions
        return np.full(len(images), np.nan)
    random, net = generator(0, "weights"), keras.models.clone_model(model)
    # New weights: the initial ones of the training may be like the trained ones.
    for variable, trained in zip(net.variables, model.variables, strict=True):
        value = np.asarray(keras.ops.convert_to_numpy(trained))
        variable.assign(random.normal(0, value.std(), value.shape) if value.ndim > 1 else value)
    others = _METHODS[method](net, images, targets, None)
    found = []
    for one, other, mask in zip(maps, others, masks, strict=True):
        pair = one[mask], other[mask]
        empty, flat = (values.size == 0 or np.ptp(values) == 0 for values in pair)
        found.append(np.nan if empty else 0.0 if flat else spearmanr(*pair).statistic)
    return np.array(found)


def _curve_area(
    images: NDArray[np.uint8], maps: Floats, targets: NDArray[np.int64], probabilities: Any, removed: bool
) -> Floats:
    """Return the mean probability while ever more of the pixels, the most important first, are black or shown."""
    from scipy.integrate import trapezoid

    count, rows, noise = maps[0].size, np.arange(len(images)), generator(0, "ties").random(maps[0].size)
    place = np.stack([np.argsort(np.lexsort((noise, -one.ravel()))) for one in maps]).reshape(maps.shape)
    found = []
    for share in np.linspace(0, 1, _SHARES + 1):
        chosen = (place < share * count)[..., None]
        found.append(probabilities(np.where(chosen == removed, 0, images).astype(np.uint8))[rows, targets])
    return np.asarray(trapezoid(np.stack(found), dx=1 / _SHARES, axis=0))
