"""What is built: scaling equal to Keras's own, flat graphs, weights in and out, heads, the published nets."""

import dataclasses

import numpy as np
import pytest

import leukemia_dl as ldl
from leukemia_dl.errors import PluginError, SettingsError, WeightsError
from leukemia_dl.models.build import Head, build_model, most_readers, scale, split_at_features, weights_identity

keras = pytest.importorskip("keras")
CNN = ldl.get_backbone("cnn")
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 80, 80, 3)).astype("float32")
IMAGES = PIXELS[:, :32, :32]


@pytest.mark.parametrize(
    ("name", "module"),
    [("vgg16", "vgg16"), ("resnet50", "resnet50"), ("inception_v3", "inception_v3"), ("xception", "xception")],
)
def test_scaling_equals_keras_preprocess_input(name, module):
    inputs = keras.Input((80, 80, 3))
    model = keras.Model(inputs, scale(inputs, ldl.get_backbone(name).scaling))
    expected = getattr(keras.applications, module).preprocess_input(PIXELS.copy())
    np.testing.assert_allclose(np.asarray(model(PIXELS)), expected, atol=1e-4)


def test_torch_scaling_equals_keras_own():
    inputs = keras.Input((80, 80, 3))
    expected = keras.applications.imagenet_utils.preprocess_input(PIXELS.copy(), mode="torch")
    for scaling in ("torch", ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])):
        spec = dataclasses.replace(CNN, scaling=scaling)
        found = np.asarray(keras.Model(inputs, scale(inputs, spec.scaling))(PIXELS))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert found.dtype == np.float32


def test_other_scalings():
    inputs = keras.Input((80, 80, 3))
    np.testing.assert_allclose(np.asarray(keras.Model(inputs, scale(inputs, "unit"))(PIXELS)), PIXELS / 255, atol=1e-6)
    assert scale(inputs, "none") is inputs
    pair = dataclasses.replace(CNN, scaling=([127, 0, 255], np.array([128, 1, 0.5]))).scaling
    found = np.asarray(keras.Model(inputs, scale(inputs, pair))(PIXELS))
    np.testing.assert_allclose(found, (PIXELS - [127, 0, 255]) / [128, 1, 0.5], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "readers"),
    [
        ("cnn", 2), ("inception_v3", 4), ("resnet50", 2), ("vgg16", 1), ("xception", 2), ("efficientnet_b0", 2),
        ("efficientnet_v2_b0", 2), ("densenet121", 2), ("mobilenet_v3_small", 2),
    ],
)  # fmt: skip
def test_built_flat_at_the_declared_minimum_with_the_declared_parameters(name, readers):
    spec = ldl.get_backbone(name)
    size = spec.min_size
    model = build_model(spec, size, 3)
    assert model.input_shape == (None, size, size, 3)
    assert model.output_shape == (None, 3)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    head = model.get_layer("logits").count_params()
    assert model.count_params() - head == spec.parameters
    assert model.get_layer("logits").dtype_policy.name == "float32"
    assert most_readers(model) == readers
    with pytest.raises(SettingsError, match=rf"{name} needs images of at least {size} x"):
        build_model(spec, size - 1, 2)


def test_the_global_dtype_policy_is_left_alone():
    before = keras.config.dtype_policy().name
    model = build_model(CNN, 32, 2, dtype_policy="mixed_bfloat16")
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
    [
        ("imagenets", "no weights 'imagenets'.*Allowed: None, 'imagenet', or the path"),
        ("readme.md", "do not fit vgg16"),
    ],
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


@pytest.mark.parametrize("result", [None, "features"])
def test_a_builder_that_returns_no_feature_map(result):
    def build(inputs, weights):
        return result

    with pytest.raises(PluginError, match="must return a feature map"):
        build_model(dataclasses.replace(CNN, build=build), 48, 2)


