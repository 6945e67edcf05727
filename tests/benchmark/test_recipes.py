"""What the recipes make of a grid: sizes, rows, temperatures, checkpoints, plugins whose builders fail."""

import dataclasses
import os
import signal
import subprocess
import sys
import tomllib

import keras
import numpy as np
import pytest

import grids
import leukemia_dl as ldl
from leukemia_dl.errors import SettingsError
from leukemia_dl.evaluation import score
from leukemia_dl.evaluation.calibration import choose_temperature
from leukemia_dl.models.classifier import logits_over_symmetries, softmax

SIZES = {"subjects": 12, "images": 72, "preliminary_images": 12, "final_images": 2}
RECIPE = ldl.Recipe(name="small", image_size=32, epochs=2, batch_size=8, learning_rate=3e-3)


def build(inputs, weights):
    from keras import layers

    return layers.Conv2D(8, 5, strides=2, activation="relu")(inputs)


def needs_what_is_not_there(inputs, weights):
    import not_there_at_all  # noqa: F401


def several(inputs, weights):
    return [inputs, inputs]


def spec(name, build=build, size=32, **settings):
    fields = {"scaling": "unit", "native_size": size, "min_size": 8, "weights": ("imagenet",)}
    return ldl.BackboneSpec(name=name, build=build, **fields | settings)


@pytest.fixture(autouse=True)
def _backbones(_own_registry):
    ldl.register_backbone(spec("tiny"))
    ldl.register_backbone(spec("larger", size=40))
    ldl.register_backbone(spec("missing", needs_what_is_not_there))
    ldl.register_backbone(spec("several", several))
    ldl.register_backbone(spec("own", weights=()))


@pytest.fixture(scope="module")
def dataset(synthetic_root):
    return ldl.Dataset.load("synthetic", root=synthetic_root, **SIZES)


@pytest.fixture
def weights(tmp_path):
    """Weights of `tiny` in a file."""
    inputs = keras.Input((32, 32, 3))
    keras.Model(inputs, build(inputs, None)).save_weights(tmp_path / "tiny.weights.h5")
    return str(tmp_path / "tiny.weights.h5")


def test_a_builder_that_fails_is_a_row_and_hides_no_other(dataset, tmp_path):
    names = ["several", "missing", "tiny"]
    frame = ldl.Benchmark(dataset, names, recipe=RECIPE, baselines=[], store=tmp_path).run(
        executor="in-process", show_progress=False
    )
    rows = frame.set_index("backbone")
    assert rows["status"].tolist() == ["failed", "failed", "ok"]
    assert rows.loc["several", "message"].startswith("The builder of 'several' must return a feature map")
    assert rows.loc["missing", "exception"] == "PluginError"
    assert rows.loc["missing", "message"] == (
        "The builder of 'missing' raised ModuleNotFoundError: No module named 'not_there_at_all'"
    )


