"""A classifier that was saved on TensorFlow loads on every backend, and says and explains the same.

The files were written by `python tests/models/test_saved_elsewhere.py`: a net of one convolution with random weights.
"""

import json
from pathlib import Path

import numpy as np
import pytest

import leukemia_dl as ldl
from leukemia_dl.models import Head, build_model

keras = pytest.importorskip("keras")
FILE = Path(__file__).with_name("saved_on_tensorflow.keras")
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 20, 20, 3), dtype=np.uint8)
EXPECTED, MAPS = FILE.with_suffix(".json"), FILE.with_name("maps_on_tensorflow.json")
METHODS = ("gradcam", "integrated_gradients", "occlusion")


def build(inputs, weights):
    from keras import layers

    x = layers.Conv2D(4, 3, strides=2, activation="gelu", name="conv")(inputs)
    return layers.BatchNormalization(name="bn")(x)


def test_it_loads_on_any_backend_and_says_the_same():
    classifier = ldl.load_classifier(FILE)
    assert classifier.class_names == ("hem", "all")
    assert classifier.pipeline == ldl.Pipeline.default(16, canvas=20)
    assert classifier.provenance == {"dataset": "none: random weights"}
    assert classifier.temperature == 1.5
    said = json.loads(EXPECTED.read_text())
    for calibrated in (True, False):
        frame = classifier.predict(IMAGES, calibrated=calibrated)
        np.testing.assert_allclose(frame["probability_all"], said[f"calibrated={calibrated}"], atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_its_maps_are_the_same_on_any_backend(method):
    explained = ldl.load_classifier(FILE).explain(IMAGES, method)
    expected = np.array(json.loads(MAPS.read_text())[method])
    assert expected.max() == 1
    np.testing.assert_allclose(explained.maps, expected, atol=1e-3)


def write() -> None:
    keras.utils.set_random_seed(0)
    spec = ldl.BackboneSpec(name="one", build=build, scaling="caffe", native_size=16, min_size=16)
    model = build_model(spec, 16, 2, head=Head(kind="flatten", units=3, dropout=0.5, sigmoid=True))
    pipeline = ldl.Pipeline.default(16, canvas=20)
    classifier = ldl.Classifier(model, ("hem", "all"), pipeline, {"dataset": "none: random weights"}, 1.5)
    classifier.save(FILE)
    said = {
        f"calibrated={value}": classifier.predict(IMAGES, calibrated=value)["probability_all"].tolist()
        for value in (True, False)
    }
    EXPECTED.write_text(json.dumps(said, indent=1) + "\n")
    write_maps()


def write_maps() -> None:
    classifier = ldl.load_classifier(FILE)
    maps = {name: classifier.explain(IMAGES, name).maps.round(5).tolist() for name in METHODS}
    MAPS.write_text(json.dumps(maps) + "\n")


if __name__ == "__main__":
    write()
