"""Backbones from another package: a tiny net of our own, and further families that Keras ships, one line each."""

from leukemia_dl import BackboneSpec, hookimpl
from leukemia_dl.models import application


def build(inputs, weights):
    """Return a feature map of `inputs`, already scaled to 0..1. There are no `weights` to fetch."""
    from keras import layers  # here, not above: listing backbones imports no keras

    x = layers.Conv2D(16, 3, strides=2, activation="relu", name="tiny_1")(inputs)
    return layers.Conv2D(32, 3, strides=2, activation="relu", name="tiny_2")(x)


@hookimpl
def leukemia_dl_backbones():
    """Yield what this package provides."""
    yield BackboneSpec(
        name="tiny",
        build=build,
        scaling="unit",
        native_size=64,
        min_size=16,
        parameters=5_088,
        title="Tiny CNN",
        licence="MIT",
        reference="leukemia-dl-tiny",
    )
    imagenet = {"weights": ("imagenet",), "native_size": 224, "min_size": 32}
    yield BackboneSpec(name="mobilenet_v2", build=application("MobileNetV2"), scaling="tf", **imagenet)
    yield BackboneSpec(name="resnet101", build=application("ResNet101"), scaling="caffe", **imagenet)
