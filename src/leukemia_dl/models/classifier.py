"""A trained model in use: images or files in, a DataFrame of probabilities out; saved as one `.keras` file.

The file is an ordinary Keras model that takes raw pixels. Class names, pipeline, provenance and temperature are one
more member of the archive (`leukemia_dl.json`), which Keras ignores.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.checks import choice, real_number, whole_number
from leukemia_dl.errors import DataError, ImageError, SettingsError
from leukemia_dl.models.archive import MEMBER, load_net, read_settings
from leukemia_dl.models.backend import backend_name, silence_startup
from leukemia_dl.models.registry import register_layers
from leukemia_dl.preprocess import Pipeline, decode_image
from leukemia_dl.preprocess.decode import image_files
from leukemia_dl.preprocess.quality import Appearance, appearance_of, differences
from leukemia_dl.progress import parallel_map, track

__all__ = [
    "Classifier", "load_classifier", "logits_over_symmetries", "predict_in_batches", "predict_logits", "softmax",
    "symmetric_form",
]  # fmt: skip

# The kinds of outputs of a net, each with its file format: earlier versions read logits only.
FORMATS = {"logits": 1, "probabilities": 2}
_CHUNK = 512
_SUM_TOLERANCE = 0.01
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained model with its classes, its preprocessing and its origin.

    Attributes:
        model: `keras.Model`, raw RGB (batch, size, size, 3) to (batch, classes).
        class_names: In the order of the model's outputs.
        pipeline: From a file to the pixels that the model takes.
        provenance: The data and settings of its training; JSON values. `predict` warns of images unlike `images` in it:
            `on_black`, the share of images of a cell cut out on black, and `size`, the smallest and largest in pixels.
        temperature: Divisor of the logits before the softmax, from 0.01 to 100, so that probabilities are calibrated
            (Guo et al. 2017, arXiv:1706.04599); 1 where none was fitted.
        outputs: "logits", or "probabilities" for a net that ends in a softmax or a sigmoid. A single output belongs to
            the second of two classes.

    Raises:
        SettingsError: On creation, if net, classes, pipeline and outputs do not fit together, or a value is not
            allowed.
    """

    model: Any = field(repr=False)
    class_names: tuple[str, ...]
    pipeline: Pipeline
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    temperature: float = 1.0
    outputs: str = "logits"

    def __post_init__(self) -> None:
        choice("outputs", self.outputs, FORMATS)
        object.__setattr__(self, "temperature", real_number("temperature", self.temperature, 0.01, 100))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if problem := self._problem():
            raise SettingsError(f"A classifier's parts do not fit together: {problem}.")

    def _problem(self) -> str:
        """Return why net, classes, pipeline and outputs do not fit together, or ""."""
        shapes = [getattr(self.model, name, None) for name in ("input_shape", "output_shape")]
        taken, made = (shape if isinstance(shape, tuple) else () for shape in shapes)
        if len(taken) != 4 or taken[1] is None or taken[1:] != (taken[1], taken[1], 3) or len(made) != 2:
            return f"a net takes (batch, size, size, 3) and gives (batch, classes); this one has the shapes {shapes}"
        if len(set(self.class_names)) != len(self.class_names) or len(self.class_names) != max(made[1], 2):
            return f"{made[1]} outputs for the classes {', '.join(map(str, self.class_names))}"
        if self.pipeline.output_size not in (None, taken[1]):
            return f"the pipeline gives {self.pipeline.output_size} pixels, the net takes {taken[1]}"
        if (known := self.provenance.get("images")) and not {"on_black", "size"} <= dict(known).keys():
            return f"provenance['images'] has on_black and size; this one is {known!r}"
        if self.outputs == "logits" and _gives_probabilities(self.model):
            return "the net's outputs are probabilities already: say outputs='probabilities'"
        return ""

    def predict(
        self,
        images: Any,
        *,
        batch_size: int = 32,
        calibrated: bool = True,
        tta: bool = False,
        show_progress: bool = True,
    ) -> pd.DataFrame:
        """Return a row per image, in the order given.

        Args:
            images: One or several paths (of images, or of folders of images), a Dataset, or raw RGB as uint8, one array
                (n, height, width, 3) or (height, width, 3) or a list of the latter. The pipeline is applied to all.
            batch_size: Images per step.
            calibrated: Divide logits by `temperature`. False for the probabilities of which a benchmark's `loss` is
                computed. The predicted class is the same.
            tta: Take the mean over the eight symmetries of each image; eight times the work.
            show_progress: Show progress when it takes long.

        Returns:
            Columns `path`, absolute (or `sample` for a Dataset, `image`, the position, for arrays), `predicted` (the
            most probable class), a probability per class in a column `probability_<class>`, and `error`: "" or why the
            file cannot be read; such a file has no prediction, and a warning is logged.

        Raises:
            ImageError: If an array is no image.
            DataError: If a folder holds no images or cannot be listed.
            SettingsError: If `images` is none of these, the pipeline gives another size than the net takes, or outputs
                that should be probabilities are none.
        """
        column, names, sources = _sources(images)
        batch_size = min(whole_number("batch_size", batch_size, 1), max(len(sources), 1))
        errors, appearances = [""] * len(sources), list[Appearance]()
        probabilities = np.full((len(sources), len(self.class_names)), np.nan)
        # Decoded in chunks, so that memory does not grow with the number of images.
        starts = range(0, len(sources), _CHUNK)
        for start in track(starts, len(starts), "Predicting", show_progress):
            pixels = dict[int, NDArray[np.uint8]]()
            chunk = parallel_map(self._read, sources[start : start + _CHUNK], "Reading images", show=False)
            for row, (image, appearance, error) in enumerate(chunk, start):
                errors[row] = error
                if not error:
                    pixels[row] = image
                    appearances.append(appearance)
            if pixels:
                values = self._probabilities(np.stack([*pixels.values()]), batch_size, calibrated, tta)
                probabilities[list(pixels)] = values
        if failed := [text for text in errors if text]:
            message = "%d of %d images cannot be read, as the column error says. The first: %s"
            _log.warning(message, len(failed), len(errors), failed[0])
        for difference in differences(appearances, self.provenance.get("images")):
            _log.warning("%s: the predictions may be meaningless", difference)
        best = np.nan_to_num(probabilities).argmax(axis=1)
        predicted = [None if text else self.class_names[i] for text, i in zip(errors, best, strict=True)]
        columns = {f"probability_{name}": probabilities[:, i] for i, name in enumerate(self.class_names)}
        return pd.DataFrame({column: names, "predicted": predicted} | columns | {"error": errors})

    def save(self, path: str | Path) -> Path:
        """Write one `.keras` file to `path` in one step, with the folders on the way to it, and return its path.

        Raises:
            SettingsError: If the path does not end in .keras.
        """
        import keras

        path = Path(path)
        if path.suffix != ".keras":
            raise SettingsError(f"A classifier is saved as a .keras file. Received: {str(path)!r}.")
        settings = {
            "format": FORMATS[self.outputs],
            "class_names": list(self.class_names),
            "pipeline": self.pipeline.to_dict(),
            "provenance": dict(self.provenance),
            "temperature": self.temperature,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
            aside = Path(folder) / path.name  # Keras writes into files only whose names end in .keras
            # A new model: the compiled one would carry its optimizer, twice the size, for nothing.
            keras.Model(self.model.input, self.model.output, name=self.model.name).save(aside)
            with zipfile.ZipFile(aside, "a") as archive:
                archive.writestr(MEMBER, json.dumps(settings, indent=1))
            aside.replace(path)
        return path

    def _read(self, source: Any) -> tuple[Any, Any, str]:
        """Return the pixels that the net takes of a source, the appearance of the image, and the error of a file."""
        try:
            image = source() if callable(source) else decode_image(source) if isinstance(source, Path) else source
            pixels, size = self.pipeline(image), self.model.input_shape[1]
        except ImageError as error:
            if isinstance(source, np.ndarray):
                raise
            return None, None, str(error)
        if pixels.shape[:2] != (size, size):
            raise SettingsError(
                f"The net takes images of {size} x {size} pixels; {self.pipeline!r} gives the shape {pixels.shape}. "
                f"Use a pipeline that ends in that size, such as dataset.default_pipeline({size})."
            )
        return pixels, appearance_of(image), ""

    def _probabilities(self, pixels: Any, batch_size: int, calibrated: bool, tta: bool) -> NDArray[np.float64]:
        predict = logits_over_symmetries if tta else predict_logits
        values = predict(self.model, pixels, batch_size)
        given = self.outputs == "probabilities"
        if values.shape[-1] == 1:  # a single output belongs to the second class
            values = np.concatenate([1 - values if given else np.zeros_like(values), values], axis=-1)
        if given:
            if not _are_probabilities(values):
                raise SettingsError("The net's outputs are no probabilities that sum to 1: say outputs='logits'.")
            values = np.log(np.maximum(values, np.finfo(np.float64).tiny))
        result = softmax(values / (self.temperature if calibrated else 1.0))
        return result.mean(axis=0) if tta else result


def load_classifier(path: str | Path) -> Classifier:
    """Load a trained model.

    Args:
        path: A `.keras` file written by `Classifier.save`, the folder of a trial that holds one, or the folder of a
            store with exactly one.

    Returns:
        The classifier, ready to predict; Keras loads its net with `safe_mode=True`.

    Raises:
        DataError: If there is none, several, or the file is damaged or from elsewhere.
        UnknownNameError: If it was trained with a preprocessing step whose module is not imported.
        BackendError: If Keras has no backend here.
    """
    backend_name()
    with silence_startup("import"):
        import keras  # noqa: F401

    file = _model_file(Path(path).expanduser())
    settings = read_settings(file)
    outputs = next((name for name, number in FORMATS.items() if number == settings.get("format")), None)
    if outputs is None:
        raise DataError(f"{file} has format {settings.get('format')!r}, unknown to this version: update leukemia-dl.")
    hint = ""
    try:
        class_names = tuple(map(str, settings["class_names"]))
        pipeline, provenance = Pipeline.from_dict(settings["pipeline"]), dict(settings["provenance"])
        temperature = settings.get("temperature", 1.0)  # files of version 0.1.0 have none
        hint = register_layers(dict(provenance.get("trial", {})))
        return Classifier(load_net(file), class_names, pipeline, provenance, temperature, outputs)
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{file} is damaged or contradicts itself: {error} {hint}".strip()) from error


def predict_logits(model: Any, images: Any, batch_size: int) -> NDArray[np.float64]:
    """Return logits (n, classes), float64, of raw pixels (n, height, width, 3)."""
    return predict_in_batches(model, images, batch_size).astype(np.float64)


def predict_in_batches(model: Any, inputs: Any, batch_size: int) -> NDArray[np.float32]:
    """Return the outputs of a model for inputs (n, ...): (n, outputs), float32.

    Every step has the same shape (the last batch is filled up and cut), so that nothing is compiled twice. Pixels go to
    the device as bytes, a quarter of their size as float32.
    """
    result = np.empty((len(inputs), int(model.output_shape[-1])), np.float32)
    for start in range(0, len(inputs), batch_size):
        batch = inputs[start : start + batch_size]
        count = len(batch)
        if count < batch_size:
            batch = np.concatenate([batch, np.zeros((batch_size - count, *batch.shape[1:]), batch.dtype)])
        result[start : start + count] = np.asarray(model.predict_on_batch(np.ascontiguousarray(batch)))[:count]
    return result


def logits_over_symmetries(model: Any, images: Any, batch_size: int) -> NDArray[np.float64]:
    """Return the logits of each image's eight turned and mirrored forms: (8, n, classes)."""
    return np.stack([predict_logits(model, symmetric_form(images, form), batch_size) for form in range(8)])


def symmetric_form(images: NDArray[Any], form: int) -> NDArray[Any]:
    """Return images (n, size, size, 3) turned by `form % 4` right angles and then, from 4 on, mirrored; a view.

    These are the eight symmetries of the square, numbered as in augmentation: `turns + 4 * mirror`.
    """
    turned = np.rot90(images, form % 4, axes=(1, 2))
    return turned[:, :, ::-1] if form >= 4 else turned


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities (..., classes) that sum to one over the classes."""
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = exponents / exponents.sum(axis=-1, keepdims=True)
    return result


def _gives_probabilities(model: Any) -> bool:
    """Say whether a net ends in a softmax or sigmoid, or gives probabilities of two random images."""
    import keras

    last = model
    while getattr(last, "layers", None):
        last = getattr(last, "operations", last.layers)[-1]
    activation = getattr(getattr(last, "activation", None), "__name__", "")
    if activation in ("softmax", "sigmoid") or (activation == "linear" and isinstance(last, keras.layers.Dense)):
        return activation != "linear"  # as most nets end: there is no need to run them
    images = np.random.default_rng(0).integers(0, 256, (2, *model.input_shape[1:])).astype(np.float32)
    values = np.asarray(keras.ops.convert_to_numpy(model(images, training=False)), np.float64)
    return _are_probabilities(values) or (values.shape[-1] == 1 and bool(((values >= 0) & (values <= 1)).all()))


def _are_probabilities(values: NDArray[np.float64]) -> bool:
    return bool((values >= 0).all() and (np.abs(values.sum(axis=-1) - 1) <= _SUM_TOLERANCE).all())


def _sources(images: Any) -> tuple[str, list[Any], list[Any]]:
    """Return the name of the first column of predictions, its values, and files, functions or arrays to read."""
    if hasattr(images, "class_names") and hasattr(images, "decode"):
        return "sample", list(images.table["sample"]), [partial(images.decode, row) for row in range(len(images))]
    single = isinstance(images, (str, Path)) or (isinstance(images, np.ndarray) and images.ndim == 3)
    items: list[Any] = [images] if single else list(images) if isinstance(images, Iterable) else [None]
    if all(isinstance(item, (str, Path)) for item in items):
        files = list[Path]()
        for path in map(Path, items):
            found = [path / name for name in image_files(path)] if path.is_dir() else [path]
            if not found:
                raise DataError(f"The folder {path} holds no images.")
            files += found
        return "path", [os.path.abspath(file) for file in files], files  # noqa: PTH100 - as in `Dataset.table`
    if all(isinstance(item, np.ndarray) for item in items):
        return "image", list(range(len(items))), items
    raise SettingsError(f"Pass paths, a Dataset or uint8 arrays, no mixture. Received: {type(images).__name__}.")


def _model_file(path: Path) -> Path:
    """Return a file itself, or the one model in the folder of a trial or a store."""
    if not path.exists():
        raise DataError(
            f"There is no model at {path}. Pass a .keras file or the folder of a trial, such as "
            f"'runs/STORE/trials/{path.name}'; for a row of results: bench.store.root / 'trials' / row.trial."
        )
    places = [path, path / "model.keras", *sorted(path.glob("trials/[!.]*/model.keras"))]
    found = [place for place in places if place.is_file()]
    if not found:
        raise DataError(f"{path} holds no model.keras. Pass a .keras file or the folder of a trial that saved one.")
    if len(found) > 1:
        names = "".join(f"\n  {file.relative_to(path).parent}" for file in found)
        raise DataError(f"{path} holds {len(found)} models; pass the folder of one of them:{names}")
    return found[0]
