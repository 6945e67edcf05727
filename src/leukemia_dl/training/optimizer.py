"""AdamW with a rate of its own for each layer and an average of the weights, and the loss that it lowers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.models.build import all_layers
from leukemia_dl.training.recipe import Recipe

__all__ = ["build_loss", "build_optimizer", "class_weights", "rates_by_layer"]

_UNDECAYED = ("gamma", "beta", "bias")


def build_optimizer(recipe: Recipe, learning_rate: float, rates: Mapping[str, float], average: float = 0.0) -> Any:
    """Return a `keras.optimizers.Optimizer` for one phase of a fit; built, `start(steps)` makes it ready for one.

    Args:
        recipe: Its schedule, warm-up, decay and clipping.
        learning_rate: Peak.
        rates: By `variable.path`, its share of the rate; 1 for those that are not named.
        average: Share that the moving average keeps in each step; 0 for none. In the first steps it keeps less,
            (1 + step) / (10 + step), since otherwise the random weights would be what it is made of.

    Returns:
        The optimizer, with a method `averages()`: the averaged weights as variables, in the order of the trained ones.
    """
    import keras

    trained: list[Any] = []

    class LayerwiseAdamW(keras.optimizers.Adam):  # type: ignore[misc]
        def build(self, variables: Any) -> None:
            if self.built:
                return
            super().build(variables)
            # Not as an attribute, which Keras would take for variables of the optimizer's own.
            trained[:] = variables
            self._shares = [rates.get(variable.path, 1.0) for variable in variables]
            self._decayed = [bool(recipe.weight_decay) and v.name not in _UNDECAYED for v in variables]
            # Variables and no constants: the compiled step then serves folds of any length.
            self._warmup = self.add_variable((), dtype="float32", name="warmup_steps")
            self._steps = self.add_variable((), dtype="float32", name="steps")
            self._averages = self.add_optimizer_variables(variables, "average") if average else []

        def start(self, steps: int) -> None:
            """Begin a phase of so many steps, as if nothing had been trained before."""
            for variable in self.variables:
                variable.assign(keras.ops.zeros(variable.shape, variable.dtype))
            self._warmup.assign(float(round(recipe.warmup_fraction * steps)))
            self._steps.assign(float(steps))
            for mean, variable in zip(self._averages, trained, strict=False):
                # By way of numpy: JAX would give both the same memory, and refuses to hand it over twice.
                mean.assign(np.array(keras.ops.convert_to_numpy(variable)))

        def rate(self) -> Any:
            """Return the rate of the next step: a linear rise, then half a cosine to zero, or none."""
            ops = keras.ops
            step, warmup = ops.cast(self.iterations, "float32"), ops.convert_to_tensor(self._warmup)
            first = learning_rate / ops.maximum(warmup, 1.0)
            rising = first + (learning_rate - first) * step / ops.maximum(warmup, 1.0)
            top: Any = learning_rate
            if recipe.schedule == "cosine":
                done = (step - warmup) / ops.maximum(ops.convert_to_tensor(self._steps) - warmup, 1.0)
                top = learning_rate * 0.5 * (1.0 + ops.cos(math.pi * ops.clip(done, 0.0, 1.0)))
            return ops.where(step < warmup, rising, top)

        def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
            gradients = list(grads)
            if recipe.global_clipnorm:
                squares = [keras.ops.sum(keras.ops.square(keras.ops.cast(g, "float32"))) for g in gradients]
                # Not added one by one: TensorFlow makes that one operation, which begins with whichever number lies in
                # memory that it may overwrite, so that the order, and the last bits, are others in each run.
                norm = keras.ops.sqrt(keras.ops.sum(keras.ops.stack(squares)))
                share = recipe.global_clipnorm / keras.ops.maximum(norm, recipe.global_clipnorm)
                gradients = [gradient * keras.ops.cast(share, gradient.dtype) for gradient in gradients]
            return super().apply(gradients, trainable_variables)

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

    class Rates(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        def __call__(self, step: Any) -> Any:
            return made[0].rate()

        def get_config(self) -> dict[str, Any]:
            return {}

    made: list[Any] = []
    made.append(LayerwiseAdamW(learning_rate=Rates()))
    return made[0]


def rates_by_layer(model: Any, input_lr_ratio: float) -> dict[str, float]:
    """Return each trainable variable's share of the learning rate, by its path.

    The layers that own trainable weights, inside other layers too, stand at equal distances, from `input_lr_ratio` at
    the first to 1 at the last.
    """
    # Inner layers come after the one that holds them: a weight belongs to the last layer that has it.
    owners = {variable.path: layer for layer in all_layers(model) for variable in layer.trainable_variables}
    layers = list(dict.fromkeys(owners.values()))
    shares = np.geomspace(input_lr_ratio, 1.0, len(layers)).tolist() if len(layers) > 1 else [1.0] * len(layers)
    share = dict(zip(layers, shares, strict=True))
    return {path: share[layer] for path, layer in owners.items()}


def class_weights(recipe: Recipe, labels: NDArray[np.int64], classes: int) -> NDArray[np.float32] | None:
    """Return what each class counts in the training loss (classes,), None for one each.

    Under `class_balance="weights"` a class that is `share` of the training labels counts `1 / (classes * share)`.
    """
    if recipe.class_balance != "weights":
        return None
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))).astype(np.float32)


def build_loss(recipe: Recipe, classes: int) -> Any:
    """Return the training loss of class indices and logits: cross-entropy in nats, smoothed as asked."""
    import keras

    if not recipe.label_smoothing:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def loss(y_true: Any, y_pred: Any) -> Any:
        index = keras.ops.cast(keras.ops.reshape(y_true, (-1,)), "int32")
        target = keras.ops.one_hot(index, classes, dtype="float32")
        smoothed = target * (1 - recipe.label_smoothing) + recipe.label_smoothing / classes
        return keras.losses.categorical_crossentropy(smoothed, y_pred, from_logits=True)

    return loss
