"""Work that later fits use again: features of frozen backbones, and nets that are built and compiled.

A file of features is a `.npy` array, float32 (n * forms, width), followed by the 32 bytes of its SHA-256.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import inspect
import json
import logging
import os
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.atomic import new_file
from leukemia_dl.datasets.cache import in_use, make_room
from leukemia_dl.identity import digest, named_seed
from leukemia_dl.models.build import Head, all_layers, build_model, split_at_features, weights_identity
from leukemia_dl.models.classifier import predict_in_batches, symmetric_form
from leukemia_dl.models.registry import BackboneSpec
from leukemia_dl.plugins import DISTRIBUTION, installed_version
from leukemia_dl.training.backends import Device, as_numpy, assign
from leukemia_dl.training.batches import Subset
from leukemia_dl.training.batchnorm import batchnorm_layers
from leukemia_dl.training.recipe import Recipe

__all__ = ["BuiltModel", "FeatureCache", "ModelCache", "array_fingerprint", "every_form", "model_fingerprint"]

_HELD = 3  # arrays in memory: features of the training, validation and test images of one fit
_CHUNK = 1024
_log = logging.getLogger(__name__)
_Features = NDArray[np.float32]


class FeatureCache:
    """Features of images by frozen backbones, which later fits read instead of computing them again.

    The key of an array is the net with its weights, the pixels, the backend with its version, device, precision and
    threads, and the images per step. On a CPU an image's features do not depend on the images beside it.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        """Make a cache in a `folder` of `.npy` files, or in memory if it is None or cannot be written."""
        self.folder = None if folder is None else Path(folder)
        self._held: dict[str, _Features] = {}
        self._pixels: tuple[Any, list[Any]] = (lambda: None, [])  # the last read-only images, by reference

    def read(self, extractor: Any, images: Any, device: Device, batch_size: int, forms: int = 1) -> Subset:
        """Return the features of images, float32 (n * forms, width); the forms of an image are next to one another.

        Of a `Subset`, the features of its whole base are computed, so that they serve other folds too.

        Args:
            extractor: `keras.Model`, raw pixels (n, size, size, 3) to features (n, width).
            images: uint8 array or `Subset`.
            device: Device of the extractor.
            batch_size: Images per step.
            forms: 8 for the symmetries of each image, see `symmetric_form`; 1 for images as they are.
        """
        whole = Subset.of(images, np.arange(len(images)))
        rows, compute = every_form(whole.rows, forms), partial(_computed, extractor, whole.base, batch_size, forms)
        net = model_fingerprint(extractor, device)
        if net[0] is None:  # features of this net could be taken for those of another one
            return Subset(np.concatenate(list(compute())), rows)
        name = digest([*net, self._fingerprint(whole.base), batch_size, forms])
        found = self._held.pop(name, None)
        if found is None:
            shape = (len(whole.base) * forms, int(extractor.output_shape[-1]))
            found = self._from_file(f"{extractor.name}-{name[:24]}.npy", shape, compute)
        self._held[name] = found
        if len(self._held) > _HELD:
            del self._held[next(iter(self._held))]
        return Subset(found, rows)

    def _fingerprint(self, base: Any) -> list[Any]:
        if isinstance(base, np.ndarray) and base.flags.writeable:
            return array_fingerprint(base)
        if self._pixels[0]() is not base:
            self._pixels = (weakref.ref(base), array_fingerprint(base))
        return self._pixels[1]

    def _from_file(self, name: str, shape: tuple[int, int], compute: Callable[[], Iterator[_Features]]) -> _Features:
        """Return the features in a file, which is written first if it is absent or damaged."""
        found = None
        if self.folder is not None:
            path = self.folder / name
            try:
                found = _mapped(path, shape)
                if found is None:
                    _write(path, shape, compute())
                    found = _mapped(path, shape)
            except OSError as error:
                _log.warning("Features are held in memory: %s cannot be written: %s", path, error.strerror or error)
        return np.concatenate(list(compute())) if found is None else found


def every_form(rows: NDArray[np.int64], forms: int) -> NDArray[np.int64]:
    """Return the row numbers of all forms of some images in an array of features."""
    return (rows[:, None] * forms + np.arange(forms)).ravel()


def _computed(extractor: Any, images: Any, batch_size: int, forms: int) -> Iterator[_Features]:
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        each = [predict_in_batches(extractor, symmetric_form(batch, form), batch_size) for form in range(forms)]
        yield np.stack(each, axis=1).reshape(len(batch) * forms, -1)


