"""Heads, and the published nets with the published numbers of weights."""

import numpy as np
import pytest

import leukemia_dl as ldl
from leukemia_dl.errors import SettingsError
from leukemia_dl.models import Head, build_model
from leukemia_dl.models.heads import split_at_features

keras = pytest.importorskip("keras")
CNN = ldl.get_backbone("cnn")
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype("float32")


def published(name):
    recipe = ldl.Recipe.preset("published_v1").for_backbone(ldl.get_backbone(name))
    model = build_model(ldl.get_backbone(name), recipe.image_size, 2, head=recipe.head_settings, scaling=recipe.scaling)
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
    assert np.asarray(features).shape == (3, 192 if kind == "pooled" else 192 * 2 * 2)
    np.testing.assert_allclose(head.predict_on_batch(features), model.predict_on_batch(IMAGES), atol=1e-5)
    assert {w.path for w in head.weights} < {w.path for w in model.weights}
    assert len(extractor.weights) + len(head.weights) == len(model.weights)


@pytest.mark.parametrize(
    ("wrong", "allowed"),
    [
        ({"kind": "x"}, "one of 'pooled', 'flatten'"),
        ({"kind": ["pooled"]}, "one of 'pooled', 'flatten'"),
        ({"units": -3}, "a whole number of at least 0"),
        ({"units": 2.0}, "a whole number of at least 0"),
        ({"units": True}, "a whole number of at least 0"),
        ({"dropout": 7}, r"a number in \[0, 1\)"),
        ({"dropout": 1}, r"a number in \[0, 1\)"),
        ({"dropout": float("nan")}, r"a number in \[0, 1\)"),
        ({"dropout": "0.5"}, r"a number in \[0, 1\)"),
        ({"sigmoid": 1}, "True or False"),
    ],
)
def test_a_head_is_checked_on_creation(wrong, allowed):
    (name,) = wrong
    with pytest.raises(SettingsError, match=f"^{name} must be {allowed}. Received: {name}="):
        Head(**wrong)


def test_a_head_of_numbers_of_numpy_is_the_same():
    head = Head(units=np.int64(7), dropout=np.float32(0.5))
    assert head == Head(units=7, dropout=0.5)
    assert (type(head.units), type(head.dropout)) == (int, float)


def test_a_sigmoid_head_tells_two_classes_apart(tmp_path):
    with pytest.raises(SettingsError, match=r"two classes apart\. Received: 3"):
        build_model(CNN, 32, 3, head=Head(sigmoid=True))
    model = build_model(CNN, 32, 2, head=Head(kind="flatten", sigmoid=True))
    saved = ldl.Classifier(model, ("a", "b"), ldl.Pipeline.default(32)).save(tmp_path / "m.keras")
    loaded = ldl.load_classifier(saved).model
    np.testing.assert_allclose(loaded.predict_on_batch(IMAGES), model.predict_on_batch(IMAGES), atol=1e-6)
