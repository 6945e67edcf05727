"""Backbones of `keras.applications`: `application("NAME")` builds any of them, four are provided as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from leukemia_dl.models.spec import BackboneSpec, Scaling
from leukemia_dl.plugins import hookimpl

__all__ = ["application"]

_CODE = "Apache-2.0 (code)"
# Name, name in keras.applications, scaling, native and smallest side in pixels, parameters, licence, reference.
_NETS: tuple[tuple[str, str, Scaling, int, int, int, str, str], ...] = (
    ("vgg16", "VGG16", "caffe", 224, 32, 14_714_688, f"{_CODE}; CC BY 4.0 (weights)",
     "Simonyan and Zisserman 2015, arXiv:1409.1556"),
    ("resnet50", "ResNet50", "caffe", 224, 32, 23_587_712, f"{_CODE}; MIT (weights)",
     "He et al. 2016, arXiv:1512.03385"),
    ("inception_v3", "InceptionV3", "tf", 299, 75, 21_802_784, "Apache-2.0 (code and weights)",
     "Szegedy et al. 2016, arXiv:1512.00567"),
    ("xception", "Xception", "tf", 299, 71, 20_861_480, f"{_CODE}; MIT (weights)", "Chollet 2017, arXiv:1610.02357"),
)  # fmt: skip


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


@hookimpl
def leukemia_dl_backbones() -> Iterable[BackboneSpec]:
    """Provide a backbone per net of the table."""
    for name, title, scaling, native_size, min_size, parameters, licence, reference in _NETS:
        yield BackboneSpec(
            name=name, build=application(title), scaling=scaling, native_size=native_size, min_size=min_size,
            weights=("imagenet",), parameters=parameters, title=title, licence=licence, reference=reference,
        )  # fmt: skip
