"""Keras's AdamW with a learning rate per layer, the schedule of a phase, and the training loss."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.models.build import all_layers
from leukemia_dl.training.recipe import Recipe


def build_optimizer(recipe: Recipe, learning_rate: float, rates: Mapping[int, float], ema_momentum: float = 0.0) -> Any:
    """Return an AdamW optimizer for one phase of a fit. Once it is built, `start(steps)` makes it ready for a phase.

    `learning_rate` is the peak, `rates` the share of it by `id(variable)`, 1 for others. `ema_momentum` is lower in
    the first steps, step / (9 + step), or the average of a short fit would be that of its first weights.
    """
    import keras
    from keras import ops

    class LayerwiseAdamW(keras.optimizers.AdamW):  # type: ignore[misc]
        def build(self, variables: Any) -> None:
            if self.built:
                return
            super().build(variables)
            self._shares = [rates.get(id(variable), 1.0) for variable in variables]
            # A variable and not a constant: one compiled step then serves training sides of any size.
            self._steps = self.add_variable((), dtype="float32", name="steps")

        def start(self, steps: int) -> None:
            for variable in self.variables:
                variable.assign(ops.zeros(variable.shape, variable.dtype))
            self._steps.assign(float(steps))

        def averages(self) -> list[Any]:
            return list(self._model_variables_moving_average) if self.use_ema else []

        def _apply_weight_decay(self, variables: Any) -> None:
            pass  # decay follows each layer's rate, in `update_step`

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            rate = ops.cast(learning_rate, variable.dtype) * self._shares[self._get_variable_index(variable)]
            if self.weight_decay and self._use_weight_decay(variable):
                self.assign_sub(variable, variable * self.weight_decay * rate)
            super().update_step(gradient, variable, rate)

        def _update_model_variables_moving_average(self, trainable_variables: Any) -> None:
            step = ops.cast(self.iterations, "float32")
            kept = ops.minimum(ema_momentum, step / (9.0 + step))
            for variable, average in zip(trainable_variables, self.averages(), strict=True):
                average.assign(kept * average + (1.0 - kept) * variable)

    class PhaseSchedule(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        """Linear warm-up, then half a cosine to 0: `CosineDecay` without its branch, which costs time in each step."""

        def __call__(self, step: Any) -> Any:
            # The share of the phase that is over in the middle of the step: in no step is the rate 0.
            over = (ops.cast(optimizer.iterations, "float32") + 0.5) / ops.maximum(optimizer._steps, 1.0)
            warmup = recipe.warmup_fraction
            rate = learning_rate * (ops.minimum(over / warmup, 1.0) if warmup else ops.ones(()))
            if recipe.schedule == "constant":
                return rate
            return rate * 0.5 * (1.0 + ops.cos(math.pi * ops.clip((over - warmup) / (1.0 - warmup), 0.0, 1.0)))

        def get_config(self) -> dict[str, Any]:
            return {}  # asked for by TensorBoard

    optimizer = LayerwiseAdamW(
        PhaseSchedule(), weight_decay=recipe.weight_decay, global_clipnorm=recipe.global_clipnorm or None,
        use_ema=ema_momentum > 0,
    )  # fmt: skip
    # Decay pulls towards zero, which is not where a bias or the gain of a normalisation belongs.
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def rates_by_layer(model: Any, input_lr_ratio: float) -> dict[int, float]:
    """Return each trainable variable's share of the learning rate, by its id: paths recur in nested models.

    The layers that own trainable weights, inside other layers too, stand at equal distances, from `input_lr_ratio` at
    the first to 1 at the last.
    """
    # Inner layers come after the one that holds them: a weight belongs to the last layer that has it.
    owners = {id(variable): layer for layer in all_layers(model) for variable in layer.trainable_variables}
    layers = list(dict.fromkeys(owners.values()))
    shares = np.geomspace(input_lr_ratio, 1.0, len(layers)).tolist() if len(layers) > 1 else [1.0] * len(layers)
    share = dict(zip(layers, shares, strict=True))
    return {variable: share[layer] for variable, layer in owners.items()}


def class_weights(recipe: Recipe, labels: NDArray[np.int64], classes: int) -> NDArray[np.float32] | None:
    """Return the weight of each class in the training loss, 1 / (classes * share), or None for equal weights."""
    if recipe.class_balance != "weights":
        return None
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))).astype(np.float32)


def build_loss(recipe: Recipe, classes: int) -> Any:
    """Return the training loss of class indices and logits: cross-entropy in nats, with the recipe's smoothing."""
    from keras import losses, ops

    if not recipe.label_smoothing:
        return losses.SparseCategoricalCrossentropy(from_logits=True)

    def loss(y_true: Any, y_pred: Any) -> Any:
        target = ops.one_hot(ops.cast(ops.reshape(y_true, (-1,)), "int32"), classes, dtype="float32")
        return losses.categorical_crossentropy(target, y_pred, from_logits=True, label_smoothing=recipe.label_smoothing)

    return loss
