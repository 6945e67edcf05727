"""What is built: scaling equal to Keras's own, flat graphs, declared parameters, weights in and out."""

import dataclasses

import numpy as np
import pytest

import leukemia_dl as ldl
from leukemia_dl.errors import PluginError, SettingsError, WeightsError
from leukemia_dl.models.build import build_model, most_readers, weights_identity
from leukemia_dl.models.scaling import scale

keras = pytest.importorskip("keras")
NAMES = ["cnn", "inception_v3", "resnet50", "vgg16", "xception"]
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 80, 80, 3)).astype("float32")


@pytest.mark.parametrize(
    ("name", "module"),
    [("vgg16", "vgg16"), ("resnet50", "resnet50"), ("inception_v3", "inception_v3"), ("xception", "xception")],
)
def test_scaling_equals_keras_preprocess_input(name, module):
    inputs = keras.Input((80, 80, 3))
    model = keras.Model(inputs, scale(inputs, ldl.get_backbone(name).scaling))
    expected = getattr(keras.applications, module).preprocess_input(PIXELS.copy())
    np.testing.assert_allclose(np.asarray(model(PIXELS)), expected, atol=1e-4)


def test_other_scalings():
    inputs = keras.Input((80, 80, 3))
    np.testing.assert_allclose(np.asarray(keras.Model(inputs, scale(inputs, "unit"))(PIXELS)), PIXELS / 255, atol=1e-6)
    assert scale(inputs, "none") is inputs


@pytest.mark.parametrize("name", NAMES)
def test_built_flat_with_the_declared_parameters(name):
    spec = ldl.get_backbone(name)
    model = build_model(spec, 80, 3)
    assert model.input_shape == (None, 80, 80, 3)
    assert model.output_shape == (None, 3)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    head = model.get_layer("logits").count_params()
    assert model.count_params() - head == spec.parameters
    assert model.get_layer("logits").dtype_policy.name == "float32"


@pytest.mark.parametrize("name", NAMES)
def test_the_declared_minimum_is_the_real_one(name):
    spec = ldl.get_backbone(name)
    assert build_model(spec, spec.min_size, 2).output_shape == (None, 2)
    with pytest.raises(SettingsError, match=rf"{name} needs images of at least {spec.min_size} x"):
        build_model(spec, spec.min_size - 1, 2)


def test_the_global_dtype_policy_is_left_alone():
    before = keras.config.dtype_policy().name
    model = build_model(ldl.get_backbone("cnn"), 32, 2, dtype_policy="mixed_bfloat16")
    assert keras.config.dtype_policy().name == before
    assert model.get_layer("stem_conv").compute_dtype == "bfloat16"
    assert model.get_layer("logits").compute_dtype == "float32"
    assert np.asarray(model(np.zeros((1, 32, 32, 3)))).dtype == np.float32


def test_weights_from_a_local_file(tmp_path):
    spec = ldl.get_backbone("vgg16")
    keras.utils.set_random_seed(1)
    donor = keras.applications.VGG16(include_top=False, weights=None, input_shape=(80, 80, 3))
    path = tmp_path / "vgg.weights.h5"
    donor.save_weights(path)
    model = build_model(spec, 48, 2, weights=str(path))
    for mine, theirs in zip([w for w in model.weights if "logits" not in w.path], donor.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))
    expected = donor(keras.applications.vgg16.preprocess_input(PIXELS.copy()))
    whole = build_model(spec, 80, 2, weights=str(path))
    features = keras.Model(whole.input, whole.get_layer("block5_pool").output)
    np.testing.assert_allclose(np.asarray(features(PIXELS)), np.asarray(expected), rtol=1e-4, atol=1e-4)
    assert weights_identity(spec, str(path)).startswith("sha256:")


@pytest.mark.parametrize(
    ("weights", "says"),
    [("imagenets", "no weights 'imagenets'.*Allowed: None, 'imagenet', or the path"), ("readme.md", "HDF5 files only")],
)
def test_wrong_weights_say_what_is_allowed(tmp_path, monkeypatch, weights, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "readme.md").write_text("x")
    with pytest.raises(WeightsError, match=says):
        build_model(ldl.get_backbone("vgg16"), 48, 2, weights=weights)


def test_weights_of_another_net_do_not_fit(tmp_path):
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save_weights(tmp_path / "x.weights.h5")
    with pytest.raises(WeightsError, match="do not fit vgg16"):
        build_model(ldl.get_backbone("vgg16"), 48, 2, weights=tmp_path / "x.weights.h5")


def test_imagenet_is_what_keras_would_fetch(tmp_path, monkeypatch):
    """The file is one of our own, in the place of the fetched one."""
    from keras.src.utils import file_utils

    keras.utils.set_random_seed(2)
    donor = keras.applications.VGG16(include_top=False, weights=None, input_shape=(48, 48, 3))
    donor.save_weights(tmp_path / "fetched.weights.h5")
    asked = []

    def get_file(name, origin=None, **settings):
        asked.append(name)
        return str(tmp_path / "fetched.weights.h5")

    monkeypatch.setattr(file_utils, "get_file", get_file)
    model = build_model(ldl.get_backbone("vgg16"), 48, 2, weights="imagenet")
    assert asked == ["vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"]
    for mine, theirs in zip([w for w in model.weights if "logits" not in w.path], donor.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


def test_a_network_that_cannot_be_reached_is_one_error_with_the_ways_out(monkeypatch):
    from keras.src.utils import file_utils

    def get_file(name, origin=None, **settings):
        raise OSError("URL fetch failure")

    monkeypatch.setattr(file_utils, "get_file", get_file)
    says = (
        r"The 'imagenet' weights of vgg16 could not be fetched \(OSError: URL fetch failure\)\. Ways out: connect this"
    )
    with pytest.raises(WeightsError, match=says):
        build_model(ldl.get_backbone("vgg16"), 48, 2, weights="imagenet")


@pytest.mark.parametrize("result", [None, "features", "flat"])
def test_a_builder_that_returns_no_feature_map(result):
    def build(inputs, weights):
        return keras.layers.Flatten()(inputs) if result == "flat" else result

    with pytest.raises(PluginError, match="must return a feature map"):
        build_model(dataclasses.replace(ldl.get_backbone("cnn"), build=build), 48, 2)


def test_one_class_is_no_classifier():
    with pytest.raises(SettingsError, match="at least two classes"):
        build_model(ldl.get_backbone("cnn"), 48, 1)


@pytest.mark.parametrize(("name", "readers"), [("vgg16", 1), ("cnn", 2), ("xception", 2), ("inception_v3", 4)])
def test_readers_of_one_tensor_are_counted(name, readers):
    assert most_readers(build_model(ldl.get_backbone(name), 75, 2)) == readers
