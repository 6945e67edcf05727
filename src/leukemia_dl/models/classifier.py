"""A trained model in use: images or files in, a DataFrame of probabilities out; saved as one `.keras` file."""

import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.atomic import write_file
from leukemia_dl.checks import choice, real_number, whole_number
from leukemia_dl.errors import DataError, ImageError, SettingsError
from leukemia_dl.models.backbones import encoder_identity
from leukemia_dl.models.build import with_probabilities
from leukemia_dl.models.encoders import EncodedNet
from leukemia_dl.models.explain import Explanation, Method, explain
from leukemia_dl.models.exported import FORMAT, ExportedNet, export_net
from leukemia_dl.models.hub import push
from leukemia_dl.preprocess import Pipeline, decode_image
from leukemia_dl.preprocess.decode import image_files
from leukemia_dl.preprocess.foreground import Appearance, appearance_of, differences
from leukemia_dl.progress import parallel_map, track

SETTINGS_MEMBER = "leukemia_dl.json"  # of the file, which Keras ignores
_CHUNK = 512  # images decoded at once, so that memory does not grow with their number
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained model with its classes, its preprocessing and its origin.

    Attributes:
        model: `keras.Model`, raw RGB (batch, size, size, 3) to logits (batch, classes), or to probabilities, which are
            noticed by trying. A single output belongs to the second of two classes.
        class_names: In the order of the model's outputs.
        pipeline: From a file to the pixels that the model takes.
        provenance: The data and settings of its training, JSON values. `predict` warns of images unlike `images` in it.
        temperature: Divisor of the logits before the softmax, from 0.01 to 100, so that probabilities are calibrated
            (Guo et al. 2017, arXiv:1706.04599); 1 where none was fitted.

    Raises:
        SettingsError: On creation, if the parts do not fit together, or a value is not allowed.
    """

    model: Any = field(repr=False)
    class_names: tuple[str, ...]
    pipeline: Pipeline
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    temperature: float = 1.0
    _probable: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if problem := self._problem():
            raise SettingsError(f"A classifier's parts do not fit together: {problem}.")
        object.__setattr__(self, "temperature", real_number("temperature", self.temperature, 0.01, 100))
        object.__setattr__(self, "_probable", _gives_probabilities(self.model))

    def _problem(self) -> str:
        shapes = [getattr(self.model, name, None) for name in ("input_shape", "output_shape")]
        taken, made = (shape if isinstance(shape, tuple) else () for shape in shapes)
        if len(taken) != 4 or taken[1] is None or taken[1:] != (taken[1], taken[1], 3) or len(made) != 2:
            return f"a net takes (batch, size, size, 3) and gives (batch, classes); this one has the shapes {shapes}"
        if len(set(self.class_names)) != len(self.class_names) or len(self.class_names) != max(made[1], 2):
            return f"{made[1]} outputs for the classes {', '.join(map(str, self.class_names))}"
        if self.pipeline.output_size not in (None, taken[1]):
            return f"the pipeline gives {self.pipeline.output_size} pixels, the net takes {taken[1]}"
        if (known := self.provenance.get("images")) and not {"on_black", "size"} <= set(known):
            return f"its record of images has no on_black and size: {known!r}"
        rule = self.provenance.get("abstain", {"value": None})
        limit = rule.get("value") if isinstance(rule, Mapping) else ""
        if limit is not None and not (isinstance(limit, (int, float)) and 0 <= limit <= 1):
            return f"its record of abstaining has no value from 0 to 1: {rule!r}"
        return ""

    def predict(
        self, images: Any, *, batch_size: int = 32, calibrated: bool = True, tta: bool = False, abstain: bool = False,
        show_progress: bool = True,
    ) -> pd.DataFrame:  # fmt: skip
        """Return a row per image, in the order given.

        Args:
            images: One or several paths (of images, or of folders of images), a Dataset, or raw RGB as uint8, one array
                (n, height, width, 3) or (height, width, 3) or a list of the latter. The pipeline is applied to all.
            batch_size: Images per step.
            calibrated: Divide logits by `temperature`; False for the probabilities behind a benchmark's `loss`.
            tta: Take the mean over the eight symmetries of each image; eight times the work.
            abstain: Add `possible`, the classes whose probability reaches the limit that was chosen on val. They hold
                the right class of an image of a new patient with a probability of 0.9 or more (see `conformal_sets`).
                Where they are not exactly one class, `predicted` is "unsure".
            show_progress: Show progress when it takes long.

        Returns:
            Columns `path`, absolute (`sample` for a Dataset, `image`, the position, for arrays), `predicted` (the most
            probable class), `probability_<class>` per class, and `error`: "", or why the file cannot be read; such a
            file has no prediction, and a warning is logged.

        Raises:
            ImageError: If an array is no image.
            DataError: If a folder holds no images or cannot be listed.
            SettingsError: If `images` is none of these, the pipeline gives another size than the net takes, or
                `abstain` has no limit, is without calibration or with `tta`.
        """
        limit = self._limit(calibrated and not tta) if abstain else None
        column, names, sources = _sources(images)
        batch_size = min(whole_number("batch_size", batch_size, 1), max(len(sources), 1))
        errors, appearances = list[str](), list[Appearance]()
        probabilities = np.full((len(sources), len(self.class_names)), np.nan)
        starts = range(0, len(sources), _CHUNK)
        for start in track(starts, len(starts), "Predicting", show_progress):
            pixels = dict[int, NDArray[np.uint8]]()
            chunk = parallel_map(self._read, sources[start : start + _CHUNK], "Reading images", show=False)
            for row, (image, appearance, error) in enumerate(chunk, start):
                errors.append(error)
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
        columns = dict[str, Any](zip(map("probability_{}".format, self.class_names), probabilities.T, strict=True))
        if limit is not None:
            sets = [[self.class_names[i] for i in np.flatnonzero(row >= limit)] for row in probabilities]
            unsure = [name is not None and len(found) != 1 for name, found in zip(predicted, sets, strict=True)]
            predicted = ["unsure" if one else name for one, name in zip(unsure, predicted, strict=True)]
            columns["possible"] = [", ".join(found) for found in sets]
        return pd.DataFrame({column: names, "predicted": predicted} | columns | {"error": errors})

    def _limit(self, as_chosen: bool) -> float:
        """Return the probability from which on a class is possible, as `abstain` of the provenance says."""
        rule = self.provenance.get("abstain", {})
        if not as_chosen:
            raise SettingsError("abstain=True needs calibrated=True and tta=False, with which its limit was chosen.")
        if rule.get("value") is None:
            why = (
                rule.get("reason")
                or "its training recorded none: no val side beside the test side, or a callback stopped it"
            )
            raise SettingsError(f"This classifier has no limit to abstain by: {why}.")
        return float(rule["value"])

    def explain(self, images: Any, method: Method | None = None, classes: Sequence[str] | None = None) -> Explanation:
        """Return maps of the pixels that the predictions of images depend on, with checks of each map.

        A map shows where a change of pixels would change the prediction, not why it is right. Read its `checks`.

        Args:
            images: As for `predict`.
            method: "gradcam", at the last feature map; "integrated_gradients", from a black image; or "occlusion" by
                black patches, which needs predictions only and takes as many of them as there are patches. None for
                "gradcam" where the net has feature maps, else "occlusion".
            classes: The class to explain for each image; None for the predicted one.

        Raises:
            SettingsError: If the method needs a Keras net with feature maps, or `classes` are others.
            ImageError: If a file cannot be read.
        """
        if method is not None:
            choice("method", method, get_args(Method))
        column, sample, sources = _sources(images)
        if not (read := [self._read(source) for source in sources]):
            raise SettingsError("There are no images to explain.")
        if failed := [error for *_, error in read if error]:
            raise ImageError(failed[0])
        pixels = np.stack([image for image, *_ in read])
        predict = partial(self._probabilities, batch_size=min(32, len(pixels)), calibrated=True, tta=False)
        targets = predict(pixels).argmax(axis=1)
        if classes is not None:
            if len(classes) != len(pixels) or set(classes) - set(self.class_names):
                raise SettingsError(f"classes must be {len(pixels)} of {', '.join(self.class_names)}, one per image.")
            targets = np.array([self.class_names.index(name) for name in classes])
        found = explain(self.model, pixels, targets, self.class_names, method, predict)
        found.checks.insert(0, column, sample)
        return found

    def save(self, path: str | Path) -> Path:
        """Write one `.keras` file to `path` in one step, with its folders, and return its path.

        Its net takes raw RGB and gives calibrated probabilities, with `keras.models.load_model` alone too. Classes,
        preprocessing, temperature and provenance are in the file's member `leukemia_dl.json`.

        Raises:
            SettingsError: If the path does not end in .keras, or the net is an exported one.
        """
        path = Path(path)
        if path.suffix != ".keras" or isinstance(self.model, ExportedNet):
            raise SettingsError(f"A Keras net is saved as a .keras file. Received: {self.model.name}, {str(path)!r}.")
        text = json.dumps(self._settings(), indent=1)
        net = self.model.head if isinstance(self.model, EncodedNet) else self.model
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / path.name  # Keras writes into files only whose names end in .keras
            with_probabilities(net, self._probable, self.temperature).save(file)
            with zipfile.ZipFile(file, "a") as archive:
                archive.writestr(SETTINGS_MEMBER, text)
            write_file(path, file.read_bytes())
        return path

    def export(self, path: str | Path, form: str | None = None) -> Path:
        """Write the net for a program without Keras, from raw RGB to calibrated probabilities, and return its path.

        A file `path`.json beside it holds classes, preprocessing and provenance; `load_classifier` reads both. Before
        they are written, the probabilities of 64 images of noise are compared with those of this net.

        Args:
            path: A file that ends in .onnx, .xml (OpenVINO, .bin beside it) or .tflite, or a folder (SavedModel).
            form: "onnx", "openvino", "litert" or "saved_model"; None to choose by the ending.

        Raises:
            SettingsError: If the ending is another one, a package is missing (extra `export`), or an encoder that is
                not of Keras computes the features.
            DataError: If a probability differs by more than 1e-4.
        """
        if isinstance(self.model, EncodedNet):
            raise SettingsError(f"{self.model.spec.name} computes features outside Keras: it cannot be exported.")
        net = with_probabilities(self.model, self._probable, self.temperature)
        return export_net(net, self._settings(), path, form)

    def push_to_hub(
        self, repo: str, *, card: str | None = None, private: bool = True, token: str | None = None,
        message: str = "Upload a net of leukemia_dl",
    ) -> str:  # fmt: skip
        """Upload `model.keras` and a model card to the Hugging Face Hub in one commit, and return its address.

        `load_classifier("hf://owner/name")` loads it. The file holds what `save` writes: no images and no patients.

        Args:
            repo: "owner/name"; it is created if it is not there.
            card: Markdown, such as `reporting.model_card(store, trial)`; None for a short card of this classifier.
            private: Whether a new repository is private; an existing public one then is refused.
            token: Of an account that may write; None for that of `hf auth login`.
            message: Of the commit.

        Raises:
            SettingsError: For an exported net, a wrong name, or if huggingface_hub is missing (extra `hub`).
            DataError: If the hub refuses it, or cannot be reached.
        """
        return push(self, repo, card, private, token, message)

    def _settings(self) -> dict[str, Any]:
        settings = {"format": FORMAT, "class_names": list(self.class_names), "pipeline": self.pipeline.to_dict()}
        settings |= {"provenance": dict(self.provenance), "temperature": self.temperature}
        if isinstance(self.model, EncodedNet):
            spec = self.model.spec
            settings["encoder"] = {"name": spec.name, "identity": encoder_identity(spec)}
        return settings

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
            raise SettingsError(f"The net takes {size} x {size} pixels. {self.pipeline!r} gives {pixels.shape}.")
        return pixels, appearance_of(image), ""

    def _probabilities(self, pixels: Any, batch_size: int, calibrated: bool, tta: bool) -> NDArray[np.float64]:
        predict = logits_over_symmetries if tta else predict_logits
        values = predict(self.model, pixels, batch_size)
        if values.shape[-1] == 1:
            values = np.concatenate([1 - values if self._probable else np.zeros_like(values), values], axis=-1)
        if self._probable:
            values = np.log(np.maximum(values, np.finfo(np.float64).tiny))
        result = softmax(values / (self.temperature if calibrated else 1.0))
        if not np.isfinite(result).all():
            raise DataError("The net gives probabilities that are no numbers: its weights are damaged.")
        return result.mean(axis=0) if tta else result


def predict_logits(model: Any, images: Any, batch_size: int) -> NDArray[np.float64]:
    """Return logits (n, classes), float64, of raw pixels (n, height, width, 3)."""
    return predict_in_batches(model, images, batch_size).astype(np.float64)


def predict_in_batches(model: Any, inputs: Any, batch_size: int) -> NDArray[np.float32]:
    """Return the outputs of a model for inputs (n, ...): (n, outputs), float32."""
    result = np.empty((len(inputs), int(model.output_shape[-1])), np.float32)
    for start in range(0, len(inputs), batch_size):
        batch = inputs[start : start + batch_size]
        count = len(batch)
        if count < batch_size:  # filled up, since another shape would be compiled anew
            batch = np.concatenate([batch, np.repeat(batch[-1:], batch_size - count, axis=0)])
        # Pixels go to the device as bytes, a quarter of their size as float32.
        result[start : start + count] = np.asarray(model.predict_on_batch(np.ascontiguousarray(batch)))[:count]
    return result


def logits_over_symmetries(model: Any, images: Any, batch_size: int) -> NDArray[np.float64]:
    """Return the logits of each image's eight forms, turned and then also mirrored: (8, n, classes)."""
    pixels = np.asarray(images)
    forms = [np.rot90(pixels, turns, axes=(1, 2))[:, :, ::step] for step in (1, -1) for turns in range(4)]
    return np.stack([predict_logits(model, form, batch_size) for form in forms])


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities (..., classes) that sum to one over the classes."""
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True))


def _gives_probabilities(model: Any) -> bool:
    """Return whether outputs for random images are probabilities; never for a last layer without activation."""
    if isinstance(model, (EncodedNet, ExportedNet)):
        return False
    import keras

    last = model
    while getattr(last, "layers", None):
        last = getattr(last, "operations", last.layers)[-1]
    if isinstance(last, keras.layers.Dense) and last.activation is keras.activations.linear:
        return False
    images = np.random.default_rng(0).integers(0, 256, (2, *model.input_shape[1:])).astype(np.float32)
    values = np.asarray(keras.ops.convert_to_numpy(model(images, training=False)), np.float64)
    sums = values.sum(axis=-1)
    bounded = getattr(last, "activation", None) in (keras.activations.softmax, keras.activations.sigmoid)
    if bounded and values.shape[-1] > 1 and (np.abs(sums - 1) > 0.01).any():
        raise SettingsError(f"The outputs of the net must be logits, or probabilities that sum to 1, not {values[0]}.")
    return bool((values >= 0).all() and ((sums <= 1) if values.shape[-1] == 1 else (np.abs(sums - 1) <= 0.01)).all())


def _sources(images: Any) -> tuple[str, list[Any], list[Any]]:
    """Return the name of the first column of predictions, its values, and files, functions or arrays to read."""
    if hasattr(images, "class_names") and hasattr(images, "decode"):
        return "sample", list(images.table["sample"]), [partial(images.decode, row) for row in range(len(images))]
    single = isinstance(images, (str, Path)) or (isinstance(images, np.ndarray) and images.ndim == 3)
    items = [images] if single else list(images)
    if items and all(isinstance(item, np.ndarray) for item in items):
        return "image", list(range(len(items))), items
    if not all(isinstance(item, (str, Path)) for item in items):
        raise SettingsError(f"Pass paths, a Dataset or uint8 arrays, no mixture. Received: {type(images).__name__}.")
    files = list[Path]()
    for path in map(Path, items):
        found = [path / name for name in image_files(path)] if path.is_dir() else [path]
        if not found:
            raise DataError(f"The folder {path} holds no images.")
        files += found
    return "path", [os.path.abspath(file) for file in files], files  # noqa: PTH100 - as in `Dataset.table`
