"""The nets of `keras.applications`: their features are Keras's own, by weights from a file or fetched by Keras."""

import importlib

import numpy as np
import pytest

import leukemia_dl as ldl
from leukemia_dl.models.build import build_model, split_at_features

keras = pytest.importorskip("keras")
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype("float32")
NETS = {
    "efficientnet_v2_b0": ("EfficientNetV2B0", "efficientnet_v2"),
    "convnext_tiny": ("ConvNeXtTiny", "convnext"),
    "densenet121": ("DenseNet121", "densenet"),
    "mobilenet_v3_small": ("MobileNetV3Small", "mobilenet_v3"),
}


def shaken(model):
    """Return the model with other statistics of BatchNorm than 0 and 1, under which features keep their scale."""
    generator = np.random.default_rng(1)
    model.set_weights([w + generator.normal(scale=0.05, size=w.shape).astype(w.dtype) for w in model.get_weights()])
    for layer in model.layers:
        if hasattr(layer, "moving_variance"):
            layer.moving_variance.assign(np.abs(np.asarray(layer.moving_variance)) + 0.1)
    return model


@pytest.mark.parametrize("name", NETS)
def test_pooled_features_equal_keras_own(name):
    """With Keras's own scaling inside or before the net, and its own average pooling."""
    constructor, module = NETS[name]
    keras.utils.set_random_seed(0)
    theirs = getattr(keras.applications, constructor)(
        include_top=False, weights=None, input_shape=(64, 64, 3), pooling="avg"
    )
    shaken(theirs)
    module = importlib.import_module(f"keras.applications.{module}")
    expected = np.asarray(theirs.predict_on_batch(module.preprocess_input(PIXELS.copy())))
    spec = ldl.get_backbone(name)
    mine, _ = split_at_features(build_model(spec, 64, 2))
    assert mine.count_params() == theirs.count_params() == spec.parameters
    mine.set_weights(theirs.get_weights())
    found = np.asarray(mine.predict_on_batch(PIXELS))
    assert expected.std() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_efficientnet_scales_alike_whether_keras_or_the_user_brings_the_file(tmp_path, monkeypatch):
    """Keras divides by the root of the deviation for weights that it fetches, and not for the same ones in a file."""
    from keras.src.utils import file_utils

    keras.utils.set_random_seed(0)
    net = {"include_top": False, "input_shape": (64, 64, 3), "pooling": "avg"}
    donor = shaken(keras.applications.EfficientNetB0(weights=None, **net))
    normalization = next(layer for layer in donor.layers if isinstance(layer, keras.layers.Normalization))
    normalization.set_weights([np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]), np.array(0)])
    file = tmp_path / "fetched.weights.h5"
    donor.save_weights(file)
    monkeypatch.setattr(file_utils, "get_file", lambda *values, **settings: str(file))
    expected = np.asarray(keras.applications.EfficientNetB0(weights="imagenet", **net).predict_on_batch(PIXELS))
    spec = ldl.get_backbone("efficientnet_b0")
    assert donor.count_params() == spec.parameters
    assert expected.std() > 1e-3
    for weights in ("imagenet", file):
        mine, _ = split_at_features(build_model(spec, 64, 2, weights=weights))
        found = np.asarray(mine.predict_on_batch(PIXELS))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    # What the stem gets from a file of weights is ImageNet's mean and standard deviation.
    scaled = keras.Model(mine.input, mine.get_layer("stem_conv_pad").input)
    torch = keras.applications.imagenet_utils.preprocess_input(PIXELS.copy(), mode="torch")
    np.testing.assert_allclose(np.asarray(scaled(PIXELS)), torch, atol=1e-4)