def test_averaged_predictions_are_a_row_of_their_own(dataset, tmp_path):
    recipe = dataclasses.replace(RECIPE, tta=True)
    bench = ldl.Benchmark(dataset, ["tiny"], recipe=recipe, baselines=["majority"], store=tmp_path)
    frame = bench.run(executor="in-process", show_progress=False)
    assert list(frame["backbone"]) == ["tiny", "tiny+tta", "majority"]
    assert list(frame["tta"].fillna("")) == ["none", "8 symmetries", ""]
    assert frame["trial"].nunique() == 2
    predictions = bench.predictions()
    classifier = ldl.load_classifier(tmp_path / "trials" / frame["trial"].iloc[0])
    for name, averaged in (("tiny", False), ("tiny+tta", True)):
        part = predictions.query("backbone == @name and side == 'test'")
        row = frame.set_index("backbone").loc[name]
        labels = (part["label"] == "all").to_numpy(int)
        metrics = score(labels, part[["probability_hem", "probability_all"]].to_numpy())
        assert row["accuracy"] == metrics["accuracy"]
        assert row["loss"] == pytest.approx(metrics["loss"], rel=1e-9)
        images = bench.dataset.subset(bench.dataset.table["sample"].isin(part["sample"]).to_numpy())
        again = classifier.predict(images, calibrated=False, tta=averaged, show_progress=False)
        known = part.set_index("sample")["probability_all"].loc[again["sample"]]
        np.testing.assert_allclose(again["probability_all"], known, atol=1e-5)
    kinds = [predictions.query("backbone == @name")["probability_all"] for name in ("tiny", "tiny+tta")]
    assert not np.allclose(*kinds)
    # The averaged prediction does not change if images are turned: that is what it is for.
    pixels = images.to_numpy(ldl.Pipeline.default(32, canvas=450), show_progress=False)
    expected = softmax(logits_over_symmetries(classifier.model, pixels, 8)).mean(axis=0)
    for turned in (np.rot90(pixels, axes=(1, 2)), pixels[:, ::-1], np.rot90(pixels, 2, axes=(1, 2))[:, :, ::-1]):
        found = softmax(logits_over_symmetries(classifier.model, turned, 8)).mean(axis=0)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    # Its calibrated loss is that of what `predict` returns.
    test = predictions.query("side == 'test'")["sample"].unique()
    part = bench.dataset.subset(bench.dataset.table["sample"].isin(test).to_numpy())
    probabilities = classifier.predict(part, tta=True, show_progress=False)
    calibrated = score(part.labels, probabilities[["probability_hem", "probability_all"]].to_numpy())
    row = frame.set_index("backbone").loc["tiny+tta"]
    assert row["loss_calibrated"] == pytest.approx(calibrated["loss"], rel=1e-5)
    assert row["temperature"] == classifier.temperature
    # A second look finds both rows in the store.
    assert bench.results().equals(frame)
    board = ldl.leaderboard(predictions).set_index("backbone")
    assert board["rank"].isna().all()  # too few patients
    assert board.loc["tiny", "flags"].startswith("fewer than 5 groups: ")


def test_each_backbone_may_have_its_native_size(dataset, tmp_path):
    recipe = dataclasses.replace(RECIPE, image_size="native", epochs=1)
    bench = ldl.Benchmark(dataset, ["tiny", "larger"], recipe=recipe, baselines=["cell_size"], store=tmp_path)
    frame = bench.run(executor="in-process", show_progress=False).set_index("backbone")
    assert (frame["status"] == "ok").all(), frame["message"].tolist()
    assert frame["image_size"].dropna().tolist() == [32, 40]
    for name, size in (("tiny", 32), ("larger", 40)):
        classifier = ldl.load_classifier(tmp_path / "trials" / frame.loc[name, "trial"])
        assert classifier.pipeline == ldl.Pipeline.default(size, canvas=450)
        assert classifier.model.input_shape == (None, size, size, 3)
    settings = tomllib.loads((tmp_path / "settings.toml").read_text())
    assert settings["recipe"]["image_size"] == "native"
    assert sorted(settings["pipeline"]) == ["32", "40"]
    # A pipeline of one size fits one of them; a function from sizes fits all.
    with pytest.raises(SettingsError, match="function from a size"):
        ldl.Benchmark(dataset, ["tiny", "larger"], recipe=recipe, pipeline=ldl.Pipeline.default(32, canvas=450))
    chosen = ldl.Benchmark(
        dataset, ["tiny", "larger"], recipe=recipe, pipeline=lambda s: ldl.Pipeline.default(s, canvas=400)
    )
    assert chosen.planned.pipelines[40] == ldl.Pipeline.default(40, canvas=400)
    with pytest.raises(SettingsError, match="must be a Pipeline that ends in"):
        ldl.Benchmark(dataset, ["tiny"], recipe=recipe, pipeline=lambda size: size)


