"""A saved net gives calibrated probabilities of raw pixels, for Keras alone in a process without this library too."""

import dataclasses
import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

import leukemia_dl as ldl

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
ALONE = """
import sys
sys.modules["leukemia_dl"] = None  # as where it is not installed
import keras, numpy as np
model = keras.models.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), verbose=0))
"""
ENDS = {
    "logits": lambda x: keras.layers.Dense(3)(x),
    "one logit": lambda x: keras.layers.Dense(1)(x),
    "softmax": lambda x: keras.layers.Dense(3, "softmax")(x),
    "sigmoid": lambda x: keras.layers.Dense(1, "sigmoid")(x),
}


def net(end):
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, activation="relu")(keras.layers.Rescaling(1 / 64)(inputs))
    return keras.Model(inputs, ENDS[end](keras.layers.GlobalAveragePooling2D()(x)))


def classifier(end="logits", temperature=1.7):
    names = ("a", "b", "c")[: 3 if end in ("logits", "softmax") else 2]
    return ldl.Classifier(net(end), names, ldl.Pipeline.default(32), temperature=temperature)


def probabilities(one):
    frame = one.predict(PIXELS, show_progress=False)
    return frame[[f"probability_{name}" for name in one.class_names]].to_numpy()


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("temperature", [1.0, 0.4, 3.0])
def test_keras_alone_gives_the_probabilities_of_predict(end, temperature, tmp_path):
    one = classifier(end, temperature)
    expected, file = probabilities(one), one.save(tmp_path / "model.keras")
    found = keras.models.load_model(file).predict(PIXELS, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    again = ldl.load_classifier(file)
    assert again.temperature == temperature
    np.testing.assert_allclose(probabilities(again), expected, atol=1e-6)
    # Saved and loaded once more nothing is divided twice.
    twice = ldl.load_classifier(again.save(tmp_path / "again.keras"))
    np.testing.assert_allclose(probabilities(twice), expected, atol=1e-6)
    other, plain = (dataclasses.replace(each, temperature=1.0) for each in (again, one))
    np.testing.assert_allclose(probabilities(other), probabilities(plain), atol=1e-6)


def test_a_process_without_this_library_gives_the_same(tmp_path):
    one = classifier()
    file = one.save(tmp_path / "model.keras")
    np.save(tmp_path / "pixels.npy", PIXELS)
    command = [sys.executable, "-c", ALONE, file, tmp_path / "pixels.npy", tmp_path / "found.npy"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), probabilities(one), atol=1e-6)


def test_a_plain_net_that_was_loaded_by_keras_is_a_classifier_again(tmp_path):
    one = classifier()
    plain = keras.models.load_model(one.save(tmp_path / "model.keras"))
    wrapped = ldl.Classifier(plain, one.class_names, one.pipeline, temperature=2.0)
    log = np.log(probabilities(one)) / 2
    expected = np.exp(log) / np.exp(log).sum(axis=1, keepdims=True)
    for each in (wrapped, ldl.load_classifier(wrapped.save(tmp_path / "twice.keras"))):
        np.testing.assert_allclose(probabilities(each), expected, atol=1e-6)


def test_logits_are_those_of_the_layer_by_that_name(tmp_path):
    one = classifier()
    model = keras.models.load_model(one.save(tmp_path / "model.keras"))
    logits = keras.Model(model.input, model.get_layer("calibration").input)
    np.testing.assert_allclose(logits.predict(PIXELS, verbose=0), one.model.predict(PIXELS, verbose=0), atol=1e-6)
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        settings = json.loads(archive.read("leukemia_dl.json"))
    assert (settings["class_names"], settings["temperature"]) == (["a", "b", "c"], 1.7)
