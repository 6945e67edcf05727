"""What a net, its weights and its images are, as digests: two fits that agree in them may share work."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from leukemia_dl.plugins import DISTRIBUTION, installed_version
from leukemia_dl.training.backends import Device

__all__ = ["array_fingerprint", "backend_fingerprint", "layers_fingerprint", "weights_fingerprint"]

_CHUNK = 1024


def layers_fingerprint(model: Any) -> list[Any]:
    """Return what a net is made of, without names, which depend on how many nets this process has built before."""
    made: list[Any] = []
    for layer in model.layers:
        try:
            settings = {key: value for key, value in layer.get_config().items() if key != "name"}
            text = json.dumps(settings, sort_keys=True, default=lambda value: type(value).__name__)
        except Exception:  # a layer of a plugin that cannot say what it is
            text = ""
        made.append([type(layer).__name__, text, [[int(size) for size in weight.shape] for weight in layer.weights]])
    return made


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


def backend_fingerprint(device: Device) -> list[Any]:
    """Return what the last bits of a computation depend on: versions, device, precision, threads on a CPU."""
    versions = [installed_version(name) for name in (DISTRIBUTION, "keras", device.backend)]
    threads = device.threads if device.kind == "cpu" else 0
    return [device.backend, device.kind, device.dtype_policy, *versions, threads, device.replicas]
