"""Trained nets for programs without Keras: written as ONNX, OpenVINO, LiteRT or SavedModel, and read again."""

import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.atomic import write_file
from leukemia_dl.checks import choice, real_number
from leukemia_dl.errors import DataError, SettingsError, UnknownNameError
from leukemia_dl.preprocess import Pipeline

Floats = NDArray[np.float32]
# Of each form the ending of its file ("" for a folder) and Keras's name of it.
FORMS = {
    "onnx": (".onnx", "onnx"), "openvino": (".xml", "openvino"), "litert": (".tflite", "litert"),
    "saved_model": ("", "tf_saved_model"),
}  # fmt: skip
FORMAT = 3  # of the settings of a net; before, a net gave logits
_NOISE, _MOST_DIFFERENCE, _MOST_LOGIT, _MOST_TEXT = 64, 1e-4, 1e-3, 1 << 23
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ExportedNet:
    """An exported net, run by the program for its form, with the methods of a Keras model that predictions use."""

    run: Callable[[Floats], Floats]  # from RGB 0..255 (n, size, size, 3) to calibrated probabilities (n, classes)
    input_shape: tuple[None, int, int, int]
    output_shape: tuple[None, int]
    temperature: float
    name: str = "exported"

    def predict_on_batch(self, images: NDArray[Any]) -> NDArray[np.float64]:
        """Return logits (n, classes), float64, up to a constant, of raw RGB."""
        probabilities = self.run(np.asarray(images, np.float32)).astype(np.float64)
        return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)) * self.temperature


def export_net(net: Any, settings: dict[str, Any], path: str | Path, form: str | None) -> Path:
    """Write a Keras net that gives probabilities, see `Classifier.export`."""
    path = Path(path).expanduser()
    endings = {ending: name for name, (ending, *_) in FORMS.items()}
    if form is None and path.suffix not in endings:
        allowed = ", ".join(filter(None, endings))
        raise SettingsError(f"A name ends in {allowed}, or in nothing for a SavedModel. Received: {path.name!r}.")
    form = choice("form", endings.get(path.suffix) if form is None else form, list(FORMS))
    ending, name = FORMS[form]
    if path.suffix != ending:
        raise SettingsError(f"A net as {form} is {ending or 'a folder without an ending'}. Received: {str(path)!r}.")
    if path.is_dir() and not (path / "saved_model.pb").is_file():
        raise SettingsError(f"The folder {path} is there and is no SavedModel: choose another name.")
    size = int(net.input_shape[1])
    noise = np.random.default_rng(0).integers(0, 256, (_NOISE, size, size, 3)).astype(np.float32)
    noise *= np.linspace(0, 1, _NOISE, dtype=np.float32)[:, None, None, None]  # from black to full contrast
    expected = np.concatenate([np.asarray(net.predict_on_batch(part)) for part in np.split(noise, 4)])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        try:
            net(noise[:1])  # Keras exports no net that was never called
            net.export(str(file), format=name, verbose=False)
            run = _runner(file, form)
            found = np.concatenate([run(part) for part in np.split(noise, 4)])
        except ImportError as error:
            hint = f"Export as {form} needs {error.name or 'a package'}: pip install 'leukemia-dl[export]'"
            raise SettingsError(f"{hint} ({error}).") from error
        except Exception as error:  # converters raise anything
            raise DataError(f"This net cannot be exported as {form}: {type(error).__name__}: {error}") from error
        difference = float(np.abs(found - expected).max())
        # Where probabilities are 0 and 1, different logits show in their logarithms only.
        logits, others = (np.log(np.maximum(values, np.finfo(np.float32).tiny)) for values in (expected, found))
        apart = (np.abs(logits - others) > _MOST_LOGIT * (1 + np.abs(logits))).any()
        if apart or not difference <= _MOST_DIFFERENCE:
            raise DataError(
                f"Exported and trained net differ by {difference:.2g} in a probability, of {_NOISE} images "
                f"of noise, or in logits; at most {_MOST_DIFFERENCE:g} is allowed. Nothing was written."
            )
        settings |= {"form": form, "image_size": size, "largest_difference": difference}
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            shutil.copytree(file, path, dirs_exist_ok=True)
        for made in (made for made in Path(folder).iterdir() if made.is_file()):  # OpenVINO writes two
            write_file(path.parent / made.name, made.read_bytes())
        write_file(settings_file(path), json.dumps(settings, indent=1).encode())
    return path


def settings_file(path: Path) -> Path:
    """Return the file with classes, preprocessing and origin beside an exported net."""
    return path.with_name(f"{path.name}.json")


def is_exported(path: Path) -> bool:
    """Return whether a path is that of an exported net, by its ending or content and the settings beside it."""
    known = path.suffix in [ending for ending, *_ in FORMS.values() if ending] or (path / "saved_model.pb").is_file()
    return known and settings_file(path).is_file()


def read_exported(path: Path) -> tuple[ExportedNet, tuple[str, ...], Pipeline, dict[str, Any], float]:
    """Return an exported net, its classes, pipeline, provenance and temperature. Raises DataError if they are damaged.

    TensorFlow runs what a SavedModel holds, which may read and write files: it must come from a source that you trust.
    """
    try:
        if settings_file(path).stat().st_size > _MOST_TEXT:
            raise ValueError("its settings have an implausible size")
        settings = json.loads(settings_file(path).read_text("utf-8"))
        if settings["format"] != FORMAT:
            raise ValueError(f"format {settings['format']!r} is unknown to this version: update leukemia-dl")
        size, names = int(settings["image_size"]), tuple(map(str, settings["class_names"]))
        temperature = real_number("temperature", settings["temperature"], 0.01, 100)
        pipeline, provenance = Pipeline.from_dict(settings["pipeline"]), dict(settings["provenance"])
        run = _runner(path, choice("form", settings["form"], list(FORMS)))
        net = ExportedNet(run, (None, size, size, 3), (None, len(names)), temperature)
    except (ImportError, UnknownNameError) as error:
        if isinstance(error, UnknownNameError):  # a preprocessing step whose module is not imported
            raise
        raise SettingsError(f"{path.name} needs {error.name}: pip install 'leukemia-dl[export]'.") from error
    except Exception as error:  # damaged files raise errors of many kinds
        raise DataError(f"{path} is damaged or was not exported by leukemia_dl: {error}") from error
    return net, names, pipeline, provenance, temperature


def _runner(path: Path, form: str) -> Callable[[Floats], Floats]:
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda images: np.asarray(session.run(None, {name: images})[0])
    if form == "openvino":
        import openvino

        # By default it computes in half precision where the processor can.
        compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda images: np.asarray(compiled(images)[0])
    if form == "litert":
        from ai_edge_litert.interpreter import Interpreter

        return _litert(Interpreter(str(path)))
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return lambda images: np.asarray(loaded.serve(images))


def _litert(interpreter: Any) -> Callable[[Floats], Floats]:
    (taken,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(images: Floats) -> Floats:
        interpreter.resize_tensor_input(taken["index"], images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(taken["index"], images)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(made["index"]))

    return run
