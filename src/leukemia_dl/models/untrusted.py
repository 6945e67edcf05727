"""Bounds on the net in an untrusted file, checked before anything of it is unpacked, built or allocated."""

import json
import math
import zipfile
from pathlib import Path
from typing import Any

from leukemia_dl.models.build import all_layers

_WEIGHTS = "model.weights.h5"
_MAX_OBJECTS, _MAX_CALLS, _MAX_DEPTH = 10_000, 10_000, 5  # calls of layers that building takes, and nets inside nets
_MAX_VALUES = 1 << 28  # per image in the output of one layer: 1 GiB as float32


def check_net(file: Path) -> None:
    """Raise ValueError unless the net, built without its weights, is plausible and the file can hold its weights."""
    import h5py
    import keras

    on_disk, stored = file.stat().st_size, list[int]()
    with zipfile.ZipFile(file) as archive:
        text = archive.read("config.json")
        with archive.open(_WEIGHTS) as member, h5py.File(member) as weights:
            weights.visititems(lambda _, item: stored.append(getattr(item, "nbytes", 0)))
    config = json.loads(text)
    _bound("layers and initializers", text.count(b'"class_name"'), _MAX_OBJECTS)
    _bound("calls of layers to build it", _calls(config), _MAX_CALLS)
    _bound("bytes of weights", sum(stored), on_disk)
    with keras.StatelessScope(initialize_variables=False):
        model = keras.saving.deserialize_keras_object({**config, "compile_config": None}, safe_mode=True)
        if not isinstance(model, keras.Model):
            raise ValueError(f"it holds a {type(model).__name__}, not a model")
        _bound("parameters", sum(math.prod(variable.shape) for variable in model.variables), on_disk)
    for layer in all_layers(model):
        for tensor in [tensor for node in layer._inbound_nodes for tensor in node.output_tensors]:
            values = math.prod(size or 1 for size in tensor.shape[1:])
            _bound("numbers of one image in a layer's output", values, _MAX_VALUES)


def _bound(what: str, number: int, most: int) -> None:
    if number > most:
        raise ValueError(f"it has {number:,} {what}, more than {most:,}")


def _calls(config: Any, depth: int = 0) -> int:
    """Return about how many calls of layers building takes; a Sequential is built anew for each of its layers."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"nets are nested in it more than {_MAX_DEPTH} deep")
    inner = config.get("config") if isinstance(config, dict) else None
    if not isinstance(inner, dict):
        return 1
    layers = inner.get("layers")
    if not isinstance(layers, list):  # a wrapper has a layer in its settings
        return 1 + sum(_calls(value, depth) for value in inner.values() if isinstance(value, dict))
    calls = [_calls(layer, depth + 1) * len(layer.get("inbound_nodes") or [0]) for layer in layers]
    return sum(calls) * (len(layers) if config.get("class_name") == "Sequential" else 1)
