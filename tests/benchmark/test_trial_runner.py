import logging
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import grids
from leukemia_dl import BackboneSpec, Benchmark, Dataset, Pipeline, PixelStore, Recipe, load_classifier
from leukemia_dl.benchmark import trial_runner as runner
from leukemia_dl.benchmark.baselines import CellMeasures, run_baseline
from leukemia_dl.benchmark.records import Record, Samples, scored_record
from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.trial_runner import _repeatable, read_images
from leukemia_dl.datasets import make_splits
from leukemia_dl.errors import PluginError, SettingsError
from leukemia_dl.evaluation import fit_temperature, score
from leukemia_dl.models.classifier import softmax

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 9, 9, 3), dtype=np.uint8)
PIPELINE = Pipeline.default(8)


@pytest.fixture
def dataset() -> Dataset:
    return Dataset.from_arrays(IMAGES, np.arange(30) % 2, ("hem", "all"), subjects=[f"p{i}" for i in range(30)])


def test_pixels_come_from_a_store(dataset: Dataset) -> None:
    images, split = read_images(dataset, np.arange(30), PIPELINE, False), make_splits(dataset, "holdout")[0]
    assert isinstance(images.pixels, PixelStore)
    np.testing.assert_array_equal(
        images.after(PIPELINE, split.test).subsets(split.test)[0][:], PIPELINE(IMAGES[split.test])
    )
    # Another process maps the same file.
    sent = pickle.dumps(images)
    assert len(sent) < images.pixels.images.nbytes
    other = pickle.loads(sent)
    np.testing.assert_array_equal(other.subsets(split.test)[0][:], PIPELINE(IMAGES[split.test]))
    assert isinstance(other.pixels.images, np.memmap)


def test_images_in_memory_are_benchmarked_and_a_damaged_net_is_trained_again(dataset, tmp_path, caplog):
    """20.42: the next run compares each net with its checksum, says which is damaged and trains it anew."""
    settings = {"protocol": "holdout", "recipe": Recipe.preset("quick", image_size=32, epochs=1), "store": tmp_path}
    first = Benchmark(dataset, ["cnn"], **settings).run(executor="in-process", show_progress=False)
    assert first["status"].isin(["ok", "not_applicable"]).all()
    assert first.set_index("backbone").loc["cnn", "status"] == "ok"
    assert first["leaked_groups"].tolist() == [0] * len(first)
    classifier = load_classifier(tmp_path)
    from_rows, from_arrays = classifier.predict(dataset), classifier.predict(IMAGES)
    np.testing.assert_allclose(from_rows["probability_all"], from_arrays["probability_all"], atol=1e-6)
    assert from_rows["sample"].tolist() == [str(i) for i in range(30)]
    net = tmp_path / "trials" / first["trial"][0] / "model.keras"
    net.write_bytes(net.read_bytes()[:-1] + b"x")
    settings["baselines"] = []
    with caplog.at_level(logging.WARNING):
        assert Benchmark(dataset, ["cnn"], save_models=False, **settings).plan()["status"].tolist() == ["ok"]
        again = Benchmark(dataset, ["cnn"], **settings).run(executor="in-process", show_progress=False)
    assert caplog.text.count("model.keras has another checksum than SHA256SUMS says. The trial runs again.") >= 1
    assert again["status"].tolist() == ["ok"]
    assert load_classifier(tmp_path).predict(IMAGES).shape[0] == 30
    assert Store(tmp_path).verify() == {}


def stops(context):
    import keras

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    return [Stop()]


def test_a_fit_gets_the_groups_of_its_training_images_and_one_that_was_stopped_has_no_temperature(
    dataset, tmp_path, monkeypatch
):
    """20, mutants 1 and 5: patients reach `fit`, and val is not used twice."""
    given, real = [], runner.fit
    monkeypatch.setattr(runner, "fit", lambda *values, **more: given.append(more) or real(*values, **more))
    dataset = Dataset.from_arrays(IMAGES, np.arange(30) % 2, ("hem", "all"), subjects=[f"p{i // 3}" for i in range(30)])
    recipe = Recipe.preset("quick", image_size=32, epochs=3)
    settings = {"backbones": ["cnn"], "baselines": [], "protocol": "holdout", "recipe": recipe}
    for name, callbacks in (("whole", None), ("stopped", stops)):
        bench = Benchmark(dataset, store=tmp_path / name, callbacks=callbacks, **settings)
        row = bench.run(executor="in-process", show_progress=False).iloc[0]
        assert (row["status"], row["epochs"]) == ("ok", 1 if callbacks else 3)
        if callbacks:
            assert np.isnan(row["temperature"])
        (split,) = bench.splits
        codes = given[-1]["groups"]
        subjects = dataset.table["group"].to_numpy()[split.train]
        assert len(set(zip(codes.tolist(), subjects, strict=True))) == len(set(codes.tolist())) == len(set(subjects))


