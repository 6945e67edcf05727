"""Maps find a cue that is planted, say where they do not depend on the weights, and are the same by any means."""

import dataclasses

import keras
import numpy as np
import pytest

import command
import leukemia_dl as ldl
from leukemia_dl.datasets.synthetic import SyntheticCohort, draw_cell, draw_cohort
from leukemia_dl.errors import ImageError, SettingsError
from leukemia_dl.models import explain
from leukemia_dl.reporting import plot_explanations

SIZE, MARK = 40, 6
METHODS = ("gradcam", "integrated_gradients", "occlusion")


def marked(count, seed):
    """Return synthetic cells, in every second of which a bright square lies somewhere, and where."""
    random = np.random.default_rng(seed)
    cohort = draw_cohort(SyntheticCohort(subjects=12, images=max(count, 36), seed=seed)).head(count).to_dict("records")
    images = np.stack([draw_cell(row, seed)[65:385:8, 65:385:8] for row in cohort])
    labels, places = np.arange(count) % 2, random.integers(SIZE // 2 - 8, SIZE // 2 + 3, (count, 2))
    for image, label, (top, left) in zip(images, labels, places, strict=True):
        if label:
            image[top : top + MARK, left : left + MARK] = (230, 60, 200)
    return images, labels, places


@pytest.fixture(scope="module")
def classifier():
    keras.utils.set_random_seed(0)
    net = ldl.models.build_model(
        ldl.BackboneSpec(name="small", build=small, scaling="unit", native_size=SIZE, min_size=SIZE), SIZE, 2
    )
    images, labels, _ = marked(400, 0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.Adam(0.003), loss, metrics=["accuracy"])
    net.fit(images.astype(np.float32), labels, epochs=12, batch_size=32, verbose=0)
    assert net.evaluate(*(part for part in marked(100, 2)[:2]), verbose=0)[1] >= 0.99
    return ldl.Classifier(net, ("plain", "marked"), ldl.Pipeline(()))


def small(inputs, weights):
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    x = keras.layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(x)
    return keras.layers.Conv2D(16, 3, padding="same", activation="relu")(x)


@pytest.mark.parametrize("method", METHODS)
def test_the_planted_cue_is_found_in_95_of_100_images(classifier, method):
    images, _, places = marked(60, 1)
    images, places = images[1::2], places[1::2]
    found = classifier.explain(images, method)
    assert found.checks["class"].eq("marked").all()
    assert found.checks["image"].tolist() == list(range(30))
    assert found.maps.shape == (30, SIZE, SIZE)
    assert found.maps.min() >= 0
    assert found.maps.max() == pytest.approx(1)
    hits = []
    for one, (top, left) in zip(found.maps, places, strict=True):
        row, column = np.unravel_index(one.argmax(), one.shape)
        hits.append(top - 2 <= row < top + MARK + 2 and left - 2 <= column < left + MARK + 2)
    assert np.mean(hits) >= 0.95
    assert (found.checks["inside"] > 0.6).all()
    assert (found.checks["deletion"] < found.checks["insertion"]).mean() > 0.9
    if method != "occlusion":
        assert found.checks["random_weights"].median() < 0.7


def test_a_method_that_ignores_the_weights_is_found_out(classifier, monkeypatch, caplog):
    classifier.explain(marked(4, 2)[0])
    assert caplog.text == ""
    edges = lambda model, images, targets, _: explain._scaled(images.astype(float).std(axis=-1))  # noqa: E731
    monkeypatch.setitem(explain._METHODS, "gradcam", edges)
    assert classifier.explain(marked(4, 2)[0]).checks["random_weights"].min() == pytest.approx(1)
    assert "These maps hardly depend on what the net has learned: 1.00" in caplog.text


def test_a_gradient_is_the_slope_of_the_output(classifier):
    images = marked(3, 3)[0].astype(np.float32)
    targets = np.array([0, 1, 1])
    slopes = explain._gradient(classifier.model, images, targets)
    step = np.zeros_like(images)
    step[:, 16, 16, 1] = 0.5
    ends = [np.asarray(classifier.model.predict_on_batch(images + sign * step)) for sign in (1, -1)]
    expected = (ends[0] - ends[1])[np.arange(3), targets]
    np.testing.assert_allclose(slopes[:, 16, 16, 1], expected, atol=2e-3)


def test_integrated_gradients_sum_to_the_difference_from_black(classifier):
    images, targets = marked(2, 4)[0], np.array([1, 1])
    total = sum(
        explain._gradient(classifier.model, images.astype(np.float32) * (step + 0.5) / 200, targets)
        for step in range(200)
    )
    logits = [np.asarray(classifier.model.predict_on_batch(part))[:, 1] for part in (images, 0 * images)]
    np.testing.assert_allclose((total / 200 * images).sum(axis=(1, 2, 3)), logits[0] - logits[1], rtol=0.05, atol=0.1)


def test_another_class_and_one_output_are_explained_too(classifier):
    images = marked(4, 5)[0]
    named = classifier.explain(images, classes=["plain"] * 4)
    assert named.checks["class"].eq("plain").all()
    other = classifier.explain(images, classes=["marked"] * 4)
    np.testing.assert_allclose(named.checks["probability"] + other.checks["probability"], 1)
    logits = classifier.model.output
    one = keras.Model(classifier.model.input, keras.ops.subtract(logits[:, 1:], logits[:, :1]))
    single = dataclasses.replace(classifier, model=one).explain(images, "integrated_gradients", ["marked"] * 4)
    assert single.maps.shape == (4, SIZE, SIZE)


def test_what_cannot_be_explained_says_so(classifier, tmp_path, write_image):
    with pytest.raises(SettingsError, match="method must be one of"):
        classifier.explain(marked(1, 0)[0], "shap")
    with pytest.raises(SettingsError, match="classes must be 2 of plain, marked, one per image"):
        classifier.explain(marked(2, 0)[0], classes=["plain", "other"])
    with pytest.raises(SettingsError, match="There are no images to explain"):
        classifier.explain([])
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(ImageError):
        classifier.explain(tmp_path / "no.png")
    inputs = keras.Input((SIZE, SIZE, 3))
    flat = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
    with pytest.raises(SettingsError, match="Grad-CAM needs a net with feature maps"):
        ldl.Classifier(flat, ("a", "b"), ldl.Pipeline(())).explain(marked(1, 0)[0], "gradcam")
    assert ldl.Classifier(flat, ("a", "b"), ldl.Pipeline(())).explain(marked(1, 0)[0]).method == "occlusion"


def test_maps_are_drawn_over_their_images_and_by_the_command(classifier, tmp_path):
    from PIL import Image

    images = marked(3, 6)[0]
    figure = plot_explanations(classifier.explain(images), columns=2)
    assert len(figure.axes) == 3
    assert [len(axes.images) for axes in figure.axes] == [2, 2, 2]
    file = classifier.save(tmp_path / "model.keras")
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    arguments = ["explain", file, *sorted(tmp_path.glob("?.png")), "--output", tmp_path / "out" / "maps.png"]
    said = command.run(*arguments, "--method", "integrated_gradients")
    assert said.returncode == 0, said.stderr
    assert "random_weights" in said.stdout
    assert (tmp_path / "out" / "maps.png").read_bytes().startswith(b"\x89PNG")
