"""Encoders that are no Keras nets: a function from images to features, on which only heads are trained."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.atomic import sha256_of_file
from leukemia_dl.errors import PluginError, WeightsError

Encode = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """A frozen encoder that can enter a benchmark, of PyTorch, ONNX or anything else; recipes train a head on it.

    Attributes:
        name: Unique, lower case, as in `Benchmark(backbones=[name])`.
        load: Called without arguments, once for trials in a row; returns `encode(images)`, from RGB as uint8
            (n, image_size, image_size, 3) to float32 features (n, d), equal for equal images. It scales them itself.
        image_size: Side of its images in pixels.
        weights: File with its weights, whose SHA-256 is part of a trial's identity; None if there is none.
        version: Of the weights or the code, also part of the identity.
        parameters: Number of its weights; None if unknown.
        title: Name as in the literature, with the `licence` of code and weights, and a `reference`, paper or page.

    Raises:
        PluginError: On creation, if a field could not be used; it names the field.
    """

    name: str
    load: Callable[[], Encode]
    image_size: int
    weights: str | Path | None = None
    version: str = ""
    parameters: int | None = None
    title: str = ""
    licence: str = ""
    reference: str = ""

    def __post_init__(self) -> None:
        rules = {
            "name": (re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", str(self.name)), "lower case letters, digits, _ - ."),
            "load": (callable(self.load), "a function that returns encode(images) -> features"),
            "image_size": (isinstance(self.image_size, int) and self.image_size > 0, "a number of pixels"),
        }
        for name, (fits, allowed) in rules.items():
            if not fits:
                raise PluginError(f"{name} must be {allowed}. Received: {name}={getattr(self, name)!r}.")

    @property
    def native_size(self) -> int:
        """Side of its images in pixels, the only one that it takes."""
        return self.image_size

    min_size = native_size

    @property
    def identity(self) -> str:
        """Version and SHA-256 of the weights as they are now, else "own"; WeightsError if the file is not there."""
        parts = [self.version]
        if self.weights is not None:
            path = Path(self.weights).expanduser()
            if not path.is_file():
                raise WeightsError(f"The weights of {self.name} are not there: {path} is no file.")
            parts.append(f"sha256:{_sha256(path, path.stat().st_size, path.stat().st_mtime_ns)}")
        return " ".join(filter(None, parts)) or "own"


@dataclass(frozen=True, eq=False)
class EncodedNet:
    """A loaded encoder, and a trained `head` on it or None, with the methods of a Keras model that predictions use."""

    spec: EncoderSpec
    encode: Encode
    width: int  # of the features
    head: Any = None  # keras.Model from features to logits

    def __post_init__(self) -> None:
        size = self.spec.image_size
        shape = (None, self.width) if self.head is None else self.head.output_shape
        vars(self).update(name=self.spec.name, input_shape=(None, size, size, 3), output_shape=shape)

    def predict_on_batch(self, images: NDArray[np.uint8]) -> Any:
        """Return features (n, width) or logits (n, classes); PluginError if the encoder gives no features."""
        features = _checked(self.spec, self.encode(images), (len(images), self.width))
        return features if self.head is None else self.head.predict_on_batch(features)

    def count_params(self) -> int | None:
        """Return the number of weights; None if the encoder's is unknown."""
        return None if self.spec.parameters is None else int(self.head.count_params()) + self.spec.parameters


@lru_cache  # for a file of this size and time of change
def _sha256(path: Path, *_: int) -> str:
    return sha256_of_file(path)


def load_encoder(spec: EncoderSpec) -> EncodedNet:
    """Return an encoder; the last one is kept. PluginError if it gives no features, WeightsError without its file."""
    return _loaded(spec, spec.identity)


@lru_cache(maxsize=1)  # for this spec with these weights
def _loaded(spec: EncoderSpec, _: str) -> EncodedNet:
    shape = (2, spec.image_size, spec.image_size, 3)
    try:
        encode = spec.load()
        found = encode(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    except Exception as error:
        raise PluginError(f"The encoder {spec.name!r} raised {type(error).__name__}: {error}") from error
    width = found.shape[1] if isinstance(found, np.ndarray) and found.ndim == 2 else 0
    _checked(spec, found, (2, width))
    return EncodedNet(spec, encode, width)


def _checked(spec: EncoderSpec, features: Any, shape: tuple[int, int]) -> NDArray[np.float32]:
    is_right = isinstance(features, np.ndarray) and features.dtype == np.float32 and features.shape == shape
    if not is_right or not shape[1]:
        received = f"{getattr(features, 'dtype', type(features).__name__)} {getattr(features, 'shape', '')}".strip()
        wanted = f"({shape[0]}, {shape[1] or 'd'})"
        raise PluginError(f"The encoder {spec.name!r} must return float32 features {wanted}. Received: {received}.")
    if bad := int((~np.isfinite(features)).any(axis=1).sum()):
        raise PluginError(f"The encoder {spec.name!r} gave NaN or infinite features for {bad} of {shape[0]} images.")
    return np.asarray(features)
