"""The built-in backbones: four nets of `keras.applications`, `cnn`, and the CNN of the published comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from leukemia_dl.models.registry import BackboneSpec
from leukemia_dl.plugins import hookimpl

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


def build_cnn(inputs: Any, weights: str | None) -> Any:
    """Return the feature map (batch, size / 16, size / 16, 192) of `cnn`, made to be trained on few cells.

    Residual blocks of two 3x3 convolutions with batch normalisation (He et al. 2016) in four stages that halve the
    side. Global pooling behind them lets the head use the area of a cell on black from the first step on.
    """
    x = _convolution(inputs, 32, strides=2, name="stem")
    for stage, width in enumerate((32, 64, 128, 192), start=1):
        x = _residual_block(x, width, strides=1 if stage == 1 else 2, name=f"stage{stage}")
    return x


def build_published_cnn(inputs: Any, weights: str | None) -> Any:
    """Return the feature map of `published_cnn`, (batch, 20, 20, 32) for images of 180 pixels."""
    from keras import layers

    x = inputs
    for stage in (1, 2, 3):
        x = layers.Conv2D(32, 3, activation="relu", name=f"stage{stage}_conv")(x)
        x = layers.MaxPooling2D(2, name=f"stage{stage}_pool")(x)
    return x


def _residual_block(x: Any, width: int, strides: int, name: str) -> Any:
    from keras import layers

    shortcut = x
    if strides != 1:  # average first: a strided 1x1 convolution would throw three pixels of four away
        shortcut = layers.AveragePooling2D(strides, padding="same", name=f"{name}_shortcut_pool")(shortcut)
    if strides != 1 or x.shape[-1] != width:
        shortcut = _convolution(shortcut, width, kernel=1, activation=False, name=f"{name}_shortcut")
    y = _convolution(x, width, strides=strides, name=f"{name}_1")
    y = _convolution(y, width, activation=False, name=f"{name}_2")
    return layers.Activation("relu", name=f"{name}_out")(layers.Add(name=f"{name}_add")([shortcut, y]))


def _convolution(x: Any, filters: int, kernel: int = 3, strides: int = 1, activation: bool = True, *, name: str) -> Any:
    from keras import layers

    x = layers.Conv2D(
        filters, kernel, strides, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv"
    )(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
    return layers.Activation("relu", name=f"{name}_relu")(x) if activation else x


# Name, title, builder, scaling, native and smallest side in pixels, parameters, weights, licence, reference.
_NETS: tuple[tuple[Any, ...], ...] = (
    ("vgg16", "VGG16", application("VGG16"), "caffe", 224, 32, 14_714_688, ("imagenet",),
     "Apache-2.0 (code); CC BY 4.0 (weights)", "Simonyan and Zisserman 2015, arXiv:1409.1556"),
    ("resnet50", "ResNet50", application("ResNet50"), "caffe", 224, 32, 23_587_712, ("imagenet",),
     "Apache-2.0 (code); MIT (weights)", "He et al. 2016, arXiv:1512.03385"),
    ("inception_v3", "InceptionV3", application("InceptionV3"), "tf", 299, 75, 21_802_784, ("imagenet",),
     "Apache-2.0 (code and weights)", "Szegedy et al. 2016, arXiv:1512.00567"),
    ("xception", "Xception", application("Xception"), "tf", 299, 71, 20_861_480, ("imagenet",),
     "Apache-2.0 (code); MIT (weights)", "Chollet 2017, arXiv:1610.02357"),
    ("cnn", "Small residual CNN", build_cnn, "tf", 128, 32, 888_544, (), "MIT", "leukemia_dl"),
    ("published_cnn", "Published CNN", build_published_cnn, "unit", 180, 22, 19_392, (), "MIT",
     "the net of the published comparison that the recipe published_v1 repeats"),
)  # fmt: skip


@hookimpl
def leukemia_dl_backbones() -> Iterable[BackboneSpec]:
    """Provide a backbone per net of the table."""
    for name, title, build, scaling, native_size, min_size, parameters, weights, licence, reference in _NETS:
        yield BackboneSpec(
            name=name, build=build, scaling=scaling, native_size=native_size, min_size=min_size, weights=weights,
            parameters=parameters, title=title, licence=licence, reference=reference,
        )  # fmt: skip