def test_one_class_is_no_classifier():
    with pytest.raises(SettingsError, match="whole number of at least 2"):
        build_model(CNN, 48, 1)
    with pytest.raises(SettingsError, match="kind must be one of 'pooled'"):
        build_model(CNN, 48, 2, head=Head(kind="x"))


def published(name):
    recipe = ldl.Recipe.preset("published_v1").for_backbone(ldl.get_backbone(name))
    head = Head(kind=recipe.head, units=recipe.head_units, dropout=recipe.dropout, sigmoid=recipe.sigmoid)
    model = build_model(ldl.get_backbone(name), recipe.image_size, 2, head=head, scaling=recipe.scaling)
    return model, split_at_features(model)[1]


@pytest.mark.parametrize(
    ("name", "all_weights", "of_the_head"),
    [("vgg16", 27_823_937, 13_109_249), ("published_cnn", 838_721, 12_801 * 64 + 65)],
)
def test_published_v1_has_the_published_number_of_weights(name, all_weights, of_the_head):
    model, head = published(name)
    assert model.count_params() == all_weights
    assert head.count_params() == of_the_head


def test_published_cnn_is_the_published_net_layer_by_layer():
    model, _ = published("published_cnn")
    layers = keras.layers
    theirs = keras.Sequential(
        [
            keras.Input((180, 180, 3)),
            layers.Rescaling(1 / 255),
            *[part for _ in range(3) for part in (layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D())],
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    theirs.set_weights(model.get_weights())
    images = np.random.default_rng(0).integers(0, 256, (2, 180, 180, 3)).astype("float32")
    logits = np.asarray(model.predict_on_batch(images))
    sigmoid = np.asarray(theirs.predict_on_batch(images))[:, 0]
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax[:, 1], sigmoid, atol=1e-6)
    # The cross-entropy of the two logits is the binary one of the sigmoid.
    labels = np.array([0, 1])
    binary = keras.losses.BinaryCrossentropy()(labels[:, None], sigmoid[:, None])
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits)
    assert float(binary) == pytest.approx(float(sparse), rel=1e-4)


def test_pixels_are_divided_by_255_whatever_the_backbone_expects():
    model = build_model(ldl.get_backbone("vgg16"), 32, 2, scaling="unit")
    layer = model.get_layer("scaling")
    assert (layer.scale, layer.offset) == (1 / 255.0, 0.0)


@pytest.mark.parametrize("kind", ["pooled", "flatten"])
@pytest.mark.parametrize(("units", "dropout", "sigmoid"), [(0, 0.0, False), (7, 0.5, False), (7, 0.5, True)])
def test_a_split_model_is_the_model(kind, units, dropout, sigmoid):
    model = build_model(CNN, 32, 2, head=Head(kind=kind, units=units, dropout=dropout, sigmoid=sigmoid))
    extractor, head = split_at_features(model)
    features = extractor.predict_on_batch(IMAGES)
    assert np.asarray(features).shape == (2, 192 if kind == "pooled" else 192 * 2 * 2)
    np.testing.assert_allclose(head.predict_on_batch(features), model.predict_on_batch(IMAGES), atol=1e-5)
    assert {w.path for w in head.weights} < {w.path for w in model.weights}
    assert len(extractor.weights) + len(head.weights) == len(model.weights)


def test_a_sigmoid_head_tells_two_classes_apart(tmp_path):
    with pytest.raises(SettingsError, match=r"two classes apart\. Received: 3"):
        build_model(CNN, 32, 3, head=Head(sigmoid=True))
    model = build_model(CNN, 32, 2, head=Head(kind="flatten", sigmoid=True))
    saved = ldl.Classifier(model, ("a", "b"), ldl.Pipeline.default(32)).save(tmp_path / "m.keras")
    loaded = ldl.load_classifier(saved).model
    np.testing.assert_allclose(loaded.predict_on_batch(IMAGES), model.predict_on_batch(IMAGES), atol=1e-6)
