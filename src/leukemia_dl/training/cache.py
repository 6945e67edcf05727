"""Work that later fits use again: features of frozen backbones, and nets that are built and compiled."""

import gc
import hashlib
import inspect
import json
import logging
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.atomic import new_file
from leukemia_dl.datasets.cache import in_use, is_whole, make_room
from leukemia_dl.identity import digest, named_seed
from leukemia_dl.models.backbones import BackboneSpec, Spec, source_version

from leukemia_dl.models.build import (  # isort: skip
    Head, all_layers, batchnorm_layers, build_head, build_model, graphs, split_at_features, weights_identity,
)  # fmt: skip
from leukemia_dl.models.classifier import predict_in_batches
from leukemia_dl.models.embeddings import Embeddings
from leukemia_dl.models.encoders import EncodedNet, EncoderSpec, load_encoder
from leukemia_dl.plugins import DISTRIBUTION, installed_version
from leukemia_dl.training.backends import Device, as_numpy, assign
from leukemia_dl.training.batches import Images, Subset
from leukemia_dl.training.heads import neighbours_head
from leukemia_dl.training.recipe import Recipe

_HELD = 3  # arrays in memory: features of the training, validation and test images of one fit
_CHUNK = 1024
_log = logging.getLogger(__name__)
_Features = NDArray[np.float32]


