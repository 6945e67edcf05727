"""The leg of `make test` that runs on JAX in an environment without TensorFlow; the backend is KERAS_BACKEND's.

Under the default backend the same test runs too, so that the two are held to the same.
"""

import importlib.util
import os

import numpy as np
import pytest

import leukemia_dl as ldl
from leukemia_dl.datasets.synthetic import SyntheticCohort, write_dataset

BACKEND = os.environ.get("KERAS_BACKEND") or "tensorflow"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    sizes = {"subjects": 12, "images": 64, "preliminary_images": 12, "final_images": 2}
    root = write_dataset(tmp_path_factory.mktemp("data") / "cells", SyntheticCohort(**sizes), show_progress=False)
    return ldl.Dataset.load("synthetic", root=root, **sizes)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="this leg is for an environment without TensorFlow")
def test_tensorflow_is_not_here():
    assert importlib.util.find_spec("tensorflow") is None


@pytest.mark.parametrize("nets", [["cnn"], pytest.param(["cnn", "resnet50"], marks=pytest.mark.slow)])
def test_nets_on_64_images(dataset, nets, tmp_path):
    assert (dataset.table["split"] == "train").sum() == 64
    recipe = ldl.Recipe.preset("quick", image_size=48, epochs=2)
    bench = ldl.Benchmark(dataset, nets, recipe=recipe, store=tmp_path)
    frame = bench.run(show_progress=False)
    assert list(frame["backbone"]) == [*nets, "majority", "cell_size", "cell_colour"]
    assert (frame["status"] == "ok").all(), frame["message"].tolist()
    assert np.isfinite(frame[["accuracy", "loss"]].to_numpy()).all()
    trained = frame[frame["recipe"].notna()]
    assert (trained["backend"] == BACKEND).all()
    assert (trained["device"] == "cpu").all() or trained["device"].nunique() == 1
    histories = bench.histories()
    assert list(histories["backbone"]) == [name for name in nets for _ in range(2)]
    assert np.isfinite(histories[["loss", "accuracy", "val_loss", "val_accuracy"]].to_numpy()).all()
    trial = frame.loc[frame["backbone"] == "cnn", "trial"].iloc[0]
    classifier = ldl.load_classifier(tmp_path / "trials" / trial)
    predictions = classifier.predict(dataset, calibrated=False, show_progress=False)
    np.testing.assert_allclose(predictions[["probability_hem", "probability_all"]].sum(axis=1), 1, atol=1e-6)
    known = bench.predictions().query("backbone == 'cnn'").set_index("sample")["probability_all"]
    again = predictions.set_index("sample")["probability_all"].loc[known.index]
    np.testing.assert_allclose(again, known, atol=1e-4)