@pytest.mark.parametrize(
    ("protocol", "changes"),
    [
        ("random", {"recipe": Recipe.preset("quick", image_size=32, epochs=1), "allow_leakage": True}),
        ("published_v1", {"recipe": Recipe.preset("linear_probe", image_size=32, weights="random")}),
    ],
)
def test_a_net_whose_val_side_is_not_of_new_patients_gets_no_limit(protocol, changes, synthetic_root, tmp_path):
    """Where patients of val were trained on there is no limit to abstain by; where val is the test side, no rule."""
    dataset = grids.dataset(synthetic_root)
    bench = Benchmark(dataset, ["cnn"], protocol=protocol, baselines=[], store=tmp_path, **changes)
    (row,) = bench.run(executor="in-process", show_progress=False).to_dict("records")
    assert row["status"] == "ok", row["message"]
    record = load_classifier(tmp_path).provenance
    if protocol == "random":
        assert record["abstain"]["value"] is None
        assert record["abstain"]["reason"] == "patients of the val side were trained on"
    else:
        assert not np.isnan(row["temperature"])
        assert not {"abstain", "threshold"} & set(record)


@pytest.mark.parametrize(("patients", "says"), [(60, ""), (12, "temperature stays 1: fewer than 5 groups of a class")])
def test_a_temperature_that_val_cannot_support_stays_one_and_the_row_says_why(patients, says, tmp_path):
    """20.4: a temperature of 99.99994 of a tiny val side was saved with the net, without a word."""
    random = np.random.default_rng(1)
    shown = random.normal(size=(240, 3))
    labels = (shown[:, 0] + random.normal(size=240) > 0).astype(int)
    images = random.integers(0, 256, (240, 9, 9, 3), dtype=np.uint8)
    subjects = [f"p{row % patients}" for row in range(240)]
    noisy = Dataset.from_arrays(images, labels, ("hem", "all"), subjects=subjects)
    bench = Benchmark(noisy, ["cnn"], protocol="holdout", baselines=["cell_colour"], store=tmp_path)
    (cell,) = (cell for cell in bench.planned.trials if cell.spec is None)
    measures = CellMeasures(np.ones(240, bool), shown, shown)
    record = run_baseline(cell, Samples.of(noisy), lambda: measures)
    assert record.status == "ok", record.message
    assert [flag for flag in record.row["flags"].split("; ") if "temperature" in flag] == ([says] if says else [])
    assert (record.metrics["temperature"] == 1) == bool(says)
    val, groups = record.sides == "val", Samples.of(noisy).groups_of(cell.split.val)
    assert record.metrics["temperature"] == fit_temperature(record.labels[val], record.probabilities[val], groups)
    same = record.metrics["loss"] == pytest.approx(record.metrics["loss_calibrated"], rel=1e-12)
    assert same == bool(says)


def test_averaged_predictions_are_means_of_probabilities_and_calibrated_before_the_mean():
    views = np.random.default_rng(0).normal(0, 3, (8, 30, 2))
    sides, labels = np.repeat(["val", "test"], 15), np.arange(30) % 2
    record = Record(None, "ok", row={"flags": ""}, sides=sides, labels=labels)
    found = scored_record(record, softmax(views[0]), views, (2.0, ""))
    np.testing.assert_allclose(found.tta, softmax(views).mean(axis=0))
    test = sides == "test"
    assert found.metrics_tta["loss"] == score(labels[test], found.tta[test])["loss"]
    softened = softmax(views / 2).mean(axis=0)
    assert found.metrics_tta["loss_calibrated"] == pytest.approx(score(labels[test], softened[test])["loss"])


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


def test_a_spec_is_taken_as_a_backbone_and_a_keras_model_is_refused(dataset, tmp_path, monkeypatch):
    """20.30: `Benchmark(data, [spec])` works; `Benchmark(data, [keras_model])` says what to pass instead."""
    keras = pytest.importorskip("keras")
    spec = BackboneSpec(name="mine", build=grids.tiny, scaling="unit", native_size=32, min_size=8)
    recipe = Recipe.preset("quick", image_size=32, epochs=1)
    bench = Benchmark(dataset, ["vgg16", spec], protocol="holdout", store=tmp_path, recipe=recipe)
    assert bench.planned.backbones == ("vgg16", "mine")
    assert Benchmark(
        dataset, [spec, "mine"][:1], protocol="holdout", store=tmp_path, recipe=recipe
    ).planned.backbones == ("mine",)
    changed = replace(spec, native_size=48)  # as when a cell of a notebook is run again
    assert Benchmark(dataset, [changed], protocol="holdout", store=tmp_path).planned.trials[0].spec == changed
    with pytest.raises(PluginError, match="'vgg16' is provided by leukemia-dl"):
        Benchmark(dataset, [replace(spec, name="vgg16")])
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, inputs)
    with pytest.raises(PluginError, match=r"Received: Functional. For a Keras model pass BackboneSpec\(name="):
        Benchmark(dataset, [model])
    with pytest.raises(SettingsError, match="backbones must be a list of names"):
        Benchmark(dataset, "vgg16")
