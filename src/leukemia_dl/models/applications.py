"""Builders for the architectures that Keras ships, one line each: `build=application("VGG16")`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["application"]


def application(name: str) -> Callable[[Any, str | None], Any]:
    """Return a builder for `keras.applications.<name>` without its top.

    Args:
        name: The constructor's name, such as "VGG16". It is looked up when the net is built.
    """

    def build(inputs: Any, weights: str | None) -> Any:
        import keras

        constructor = getattr(keras.applications, name)
        return constructor(include_top=False, weights=weights, input_tensor=inputs).output

    return build
