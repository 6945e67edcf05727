"""AdamW with a rate of its own for each layer and an average of the weights, and the loss that it lowers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.training.recipe import Recipe

__all__ = ["build_loss", "build_optimizer", "rates_by_layer"]

_UNDECAYED = ("gamma", "beta", "bias")


def build_optimizer(
    recipe: Recipe, learning_rate: float, steps: int, rates: Mapping[str, float], average: float = 0.0
) -> Any:
    """Return a `keras.optimizers.Optimizer` for one phase of a fit.

    Args:
        recipe: Its schedule, warm-up, decay and clipping.
        learning_rate: Peak.
        steps: Of the whole phase.
        rates: By `variable.path`, its share of the rate; 1 for those that are not named.
        average: Share that the moving average keeps in each step; 0 for none. In the first steps it keeps less,
            (1 + step) / (10 + step), since otherwise the random weights would be what it is made of.

    Returns:
        The optimizer, with a method `averages()`: the averaged weights as variables, in the order of the trained ones.
    """
    import keras

    warmup = round(recipe.warmup * steps)
    if recipe.schedule == "constant" and not warmup:
        schedule: Any = learning_rate
    else:
        schedule = keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=learning_rate / max(warmup, 1) if warmup else learning_rate,
            decay_steps=max(steps - warmup, 1),
            warmup_target=learning_rate if warmup else None,
            warmup_steps=warmup,
            alpha=1.0 if recipe.schedule == "constant" else 0.0,
        )

    class LayerwiseAdamW(keras.optimizers.Adam):  # type: ignore[misc]
        def build(self, variables: Any) -> None:
            if self.built:
                return
            super().build(variables)
            self._shares = [rates.get(variable.path, 1.0) for variable in variables]
            self._decayed = [bool(recipe.weight_decay) and v.name not in _UNDECAYED for v in variables]
            self._averages = self.add_optimizer_variables(variables, "average") if average else []
            for mean, variable in zip(self._averages, variables, strict=False):
                # By way of numpy: JAX would give both the same memory, and refuses to hand it over twice.
                mean.assign(np.array(keras.ops.convert_to_numpy(variable)))

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            ops = keras.ops
            # TensorFlow hands over its own variable, which has no path: Keras's way to find its neighbours by it.
            index = self._get_variable_index(variable)
            rate = learning_rate if self._shares[index] == 1 else learning_rate * self._shares[index]
            if self._decayed[index]:
                # Decay pulls towards zero, which is not where the gain of a normalisation or a bias belongs.
                self.assign(variable, variable - variable * recipe.weight_decay * ops.cast(rate, variable.dtype))
            super().update_step(gradient, variable, rate)
            if average:
                step = ops.cast(self.iterations, variable.dtype)
                kept = ops.minimum(ops.cast(average, variable.dtype), (1 + step) / (10 + step))
                mean = self._averages[index]
                self.assign(mean, kept * mean + (1 - kept) * variable)

        def averages(self) -> list[Any]:
            return list(self._averages)

    return LayerwiseAdamW(learning_rate=schedule, global_clipnorm=recipe.clip_norm or None)


def rates_by_layer(model: Any, rate_at_input: float) -> dict[str, float]:
    """Return each trainable variable's share of the learning rate, by its path.

    The layers that have trainable weights stand at equal distances, from `rate_at_input` at the first to 1 at the last.
    """
    layers = [layer for layer in model.layers if layer.trainable_variables]
    shares = np.geomspace(rate_at_input, 1.0, len(layers)).tolist() if len(layers) > 1 else [1.0] * len(layers)
    return {
        variable.path: share
        for layer, share in zip(layers, shares, strict=True)
        for variable in layer.trainable_variables
    }


def build_loss(recipe: Recipe, labels: NDArray[np.int64], classes: int) -> Any:
    """Return the training loss of class indices and logits: cross-entropy in nats, smoothed and weighted as asked.

    Under `class_balance="weights"` a class that is `share` of the training labels counts `1 / (classes * share)`.
    """
    import keras

    if not recipe.label_smoothing and recipe.class_balance != "weights":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    weights = np.ones(classes, np.float32)
    if recipe.class_balance == "weights":
        counts = np.bincount(labels, minlength=classes)
        weights = (len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))).astype(np.float32)

    def loss(y_true: Any, y_pred: Any) -> Any:
        ops = keras.ops
        index = ops.cast(ops.reshape(y_true, (-1,)), "int32")
        target = ops.one_hot(index, classes, dtype="float32")
        smoothed = target * (1 - recipe.label_smoothing) + recipe.label_smoothing / classes
        each = keras.losses.categorical_crossentropy(smoothed, y_pred, from_logits=True)
        return each * ops.take(ops.convert_to_tensor(weights), index)

    return loss
