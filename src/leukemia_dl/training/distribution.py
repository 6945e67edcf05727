"""Several GPUs of one machine for one fit: each takes a share of every batch."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

from leukemia_dl.errors import BackendError, SettingsError
from leukemia_dl.models.backend import backend_name
from leukemia_dl.training.backends import Device

__all__ = ["check_share", "distributed", "summed_over_replicas"]


def distributed(device: Device) -> AbstractContextManager[Any]:
    """Return the context in which a fit builds, compiles and trains its nets, so that all its devices hold them.

    TensorFlow's `tf.distribute.MirroredStrategy`, Keras's `DataParallel` on JAX; nothing for a single device.

    Raises:
        BackendError: If there are not as many devices, or the backend is torch.
    """
    if device.replicas == 1:
        return contextlib.nullcontext()
    if device.backend == "torch":
        raise BackendError("replicas > 1 is for TensorFlow and JAX. On torch give each trial a GPU of its own.")
    names = _names(device)
    if len(names) < device.replicas:
        raise BackendError(
            f"replicas={device.replicas} needs as many {device.kind.upper()}s; {device.backend} sees {len(names)}. "
            "`leukemia-dl doctor` lists what there is."
        )
    names = names[: device.replicas]
    if device.backend == "tensorflow":
        scope: AbstractContextManager[Any] = _mirrored(tuple(names)).scope()
        return scope
    import keras

    shared: AbstractContextManager[Any] = keras.distribution.DataParallel(devices=names).scope()
    return shared


@lru_cache(maxsize=1)
def _mirrored(names: tuple[str, ...]) -> Any:
    """Return one strategy for all fits: a second one's collective operations would be taken for those of the first."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(list(names))


def summed_over_replicas(gradients: list[Any]) -> tuple[list[Any], int]:
    """Return gradients summed over the replicas that share a batch, and how many these are.

    Under TensorFlow's strategies each replica has those of its share, and Keras would bound their norm share by share.
    """
    if backend_name() != "tensorflow":
        return gradients, 1
    import tensorflow as tf

    if not tf.distribute.has_strategy() or tf.distribute.in_cross_replica_context():
        return gradients, 1
    context = tf.distribute.get_replica_context()
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)), context.num_replicas_in_sync


def check_share(device: Device, batch_size: int) -> None:
    """Raise SettingsError if a batch cannot be shared evenly."""
    if batch_size % device.replicas:
        raise SettingsError(
            f"A batch of {batch_size} images cannot be shared evenly by {device.replicas} devices. "
            f"Use batch_size={max(batch_size // device.replicas, 1) * device.replicas}."
        )


def _names(device: Device) -> list[str]:
    if device.backend == "tensorflow":
        import tensorflow as tf

        return [found.name for found in tf.config.list_logical_devices(device.kind.upper())]
    import jax

    kind = "cpu" if device.kind == "cpu" else None
    return [f"{found.platform}:{found.id}" for found in jax.devices(kind) if kind or found.platform != "cpu"]
