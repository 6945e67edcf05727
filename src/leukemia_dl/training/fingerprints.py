"""Digests of nets, weights and images: fits that agree in them may share features and checkpoints."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from leukemia_dl.models.build import all_layers
from leukemia_dl.plugins import DISTRIBUTION, installed_version
from leukemia_dl.training.backends import Device

__all__ = ["array_fingerprint", "backend_fingerprint", "net_fingerprint", "weights_fingerprint"]

_CHUNK = 1024


def net_fingerprint(model: Any) -> str | None:
    """Return the graph of a net with its settings, and the source of layers that are not Keras's own, as a text.

    Names are left out, since they depend on how many nets this process has built before. None if a layer has no
    configuration, or its source may depend on more than its file: one of a notebook or inside a function.
    """
    kinds = {type(operation) for operation in (*model.operations, *all_layers(model))}
    foreign = sorted(kind.__module__ for kind in kinds if kind.__module__.partition(".")[0] != "keras")
    if "__main__" in foreign or any("<locals>" in kind.__qualname__ for kind in kinds):
        return None
    names = {operation.name: f"#{number}" for number, operation in enumerate(model.operations)} | {model.name: "#"}
    try:
        sources = [inspect.getsource(sys.modules[module]) for module in foreign]
        return json.dumps([_renamed(model.get_config(), names), sources], sort_keys=True)
    except Exception:  # a layer of a plugin may raise anything
        return None


def weights_fingerprint(model: Any) -> str:
    """Return the SHA-256 of a net's weights, in its order."""
    import keras

    return _sha256(keras.ops.convert_to_numpy(weight) for weight in model.weights)


def array_fingerprint(*arrays: Any) -> list[Any]:
    """Return shape and SHA-256 of arrays (n, ...) of equal length, read in parts."""
    parts = (array[start : start + _CHUNK] for array in arrays for start in range(0, len(array), _CHUNK))
    return [*arrays[0].shape, _sha256(parts)]


def backend_fingerprint(device: Device) -> list[Any]:
    """Return versions, device, precision and, on a CPU, threads: the last bits of a computation depend on them."""
    versions = [installed_version(name) for name in (DISTRIBUTION, "keras", device.backend)]
    threads = device.threads if device.kind == "cpu" else 0
    return [device.backend, device.kind, device.name, device.dtype_policy, *versions, threads]


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(item, names) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def _sha256(arrays: Iterable[Any]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
