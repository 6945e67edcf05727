import logging
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from leukemia_dl import Benchmark, Dataset, Pipeline, PixelStore, Recipe, load_classifier
from leukemia_dl.benchmark.inputs import read_images
from leukemia_dl.benchmark.runner import _repeatable
from leukemia_dl.datasets import make_splits

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 9, 9, 3), dtype=np.uint8)
PIPELINE = Pipeline.default(8)


@pytest.fixture
def dataset() -> Dataset:
    return Dataset.from_arrays(IMAGES, np.arange(30) % 2, ("hem", "all"), subjects=[f"p{i}" for i in range(30)])


def test_pixels_come_from_a_store(dataset: Dataset) -> None:
    images, split = read_images(dataset, np.arange(30), PIPELINE, False), make_splits(dataset, "holdout")[0]
    assert isinstance(images.pixels, PixelStore)
    np.testing.assert_array_equal(images.read(images.pipeline(split), split.test), PIPELINE(IMAGES[split.test]))
    # Another process maps the same file; one that does not see it is sent the pixels.
    sent = pickle.dumps(images)
    assert len(sent) < images.pixels.images.nbytes
    for other in (pickle.loads(sent), images.in_memory()):
        np.testing.assert_array_equal(other.read(PIPELINE, split.test), PIPELINE(IMAGES[split.test]))
    assert isinstance(pickle.loads(sent).pixels.images, np.memmap)


def test_where_no_store_can_be_written_they_are_held_in_memory(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEUKEMIA_DL_CACHE", str(tmp_path / "file"))
    split = make_splits(dataset, "holdout")[0]
    with caplog.at_level(logging.WARNING):
        images = read_images(dataset, np.arange(30), PIPELINE, False)
    found = images.read(images.pipeline(split), split.train)
    np.testing.assert_array_equal(found, PIPELINE(IMAGES[split.train]))
    assert "Decoded images are held in memory" in caplog.text


def test_images_in_memory_are_benchmarked_and_predicted(dataset: Dataset, tmp_path: Path) -> None:
    recipe = Recipe.preset("quick", image_size=32, epochs=1)
    bench = Benchmark(dataset, backbones=["cnn"], protocol="holdout", store=tmp_path / "s", recipe=recipe)
    frame = bench.run(executor="in-process", show_progress=False)
    assert frame["status"].isin(["ok", "not_applicable"]).all()
    assert frame.set_index("backbone").loc["cnn", "status"] == "ok"
    assert frame["crossing_group"].tolist() == [0] * len(frame)
    classifier = load_classifier(tmp_path / "s")
    from_rows, from_arrays = classifier.predict(dataset), classifier.predict(IMAGES)
    np.testing.assert_allclose(from_rows["probability_all"], from_arrays["probability_all"], atol=1e-6)
    assert from_rows["sample"].tolist() == [str(i) for i in range(30)]


@pytest.mark.parametrize(
    ("backend", "device", "readers", "epochs", "repeatable"),
    [
        ("tensorflow", "cpu", 2, 3, True),
        ("tensorflow", "cpu", 3, 3, False),  # InceptionV3
        ("tensorflow", "cpu", 3, 0, True),  # a head alone: no gradient passes the net
        ("jax", "cpu", 3, 3, True),
        ("jax", "gpu", 2, 3, False),
    ],
)
def test_a_row_says_whether_equal_settings_give_equal_bits(backend, device, readers, epochs, repeatable):
    keras = pytest.importorskip("keras")
    inputs = keras.Input((4,))
    outputs = keras.layers.Concatenate()([keras.layers.Dense(1)(inputs) for _ in range(readers)])
    result = SimpleNamespace(
        device=SimpleNamespace(backend=backend, kind=device),
        recipe=SimpleNamespace(epochs=epochs),
        model=keras.Model(inputs, outputs),
    )
    assert _repeatable(result) is repeatable
