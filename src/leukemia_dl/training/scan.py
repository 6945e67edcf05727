"""An epoch as one compiled function: images lie on the device, and nothing happens on the host in between its steps."""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.training.batches import Batches, Subset
from leukemia_dl.training.fingerprints import is_readonly

if TYPE_CHECKING:
    from leukemia_dl.training.nets import Compiled

__all__ = ["ScanEpoch", "bytes_on_device", "fits_on_device", "training_pass"]

# Of the device's memory, for images: the rest is for weights, gradients and what layers hand on.
_LARGEST_SHARE = 0.3
# The images that were last copied to the device, for all folds and seeds that are trained on parts of them; if they
# cannot change, and for as long as they live.
_copied: list[tuple[weakref.ref[Any], Any]] = []


@dataclass(frozen=True)
class ScanEpoch:
    """Gathers, augments and trains inside one compiled function per epoch, on images copied to the device once.

    For TensorFlow and JAX. The step is Keras's own (`train_step`, which it documents as the place to step in), so that
    optimizer, metrics, BatchNorm and the seeds of dropout are what `fit` has. Callbacks hear of epochs, not of batches,
    and Ctrl-C is heard between epochs.
    """

    name: str = "scan"

    def train(self, compiled: Compiled, batches: Batches, begin: int, end: int, callbacks: list[Any]) -> float:
        """Train from epoch `begin` (from 0) to before `end`; return the seconds of copying images and compiling."""
        import keras

        net, size, began = compiled.net, batches.batch_size, time.perf_counter()
        if size not in compiled.epochs:  # that of another fold, if it has fewer images than a batch
            _build_metrics(net, batches)
            compiled.epochs[size] = _EPOCHS[keras.backend.backend()](net, size)
        whole = batches.images if isinstance(batches.images, Subset) else None
        base = batches.images if whole is None else whole.base
        images = _on_device(base)
        # As long for every fold of these images, so that one program serves them all.
        length = max(len(base) // size, batches.steps) * size

        def arguments(epoch: int) -> tuple[Any, ...]:
            drawn = batches.epoch(epoch)
            labels = batches.labels[drawn.order]
            weights = None if batches.weights is None else _padded(batches.weights[labels], length)
            parameters = None if drawn.parameters is None else _padded(drawn.parameters, length)
            rows = _padded((drawn.rows if whole is None else whole.rows[drawn.rows]).astype(np.int32), length)
            return images, rows, _padded(labels, length), weights, parameters

        compiled.epochs[size](*arguments(begin), 0)  # an epoch of no steps, to compile it
        prepared = time.perf_counter() - began
        told = keras.callbacks.CallbackList(
            callbacks, add_history=True, model=net, epochs=end, steps=batches.steps, verbose=0
        )
        net.stop_training = False
        told.on_train_begin()
        logs: dict[str, Any] = {}
        for epoch in range(begin, end):
            net.reset_metrics()
            told.on_epoch_begin(epoch)
            if batches.on_step:
                batches.on_step(epoch, 0)
            compiled.epochs[size](*arguments(epoch), batches.steps)
            logs = {name: float(value) for name, value in net.get_metrics_result().items()}
            told.on_epoch_end(epoch, logs)
            if net.stop_training:
                break
        told.on_train_end(logs)
        return prepared


def _epoch_of_tensorflow(net: Any, size: int) -> Any:
    import tensorflow as tf

    @tf.function(jit_compile=bool(net.jit_compile), autograph=False)  # type: ignore[untyped-decorator]
    def epoch(images: Any, rows: Any, labels: Any, weights: Any, parameters: Any, steps: Any) -> None:
        def step(number: Any) -> Any:
            def part(array: Any) -> Any:
                rest = array.shape[1:]
                return tf.slice(array, [number * size, *[0] * len(rest)], [size, *rest])

            batch = tf.gather(images, part(rows))
            inputs = batch if parameters is None else (batch, part(parameters))
            net.train_step((inputs, part(labels)) if weights is None else (inputs, part(labels), part(weights)))
            return number + 1

        tf.while_loop(lambda number: number < steps, step, [tf.constant(0)])

    def run(images: Any, *drawn: Any) -> None:
        # Tensors, or every epoch would be traced anew for its numbers.
        epoch(images, *(None if array is None else tf.convert_to_tensor(array) for array in drawn))

    return run


def _epoch_of_jax(net: Any, size: int) -> Any:
    import jax

    def epoch(state: Any, images: Any, rows: Any, labels: Any, weights: Any, parameters: Any, steps: Any) -> Any:
        def step(number: Any, state: Any) -> Any:
            def part(array: Any) -> Any:
                return jax.lax.dynamic_slice_in_dim(array, number * size, size)

            batch = images[part(rows)]
            inputs = batch if parameters is None else (batch, part(parameters))
            data = (inputs, part(labels)) if weights is None else (inputs, part(labels), part(weights))
            _, new = net.train_step(tuple(state), data)
            # A loop hands on what has the type that it was given.
            return jax.tree.map(lambda old, value: jax.numpy.asarray(value, old.dtype), state, [*map(list, new)])

        return jax.lax.fori_loop(0, steps, step, state)

    compiled = jax.jit(epoch, donate_argnums=0)

    def run(*drawn: Any) -> None:
        groups = (net.trainable_variables, net.non_trainable_variables, net.optimizer.variables, net.metrics_variables)
        state = compiled([[variable.value for variable in group] for group in groups], *drawn)
        for group, values in zip(groups, state, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)

    return run


_EPOCHS = {"tensorflow": _epoch_of_tensorflow, "jax": _epoch_of_jax}


def training_pass(model: Any) -> Any:
    """Return a compiled function of images that runs a net in training mode, for what that does to its variables."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=bool(model.jit_compile), autograph=False)  # type: ignore[untyped-decorator]
        def forward(images: Any) -> None:
            model(images, training=True)

        return forward
    import jax

    @jax.jit  # type: ignore[untyped-decorator]
    def stateless(trained: Any, others: Any, images: Any) -> Any:
        return model.stateless_call(trained, others, images, training=True)[1]

    def run(images: Any) -> None:
        others = model.non_trainable_variables
        trained = [variable.value for variable in model.trainable_variables]
        new = stateless(trained, [variable.value for variable in others], images)
        for variable, value in zip(others, new, strict=True):
            variable.assign(value)

    return run


def _build_metrics(net: Any, batches: Batches) -> None:
    """Have Keras make the variables of loss and metrics, which it does when they are first asked for."""
    import keras

    labels = np.zeros(batches.batch_size, np.int32)
    logits = keras.ops.zeros((batches.batch_size, *net.output_shape[1:]))
    weights = None if batches.weights is None else np.ones(batches.batch_size, np.float32)
    net.compute_loss(x=None, y=labels, y_pred=logits, sample_weight=weights)
    net.compute_metrics(x=None, y=labels, y_pred=logits, sample_weight=weights)
    net.reset_metrics()


def _padded(array: NDArray[Any], length: int) -> NDArray[Any]:
    return np.concatenate([array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)])


def _on_device(base: Any) -> Any:
    import keras

    if _copied and _copied[0][0]() is base:
        return _copied[0][1]
    _copied.clear()  # first, since both at a time may be more than fits
    images = keras.ops.convert_to_tensor(np.array(base[:]))
    if is_readonly(base):
        _copied.append((weakref.ref(base, lambda _: _copied.clear()), images))
    return images


def bytes_on_device(images: Any) -> int:
    """Return the memory that images, or those that they are a part of, take on the device."""
    base = images.base if isinstance(images, Subset) else images
    return int(np.prod(base.shape)) * int(base.dtype.itemsize)


def fits_on_device(images: Any) -> bool:
    """Return whether the images take no more than their share of the memory of JAX's device, or it does not say."""
    import jax

    device = jax.config.jax_default_device or jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return limit is None or bytes_on_device(images) <= _LARGEST_SHARE * limit
