"""What a net, its weights and its images are, as digests: two fits that agree in them may share work."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from typing import Any

import numpy as np

from leukemia_dl.models.build import all_layers
from leukemia_dl.plugins import DISTRIBUTION, installed_version
from leukemia_dl.training.backends import Device

__all__ = [
    "array_fingerprint",
    "backend_fingerprint",
    "is_readonly",
    "net_fingerprint",
    "shapes",
    "weights_fingerprint",
]

_CHUNK = 1024


def net_fingerprint(model: Any) -> str | None:
    """Return the SHA-256 of what a net computes, but for its weights; None if its layers cannot say.

    That is the graph of its layers and operations with their settings, without names, which depend on how many nets
    this process has built before; and the source of the modules of layers that are not Keras's own.
    """
    try:
        names = {operation.name: f"#{number}" for number, operation in enumerate(model.operations)}
        names[model.name] = "#"
        graph = json.dumps(_renamed(model.get_config(), names), sort_keys=True)
        code = [_code(kind) for kind in _own_kinds(model)]
    except Exception:  # whatever a layer of a plugin raises that cannot say what it is
        return None
    return hashlib.sha256(json.dumps([graph, code, shapes(model)]).encode()).hexdigest()


def shapes(model: Any) -> list[Any]:
    """Return kinds of layers and shapes of their weights: what is known of any net."""
    return [
        [type(layer).__name__, [[int(size) for size in weight.shape] for weight in layer.weights]]
        for layer in model.layers
    ]


def _code(kind: type) -> str:
    if "<locals>" in kind.__qualname__ or kind.__module__ == "__main__":
        raise TypeError("Its code may hold values of the function around it, or be written anew in a notebook.")
    return inspect.getsource(sys.modules[kind.__module__])


def _own_kinds(model: Any) -> list[type]:
    kinds = {type(operation) for operation in (*model.operations, *all_layers(model))}
    return sorted((k for k in kinds if k.__module__.partition(".")[0] != "keras"), key=lambda kind: kind.__qualname__)


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(item, names) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def weights_fingerprint(model: Any) -> str:
    """Return the SHA-256 of a net's weights, in its order."""
    import keras

    said = hashlib.sha256()
    for weight in model.weights:
        said.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).tobytes())
    return said.hexdigest()


def array_fingerprint(*arrays: Any) -> list[Any]:
    """Return shape and SHA-256 of arrays (n, ...) of equal length, read in parts."""
    said = hashlib.sha256()
    for array in arrays:
        for start in range(0, len(array), _CHUNK):
            said.update(np.ascontiguousarray(array[start : start + _CHUNK]).tobytes())
    return [*arrays[0].shape, said.hexdigest()]


def is_readonly(array: Any) -> bool:
    """Return whether an array cannot change: one that may be written to is another one at any moment."""
    return not (isinstance(array, np.ndarray) and array.flags.writeable)


def backend_fingerprint(device: Device) -> list[Any]:
    """Return what the last bits of a computation depend on: versions, device, precision, threads on a CPU."""
    versions = [installed_version(name) for name in (DISTRIBUTION, "keras", device.backend)]
    threads = device.threads if device.kind == "cpu" else 0
    return [device.backend, device.kind, device.name, device.dtype_policy, *versions, threads]