def _write(path: Path, shape: tuple[int, int], batches: Iterable[_Features]) -> None:
    make_room(path, 4 * shape[0] * shape[1])
    known = hashlib.sha256()
    with new_file(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for batch in batches:
            content = batch.astype("<f4").tobytes()
            known.update(content)
            file.write(content)
        file.write(known.digest())


def _mapped(path: Path, shape: tuple[int, int]) -> _Features | None:
    """Return the array of a file, mapped into memory; None if there is no file or it is damaged."""
    if not path.exists():
        return None
    try:
        found: _Features = np.load(path, mmap_mode="r", allow_pickle=False)
        with path.open("rb") as file:
            file.seek(-hashlib.sha256().digest_size, os.SEEK_END)
            known = file.read()
        if found.dtype == np.float32 and found.shape == shape and hashlib.sha256(found.data).digest() == known:
            in_use(path)
            return found
    except Exception as error:  # numpy's reader of headers raises about anything
        _log.debug("%s: %s", path, error)
    _log.warning("The features in %s are damaged and are computed again", path)
    return None


def array_fingerprint(*arrays: Any) -> list[Any]:
    """Return shape and SHA-256 of arrays (n, ...) of equal length, read in parts."""
    parts = (array[start : start + _CHUNK] for array in arrays for start in range(0, len(array), _CHUNK))
    return [*arrays[0].shape, _sha256(parts)]


def model_fingerprint(model: Any, device: Device) -> list[Any]:
    """Return the graph of a net as a text or None, its weights, and the versions and hardware that its bits depend on.

    The graph holds the settings of the layers and the source of layers that are not Keras's own. It is None if a layer
    has no configuration, or its source may depend on more than its file: one of a notebook or inside a function.
    """
    versions = [installed_version(name) for name in (DISTRIBUTION, "keras", device.backend)]
    threads = device.threads if device.kind == "cpu" else 0
    where = [device.backend, device.kind, device.name, device.dtype_policy, *versions, threads]
    return [_graph(model), _sha256(map(as_numpy, model.weights)), *where]


def _graph(model: Any) -> str | None:
    kinds = {type(operation) for operation in (*model.operations, *all_layers(model))}
    foreign = sorted(kind.__module__ for kind in kinds if kind.__module__.partition(".")[0] != "keras")
    if "__main__" in foreign or any("<locals>" in kind.__qualname__ for kind in kinds):
        return None
    # Names depend on how many nets this process has built before.
    names = {operation.name: f"#{number}" for number, operation in enumerate(model.operations)} | {model.name: "#"}
    try:
        config = json.dumps(model.get_config(), sort_keys=True)
        sources = [inspect.getsource(sys.modules[module]) for module in foreign]
    except Exception:  # a layer of a plugin may raise anything
        return None
    return json.dumps([re.sub('"([^"]*)"', lambda text: names.get(text[1], text[1]), config), *sources])


def _sha256(arrays: Iterable[Any]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


@dataclass(eq=False)
class BuiltModel:
    """A net, its two parts, which share its layers, and the models that were compiled of it."""

    model: Any  # from pixels to logits
    extractor: Any  # from pixels to features
    head: Any  # from features to logits
    phases: dict[str, Any] = field(default_factory=dict)  # compiled, by the name of the phase


class ModelCache:
    """The model of the last fit, which the next fit of the same backbone and recipe uses again.

    Building, tracing and compiling may take longer than an epoch. A model that is used again has the same initial
    weights, to the bit, as a new one.
    """

    def __init__(self) -> None:
        """Make an empty cache."""
        self._key: Any = None
        self._built: BuiltModel | None = None

    def clear(self) -> None:
        """Forget the model."""
        if self._built is not None:
            self._key = self._built = None
            gc.collect()

    def get(self, spec: BackboneSpec, recipe: Recipe, classes: int, seed: int, device: Device) -> BuiltModel:
        """Return an untrained model, initialised by the `seed`; the model of an earlier call may be used for it.

        Args:
            spec: The backbone.
            recipe: The settings.
            classes: Number of classes.
            seed: Seed of the weights.
            device: Where it will be trained.

        Raises:
            SettingsError, WeightsError, PluginError: As `build_model`.
        """
        import keras

        # Models that differ in anything that the compiled step depends on must have different keys.
        weights = weights_identity(spec, recipe.weights_for(spec))
        key = (spec, dataclasses.replace(recipe, callbacks=None, name="any"), weights, classes, device)
        if self._built is None or key != self._key:
            other_backbone = self._key is not None and self._key[0] != spec
            self.clear()  # first, since the memory may not hold two
            if other_backbone:
                keras.utils.clear_session(free_memory=True)
            model = _build(spec, recipe, classes, seed, device)
            self._built, self._key = BuiltModel(model, *split_at_features(model)), key
        elif not recipe.epochs and _has_no_random_backbone_weights(spec, recipe):
            keras.utils.set_random_seed(named_seed(seed, "head"))
            assign(self._built.head.variables, keras.models.clone_model(self._built.head).variables)
        else:
            assign(self._built.model.variables, _build(spec, recipe, classes, seed, device).variables)
        return self._built


def _has_no_random_backbone_weights(spec: BackboneSpec, recipe: Recipe) -> bool:
    # A plugin may add random layers to a net that it fetches.
    ours = getattr(spec.build, "__module__", "").startswith("leukemia_dl.models.")
    return recipe.weights is not None and (ours or recipe.weights not in spec.weights)


def _build(spec: BackboneSpec, recipe: Recipe, classes: int, seed: int, device: Device) -> Any:
    import keras

    keras.utils.set_random_seed(named_seed(seed, "fit"))
    head = Head(kind=recipe.head, units=recipe.head_units, dropout=recipe.dropout, sigmoid=recipe.sigmoid)
    model = build_model(
        spec, int(recipe.image_size), classes, weights=recipe.weights_for(spec), head=head,
        head_seed=named_seed(seed, "head"), scaling=None if recipe.scaling == "backbone" else recipe.scaling,
        dtype_policy=device.dtype_policy,
    )  # fmt: skip
    if recipe.weights is not None:
        # The head is trained on features with these statistics and would not fit features with others.
        for layer in batchnorm_layers(model):
            layer.trainable = False
    return model