def test_a_linear_probe_takes_its_temperature_from_inner_folds(dataset, tmp_path, weights, monkeypatch):
    recipe = ldl.Recipe.preset("linear_probe", image_size=32, weights=weights)
    seen = []
    import leukemia_dl.benchmark.trial_runner as runner

    def watched(labels, probabilities, groups):
        seen.append((len(labels), len(groups)))
        return choose_temperature(labels, probabilities, groups)

    monkeypatch.setattr(runner, "choose_temperature", watched)
    bench = ldl.Benchmark(dataset, ["tiny"], recipe=recipe, folds=[2], baselines=[], store=tmp_path / "store")
    frame = bench.run(executor="in-process", show_progress=False)
    assert frame["status"].tolist() == ["ok"], frame["message"].tolist()
    row = frame.iloc[0]
    assert seen == [(row["n_train"], row["n_train"])], "the val side was looked at"
    assert np.isfinite(row["temperature"])
    assert row["weights"].startswith("sha256:")
    # The backbone is that of the file, to the bit.
    model = ldl.load_classifier(tmp_path / "store" / "trials" / row["trial"]).model
    inputs = keras.Input((32, 32, 3))
    twin = keras.Model(inputs, build(inputs, None))
    twin.load_weights(weights)
    mine = next(layer for layer in model.layers if layer.name.startswith("conv2d"))
    np.testing.assert_array_equal(mine.get_weights()[0], twin.get_weights()[0])


def test_what_is_replaced_is_on_the_row(dataset, tmp_path):
    recipe = dataclasses.replace(RECIPE, weights="imagenet", if_no_weights={"epochs": 1, "batch_size": 4})
    bench = ldl.Benchmark(dataset, ["own"], recipe=recipe, baselines=[], store=tmp_path)
    row = bench.run(executor="in-process", show_progress=False).iloc[0]
    assert (row["weights"], row["epochs"], row["batch_size"]) == ("random", 1, 4)
    assert "no imagenet weights: from random ones" in row["flags"]


PROGRAM = """
import sys
import leukemia_dl as ldl
from leukemia_dl.benchmark.grid_runner import GridProgress
dataset = ldl.Dataset.load("synthetic", root=sys.argv[1], **{sizes})
def update(self, trial, epoch, epochs, row):
    if epoch:
        print("epoch", epoch, flush=True)
GridProgress.update = update
recipe = ldl.Recipe(image_size=32, epochs=4, batch_size=8)
frame = ldl.Benchmark(dataset, ["cnn"], recipe=recipe, baselines=[], store=sys.argv[2]).run(show_progress=False)
print("status", *frame["status"], flush=True)
"""


def test_a_killed_benchmark_goes_on_from_its_last_epoch_to_the_same_table(dataset, synthetic_root, tmp_path):
    def start(store):
        command = [sys.executable, "-c", PROGRAM.replace("{sizes}", repr(SIZES)), str(synthetic_root), str(store)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})

    whole = ldl.Benchmark(
        dataset, ["cnn"], recipe=ldl.Recipe(image_size=32, epochs=4, batch_size=8), baselines=[],
        store=tmp_path / "whole",
    )  # fmt: skip
    assert list(whole.run(show_progress=False)["status"]) == ["ok"]
    process = start(tmp_path / "killed")
    while process.stdout.readline().split() != ["epoch", "2"]:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(list((tmp_path / "killed" / "unfinished").glob("*/fit.npz"))) == 1
    rest, _ = start(tmp_path / "killed").communicate(timeout=300)
    assert "epoch 1" not in rest
    assert rest.split()[-2:] == ["status", "ok"]
    (left,) = (tmp_path / "killed" / "unfinished").iterdir()  # of the killed run
    assert not list(left.iterdir())
    results = [(tmp_path / name / "results.csv").read_bytes() for name in ("whole", "killed")]
    assert results[0] == results[1]


