"""Load untrusted `.keras` files: sizes are bounded before anything is unpacked, built or allocated."""

from __future__ import annotations

import json
import math
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from leukemia_dl.errors import DataError
from leukemia_dl.models.backend import silence_startup
from leukemia_dl.models.build import all_layers

__all__ = ["MEMBER", "load_net", "read_settings"]

MEMBER = "leukemia_dl.json"
_WEIGHTS = "model.weights.h5"
_MAX_TEXT = 8 << 20  # bytes of any member but the weights; the largest nets of Keras have 2 MB
_MAX_OBJECTS = 10_000
_MAX_CALLS, _MAX_DEPTH = 10_000, 5  # calls of layers that building takes, and nets inside nets
_MAX_VALUES = 1 << 28  # per image in the output of one layer: 1 GiB as float32


def read_settings(file: Path) -> dict[str, Any]:
    """Return the settings that this library wrote into a `.keras` file, unchecked.

    Raises:
        DataError: If there are none, the file is damaged, or a member unpacks to an implausible size.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():  # Keras does not compress the weights
                if member.file_size > (file.stat().st_size if member.filename == _WEIGHTS else _MAX_TEXT):
                    raise ValueError(f"{member.filename} in it has an implausible size")
            if MEMBER in archive.namelist():
                return dict(json.loads(archive.read(MEMBER)))
    except Exception as error:  # zipfile and zlib raise about anything
        raise DataError(f"{file} is damaged or is no .keras file: {error}.") from error
    raise DataError(
        f"{file} holds no leukemia_dl classifier. Pass a model.keras that a benchmark or Classifier.save wrote; any "
        "other Keras model can be wrapped: Classifier(model, class_names, pipeline)."
    )


def load_net(file: Path) -> Any:
    """Return the `keras.Model` of a file whose settings were read.

    Raises:
        DataError: If Keras cannot load it, or the net that it describes is larger than the file or any real one.
    """
    import keras

    try:
        with silence_startup("devices"):  # TensorFlow looks for devices when it needs one first
            # StatelessScope leaves state behind in its thread, so the check has a thread that ends.
            with ThreadPoolExecutor(1) as pool:
                pool.submit(_check, file).result()
            return keras.saving.load_model(file, compile=False, safe_mode=True)
    except Exception as error:
        raise DataError(f"It could not be loaded by Keras ({type(error).__name__}: {error}).") from error


def _check(file: Path) -> None:
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
    with keras.StatelessScope(initialize_variables=False):
        model = keras.saving.deserialize_keras_object({**config, "compile_config": None}, safe_mode=True)
        if not isinstance(model, keras.Model):
            raise ValueError(f"it holds a {type(model).__name__}, not a model")
        parameters = sum(math.prod(variable.shape) for variable in model.variables)
    for name in (model.name, *(f"a{layer.name}" for layer in model.layers)):
        if not re.fullmatch(r"[A-Za-z0-9.][\w.\\/>-]*", name, re.ASCII):
            raise ValueError(f"{name!a} is no name that TensorFlow can use for a net or a layer")
    _bound("parameters", parameters, on_disk)
    _bound("bytes of weights", sum(stored), on_disk)
    for layer in all_layers(model):
        for tensor in [tensor for node in layer._inbound_nodes for tensor in node.output_tensors]:
            values = math.prod(size or 1 for size in tensor.shape[1:])
            _bound("numbers of one image in a layer's output", values, _MAX_VALUES)


def _bound(what: str, number: int, most: int) -> None:
    if number > most:
        raise ValueError(f"it has {number:,} {what}, more than {most:,}")


def _calls(config: Any, depth: int = 0) -> int:
    """Return about how many calls of layers building a net takes; a Sequential is built anew for each of its layers."""
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
