"""BatchNorm statistics re-estimated over training images ("precise BN", Wu and Johnson 2021, arXiv:2105.07576)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.models.build import all_layers
from leukemia_dl.training.backends import as_numpy, assign


def reestimate_batchnorm(
    model: Any, images: Any, batch_size: int, parameters: NDArray[np.float32] | None = None
) -> int:
    """Replace the moving mean and variance of every trainable BatchNormalization layer; return their number.

    Moving averages lag behind the weights: after a dozen steps they mostly hold their initial values. Here batches of
    about `batch_size` images run in training mode, and statistics are pooled exactly. Images come in random order: a
    batch of one class has other statistics. With `parameters` of augmentation, `model` is a `training_model`.
    """
    import keras

    layers = batchnorm_layers(model)
    if not layers or not len(images):
        return 0
    batches = max(1, round(len(images) / batch_size))
    size = len(images) // batches  # equal ones: a remainder of fewer images than there are batches is left out
    momenta = [layer.momentum for layer in layers]
    # Seeds of dropout go on with every pass: whether statistics were looked at must not change what is trained.
    own = {id(variable) for layer in layers for variable in layer.variables}
    others = [variable for variable in model.non_trainable_variables if id(variable) not in own]
    before = [as_numpy(variable) for variable in others]
    sums: list[Any] = [0.0] * len(layers)  # of the means and of the mean squares of the batches
    for layer in layers:
        layer.momentum = 0.0  # the "moving" average then is the batch's own value
    for start in range(0, batches * size, size):
        batch = keras.ops.convert_to_tensor(images[start : start + size])
        if parameters is not None:
            batch = [batch, keras.ops.convert_to_tensor(parameters[start : start + size])]
        model(batch, training=True)
        for number, layer in enumerate(layers):
            mean, variance = (as_numpy(v).astype(float) for v in (layer.moving_mean, layer.moving_variance))
            sums[number] += np.stack([mean, variance + mean**2])
    assign(others, before)
    for layer, momentum, total in zip(layers, momenta, sums, strict=True):
        mean, square = total / batches
        layer.momentum = momentum
        layer.moving_mean.assign(mean.astype(np.float32))
        layer.moving_variance.assign(np.maximum(square - mean**2, 0.0).astype(np.float32))
    return len(layers)


def batchnorm_layers(model: Any) -> list[Any]:
    """Return the layers whose statistics are re-estimated, those inside other layers included."""
    import keras

    kind = keras.layers.BatchNormalization
    return [layer for layer in all_layers(model) if isinstance(layer, kind) and layer.trainable and layer.momentum < 1]