def test_published_v1_follows_its_published_habit_and_says_so(dataset, tmp_path, weights):
    """Sigmoid, flat head, pixels / 255, a test side that is the one watched; so nothing may be fitted to it."""
    recipe = ldl.Recipe.preset("published_v1", image_size=32, head_epochs=2, if_no_weights={"epochs": 1})
    bench = ldl.Benchmark(
        dataset, ["published_cnn"], recipe=recipe, protocol="published_v1", baselines=[], store=tmp_path / "cnn"
    )
    row = bench.run(executor="in-process", show_progress=False).iloc[0]
    assert (row["status"], row["weights"], row["epochs"]) == ("ok", "random", 1)
    assert np.isnan(row["temperature"])
    assert row["n_val"] == row["n_test"]
    assert "val" in row["flags"]
    assert bench.planned.pipelines[32] == ldl.Pipeline((ldl.preprocess.Resize(32, method="bilinear"),))
    assert row["accuracy"] == row["val_accuracy"]
    model = ldl.load_classifier(tmp_path / "cnn").model
    assert model.get_layer("logits").units == 1
    assert model.get_layer("scaling").scale == 1 / 255
    # With weights in a file: the head alone, on the published net of another backbone.
    frozen = dataclasses.replace(recipe, weights=weights)
    bench = ldl.Benchmark(
        dataset, ["tiny"], recipe=frozen, protocol="published_v1", baselines=[], store=tmp_path / "frozen"
    )
    row = bench.run(executor="in-process", show_progress=False).iloc[0]
    assert (row["status"], row["epochs"]) == ("ok", 2)
    assert list(bench.histories()["phase"]) == ["head", "head"]


@pytest.mark.slow
def test_a_probe_of_many_folds_and_seeds_sends_each_image_through_the_net_once(dataset, tmp_path, monkeypatch):
    from leukemia_dl.training import cache

    monkeypatch.setenv("LEUKEMIA_DL_CACHE", str(tmp_path / "cache"))
    seen, plain = [], cache.predict_in_batches
    monkeypatch.setattr(cache, "predict_in_batches", lambda *given: seen.append(len(given[1])) or plain(*given))
    grids.register(grids.tiny)  # its builder is found by other processes
    weights = tmp_path / "tiny.weights.h5"
    inputs = keras.Input((32, 32, 3))
    keras.Model(inputs, grids.tiny(inputs, None)).save_weights(weights)
    recipe = ldl.Recipe(weights=str(weights), image_size=32, head_epochs=3, epochs=0, batch_size=8)

    def bench(store, **settings):
        settings = {"folds": [0, 2], "seeds": [0, 1], "baselines": [], "recipe": recipe} | settings
        return ldl.Benchmark(dataset, ["tiny"], store=tmp_path / store, **settings)

    made = bench("many")
    frame = made.run(executor="in-process", show_progress=False)
    assert list(frame["status"]) == ["ok"] * 4
    used = np.unique(np.concatenate([np.r_[split.train, split.val, split.test] for split in made.splits]))
    assert sum(seen) == len(used)
    # Another process, which finds them, and a run that must compute them itself come to the same table.
    table = (tmp_path / "many" / "results.csv").read_bytes()
    bench("found").run(executor="processes", show_progress=False)
    monkeypatch.setenv("LEUKEMIA_DL_CACHE", str(tmp_path / "other"))
    bench("anew").run(executor="in-process", show_progress=False)
    assert sum(seen) == 2 * len(used)
    assert [(tmp_path / store / "results.csv").read_bytes() == table for store in ("found", "anew")] == [True, True]
    # And what is predicted is what the saved net predicts, all the way from pixels.
    classifier = ldl.load_classifier(tmp_path / "many" / "trials" / frame["trial"].iloc[0])
    known = made.predictions().query("trial == @frame.trial.iloc[0]").set_index("sample")["probability_all"]
    rows = dataset.table["sample"].isin(known.index).to_numpy()
    again = classifier.predict(dataset.subset(rows), calibrated=False, show_progress=False).set_index("sample")
    np.testing.assert_allclose(again["probability_all"].loc[known.index], known, atol=1e-4)
