"""BackboneSpec: the record of a backbone. Data only, so that listing backbones imports no keras."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from leukemia_dl.errors import PluginError

__all__ = ["BackboneSpec", "Scaling"]

Scaling = Literal["caffe", "tf", "unit", "none"]


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """A convolutional backbone that can enter a benchmark.

    Attributes:
        name: Unique, lower case, as in `Benchmark(backbones=[name])`.
        build: `build(inputs, weights) -> features`. `inputs` is a symbolic Keras tensor of shape
            (batch, size, size, 3), float32, already scaled as `scaling` says; `weights` is None or one of the names
            in `weights` below; the result is a feature map (batch, height, width, channels). It must be made of
            layers called on `inputs` (no nested model), and import keras inside.
        scaling: The inputs that the weights expect, which the library makes of RGB in 0..255: "caffe" (BGR, ImageNet
            mean subtracted), "tf" (-1..1), "unit" (0..1) or "none".
        native_size: Side in pixels that the architecture was published with.
        min_size: Smallest side in pixels that it accepts.
        weights: Names of pretrained weights that `build` can fetch, such as ("imagenet",).
        parameters: Number of weights without head, trainable or not; None if unknown.
        title: Name as in the literature.
        licence: Of code and weights.
        reference: Paper or page.

    Raises:
        PluginError: On creation, if a field could not be used; it names the field.
    """

    name: str
    build: Callable[[Any, str | None], Any]
    scaling: Scaling
    native_size: int
    min_size: int
    weights: tuple[str, ...] = ()
    parameters: int | None = None
    title: str = ""
    licence: str = ""
    reference: str = ""

    def __post_init__(self) -> None:
        named = isinstance(self.name, str) and re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", self.name)
        words = not isinstance(self.weights, str) and all(isinstance(name, str) for name in self.weights)
        for field, allowed, fits in (
            ("name", "must be lower case letters, digits, '_', '-', '.'", named),
            ("build", "must be a function (inputs, weights) -> features", callable(self.build)),
            ("scaling", f"must be one of {get_args(Scaling)}", self.scaling in get_args(Scaling)),
            (
                "min_size",
                f"must hold 1 <= min_size <= native_size={self.native_size!r}",
                1 <= self.min_size <= self.native_size,
            ),
            ("weights", "must be a tuple of names", words),
        ):
            if not fits:
                raise PluginError(f"{field} {allowed}. Received: {field}={getattr(self, field)!r}.")