class FeatureCache:
    """Features of images by frozen backbones, in a `folder` of `.npy` files, or in memory if it is None or unusable.

    The key of an array is the net with its weights, the pixels, the backend with its version, device, precision and
    threads, and the images per step. On a CPU an image's features do not depend on the images beside it.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._held: dict[str, _Features] = {}
        self._pixels: tuple[Any, list[Any]] = (lambda: None, [])  # the last images, by reference

    def read(self, extractor: Any, images: Any, device: Device, batch_size: int) -> Subset:
        """Return the features of `images`, float32 (n, width); of a `Subset`, those of its whole base are computed.

        `extractor` is a net from raw pixels (n, size, size, 3) to features on `device`, for `batch_size` images a step;
        None for `images` that are features.
        """
        whole = Subset.of(images, np.arange(len(images)))
        base = whole.base

        def compute() -> Iterator[_Features]:
            for start in range(0, len(base), batch_size):
                yield predict_in_batches(extractor, base[start : start + batch_size], batch_size)

        if extractor is None:  # they are features already
            return whole
        net = model_fingerprint(extractor, device)
        if net[0] is None:  # these features could be taken for those of another net
            return Subset(np.concatenate(list(compute())), whole.rows)
        if self._pixels[0]() is not base or base.flags.writeable:
            # What may still be written to is never remembered.
            self._pixels = ((lambda: None) if base.flags.writeable else weakref.ref(base), array_fingerprint(base))
        name = digest([*net, self._pixels[1], batch_size])
        found = self._held.pop(name, None)
        if found is None:
            shape = (len(base), int(extractor.output_shape[-1]))
            found = self._from_file(f"{extractor.name}-{name[:24]}.npy", shape, compute)
        self._held[name] = found
        if len(self._held) > _HELD:
            del self._held[next(iter(self._held))]
        return Subset(found, whole.rows)

    def _from_file(self, name: str, shape: tuple[int, int], compute: Callable[[], Iterator[_Features]]) -> _Features:
        """Return the features in a file, mapped into memory; it is written first, batch by batch, if it is absent."""
        try:
            if self.folder is not None:
                path = self.folder / name
                if not is_whole(path, shape, "<f4"):
                    make_room(path, 4 * shape[0] * shape[1])
                    with new_file(path) as file:
                        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                        np.lib.format.write_array_header_1_0(file, header)
                        file.writelines(batch.astype("<f4").tobytes() for batch in compute())
                in_use(path)
                return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
        except OSError as error:  # a full disk
            _log.warning("Features are held in memory. The file %s cannot be used: %s", path, error)
        return np.concatenate(list(compute()))


def array_fingerprint(*arrays: Any) -> list[Any]:
    """Return the shapes of arrays (n, ...) and the SHA-256 of their bytes, read in parts."""
    parts = (array[start : start + _CHUNK] for array in arrays for start in range(0, len(array), _CHUNK))
    return [_sha256(parts), *([len(array), *array[:1].shape[1:]] for array in arrays)]


def model_fingerprint(model: Any, device: Device) -> list[Any]:
    """Return the graph of a net or None, its weights, and the versions and hardware that its bits depend on.

    The graph is a text of the settings of the layers and the source of layers that are not Keras's own. It is None if a
    layer has no configuration, or its source may depend on more than its file: one of a notebook or in a function.
    """
    if isinstance(model, EncodedNet):
        encoder = [source_version(model.spec), model.spec.name, model.spec.image_size, model.spec.identity]
        return [*encoder, *([] if model.head is None else model_fingerprint(model.head, device))]
    versions = [installed_version(name) for name in (DISTRIBUTION, "keras", device.backend)]
    where = [device.backend, device.kind, device.name, device.dtype_policy, device.kind == "cpu" and device.threads]
    return [_graph(model), _sha256(map(as_numpy, model.weights)), *where, *versions]


def _graph(model: Any) -> str | None:
    parts = [*all_layers(model), *(operation for net in graphs(model) for operation in (net, *net.operations))]
    kinds = set(map(type, parts))
    foreign = sorted(kind.__module__ for kind in kinds if kind.__module__.partition(".")[0] != "keras")
    if "__main__" in foreign or any("<locals>" in kind.__qualname__ for kind in kinds):
        return None
    names = {part.name: f"#{number}" for number, part in enumerate(parts)}

    def renamed(entry: dict[str, Any]) -> dict[str, Any]:
        # Names depend on how many nets this process has built before, and a setting may be spelt as one of them.
        for key in {"name", "keras_history", "input_layers", "output_layers"} & set(entry):
            entry[key] = re.sub('"([^"]*)"', lambda text: names.get(text[1], text[1]), json.dumps(entry[key]))
        return entry

    try:
        config = json.loads(json.dumps(model.get_config()), object_hook=renamed)
        sources = [inspect.getsource(sys.modules[module]) for module in foreign]
    except Exception:  # a layer of a plugin may raise anything
        return None
    return json.dumps([config, *sources], sort_keys=True)


def _sha256(arrays: Iterable[Any]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


class ModelCache:
    """The net of the last fit, which the next fit of the same backbone and recipe uses again.

    Building, tracing and compiling may take longer than an epoch. A net that is used again has the same initial
    weights, to the bit, as a new one.
    """

    _key: Any = None
    _built: tuple[Any, Any, Any] = (None, None, None)  # the parts below before a fit
    model: Any = None  # from pixels to logits
    extractor: Any = None  # from pixels to features, with the layers of `model`, as `head` has; None without pixels
    head: Any = None  # from features to logits
    phases: dict[str, Any]  # compiled models of these, by the name of the phase
    weights: str | None = None  # identity of those that were loaded

    def clear(self) -> None:
        """Forget the net."""
        self._key = self.model = self.extractor = self.head = None
        self._built = (None, None, None)
        self.phases = {}
        gc.collect()

    def get(self, spec: Spec, recipe: Recipe, classes: int, seed: int, device: Device) -> Self:
        """Return the cache with an untrained net, initialised by the `seed`, of a backbone `spec`.

        `recipe` holds the settings, `classes` is the number of classes, and the net will be trained on `device`.
        """
        import keras

        # Nets that differ in anything that the compiled step depends on must have different keys.
        wanted, settings = recipe.weights_for(spec), recipe.to_dict() | {"name": ""}
        self.weights = weights_identity(spec, wanted)
        key = (spec, settings, self.weights, classes, device)
        # A backbone with loaded weights is not built again; a plugin may add random layers to a net that it fetches.
        loaded = not isinstance(spec, BackboneSpec)
        if isinstance(spec, BackboneSpec):
            ours = getattr(spec.build, "__module__", "").startswith("leukemia_dl.models.")
            loaded = recipe.weights is not None and (ours or recipe.weights not in spec.weights)
        if key != self._key:
            other_backbone = self._key is not None and self._key[0] != spec
            self.clear()  # first, since the memory may not hold two
            if other_backbone:
                keras.utils.clear_session(free_memory=True)
            self._built, self._key = _parts(spec, wanted, recipe, classes, seed, device), key
        elif loaded and not recipe.epochs:
            keras.utils.set_random_seed(named_seed(seed, "head"))
            assign(self._built[2].variables, keras.models.clone_model(self._built[2]).variables)
        else:
            assign(self._built[0].variables, _parts(spec, wanted, recipe, classes, seed, device)[0].variables)
        self.model, self.extractor, self.head = self._built
        return self

    def use_neighbours(self, features: Images, labels: NDArray[np.int64], classes: int) -> None:
        """Put a head of nearest neighbours in place of the one that can be trained.

        `features` (n, width) and `labels` (n,) are of the training images, of so many `classes`.
        """
        import keras

        of_keras = isinstance(self.extractor, keras.Model)
        inputs = self.extractor.output if of_keras else keras.Input(features[:1].shape[1:], name="features")
        output, set_weights = neighbours_head(inputs, features, labels, classes)
        self.head = keras.Model(inputs, output, name="head")
        if of_keras:
            self.model = keras.Model(self.extractor.input, output, name=self.extractor.name)
        else:
            self.model = self.head if self.extractor is None else replace(self.extractor, head=self.head)
        set_weights()


def _parts(
    spec: Spec, weights: str | None, recipe: Recipe, classes: int, seed: int, device: Device
) -> tuple[Any, Any, Any]:
    if isinstance(spec, BackboneSpec):
        model = _build(spec, weights, recipe, classes, seed, device)
        return (model, *split_at_features(model))
    extractor = load_encoder(spec) if isinstance(spec, EncoderSpec) else None
    width = spec.features.shape[1] if isinstance(spec, Embeddings) else load_encoder(spec).width
    head = build_head(width, classes, _head_of(recipe), named_seed(seed, "head"))
    return head if extractor is None else replace(extractor, head=head), extractor, head


def _head_of(recipe: Recipe) -> Head:
    return Head(kind=recipe.head, units=recipe.head_units, dropout=recipe.dropout, sigmoid=recipe.sigmoid)


def _build(spec: BackboneSpec, weights: str | None, recipe: Recipe, classes: int, seed: int, device: Device) -> Any:
    import keras

    head = _head_of(recipe)
    keras.utils.set_random_seed(named_seed(seed, "fit"))
    model = build_model(
        spec, int(recipe.image_size), classes, weights=weights, head=head,
        head_seed=named_seed(seed, "head"), scaling=None if recipe.scaling == "backbone" else recipe.scaling,
        dtype_policy=device.dtype_policy,
    )  # fmt: skip
    if recipe.weights is not None:
        # The head is trained on features with these statistics and would not fit features with others.
        for layer in batchnorm_layers(model):
            layer.trainable = False
    return model
