"""The grid, run for real on small synthetic cells with a net of one convolution."""

import math
import tomllib

import numpy as np
import pandas as pd
import pytest

import leukemia_dl as ldl
from leukemia_dl.errors import ImageError, SettingsError, SplitError, StoreError, TrainingError, UnknownNameError
from leukemia_dl.evaluation import METRICS, apply_temperature, fit_temperature, score
from leukemia_dl.preprocess import CropToCell, Reinhard, Resize

RECIPE = ldl.Recipe(name="tiny", image_size=32, epochs=2, batch_size=8)


def build(inputs, weights):
    import keras

    x = keras.layers.Conv2D(8, 5, strides=2, activation="relu")(inputs)
    return keras.layers.BatchNormalization()(x)


def break_down(inputs, weights):
    raise ZeroDivisionError("the plugin's own fault")


def interrupt(inputs, weights):
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _backbones(_own_registry):
    for name, builder in (("tiny", build), ("broken", break_down), ("stopped", interrupt)):
        ldl.register_backbone(ldl.BackboneSpec(name=name, build=builder, scaling="unit", native_size=32, min_size=8))


@pytest.fixture(scope="module")
def dataset(synthetic_root):
    sizes = {"subjects": 12, "images": 72, "preliminary_images": 12, "final_images": 2}
    return ldl.Dataset.load("synthetic", root=synthetic_root, **sizes)


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """A finished run of two folds and two seeds, and its frame."""
    spec = ldl.BackboneSpec(name="tiny", build=build, scaling="unit", native_size=32, min_size=8)
    ldl.register_backbone(spec, replace=True)
    store = tmp_path_factory.mktemp("run") / "store"
    bench = ldl.Benchmark(dataset, ["tiny"], recipe=RECIPE, folds=[0, 2], seeds=[0, 1], store=store)
    return bench, bench.run(executor="in-process", show_progress=False)


def test_a_row_per_backbone_fold_and_seed_and_the_baselines_once_per_fold(finished):
    _, frame = finished
    assert list(frame.columns[:3]) == ["backbone", "accuracy", "loss"]
    assert tuple(frame.columns[1 : 1 + len(METRICS)]) == METRICS
    assert list(frame["backbone"]) == ["tiny", "tiny", "majority", "cell_size", "cell_colour"] * 2
    assert list(frame["fold"]) == [0] * 5 + [2] * 5
    assert list(frame["seed"].dropna()) == [0, 1, 0, 1]
    assert (frame["status"] == "ok").all()
    for name in METRICS:
        assert frame[name].dtype == float
        assert frame.loc[frame["backbone"] != "majority", name].notna().mean() > 0.7, name
    majority = frame[frame["backbone"] == "majority"]
    undefined = {name for name in METRICS if majority[name].isna().all()}
    assert undefined == {"npv", "mcc", "calibration_slope"}
    assert not any(isinstance(value, (dict, list)) for value in frame.to_numpy().ravel())


def test_metrics_follow_from_the_prediction_frame(finished):
    bench, frame = finished
    predictions = bench.predictions()
    names = bench.dataset.class_names
    for row in frame.itertuples():
        part = predictions[(predictions["trial"] == row.trial) & (predictions["side"] == "test")]
        assert len(part) == row.n_test
        p = part[[f"probability_{name}" for name in names]].to_numpy()
        labels = part["label"].map(names.index).to_numpy()
        assert row.accuracy == pytest.approx((p.argmax(axis=1) == labels).mean())
        assert row.loss == pytest.approx(-np.log(np.clip(p[np.arange(len(p)), labels], 1e-15, 1)).mean())
    kinds = dict(zip(predictions["backbone"], predictions["kind"], strict=True))
    assert kinds == {"tiny": "backbone", "majority": "baseline", "cell_size": "baseline", "cell_colour": "baseline"}
    truth = bench.dataset.table.set_index("sample").loc[predictions["sample"]]
    for column in ("label", "subject", "group"):
        assert list(predictions[column]) == list(truth[column])


def test_calibrated_columns_follow_from_the_val_side(finished):
    bench, frame = finished
    predictions = bench.predictions()
    columns = [f"probability_{name}" for name in bench.dataset.class_names]
    row = frame[frame["backbone"] == "tiny"].iloc[0]
    part = predictions[predictions["trial"] == row["trial"]]
    labels = part["label"].map(bench.dataset.class_names.index).to_numpy()
    p, test = part[columns].to_numpy(), part["side"].eq("test").to_numpy()
    temperature = fit_temperature(labels[~test], p[~test], part["group"].to_numpy()[~test])
    assert row["temperature"] == pytest.approx(temperature)
    softened = score(labels[test], apply_temperature(p[test], temperature))
    for name in ("loss", "brier", "ece"):
        assert row[f"{name}_calibrated"] == pytest.approx(softened[name])


def test_nothing_is_calibrated_where_val_is_the_test_side(dataset, tmp_path):
    bench = ldl.Benchmark(dataset, ["tiny"], recipe=RECIPE, protocol="published_v1", store=tmp_path, baselines=[])
    row = bench.run(executor="in-process", show_progress=False).iloc[0]
    assert np.isfinite(row["val_loss"])
    assert row[["temperature", "loss_calibrated", "brier_calibrated", "ece_calibrated"]].isna().all()


def test_the_prediction_frame_is_what_evaluation_takes(finished):
    bench, frame = finished
    predictions = bench.predictions(cell_area=True)
    table = ldl.leaderboard(predictions, results=frame, timings=bench.timings()).set_index("backbone")
    assert set(table.index) == {"tiny", "majority", "cell_size", "cell_colour"}
    assert table.loc["tiny", "trials"] == 4
    assert table.loc["tiny", "parameters"] == frame["parameters"].max()
    assert table.loc["tiny", "fit_seconds"] > 0
    weighted = frame[frame["backbone"] == "tiny"].groupby("seed")[["accuracy", "n_test"]]
    mean = weighted.apply(lambda rows: np.average(rows["accuracy"], weights=rows["n_test"].astype(float))).mean()
    assert table.loc["tiny", "accuracy"] == pytest.approx(mean)
    (area,) = predictions.loc[predictions["sample"] == predictions["sample"].iloc[0], "cell_area"].unique()
    image = bench.dataset.decode(int(np.flatnonzero(bench.dataset.table["sample"] == predictions["sample"].iloc[0])[0]))
    assert area == pytest.approx((image.max(axis=-1) > 0).sum(), rel=0.02)
    quartiles = ldl.evaluate(predictions, metrics="accuracy", by="cell_area")
    assert quartiles["cell_area"].nunique() == 4


def test_sides_are_disjoint_in_subjects(finished):
    bench, frame = finished
    for split in bench.splits:
        subjects = [set(bench.dataset.table["subject"].iloc[side]) for side in (split.train, split.val, split.test)]
        assert not subjects[0] & subjects[1]
        assert not subjects[0] & subjects[2]
        assert not subjects[1] & subjects[2]
    assert frame["guarantees"].str.contains("group-disjoint").all()


def test_the_store_holds_everything(finished):
    bench, frame = finished
    root = bench.store.root
    saved = pd.read_csv(root / "results.csv")
    assert list(saved) == list(frame)
    for name in METRICS:
        np.testing.assert_array_equal(saved[name], frame[name])
    timings = pd.read_csv(root / "timings.csv")
    assert (timings["seconds"] >= 0).all()
    assert timings.loc[timings["backbone"] == "tiny", "fit_seconds"].gt(0).all()
    settings = tomllib.loads((root / "settings.toml").read_text())
    assert settings["recipe"]["epochs"] == 2
    assert settings["benchmark"]["folds"] == [0, 2]
    assert settings["dataset"]["fingerprint"] == bench.dataset.fingerprint
    assert len(list((root / "trials").iterdir())) == 10
    histories = bench.histories()
    assert len(histories) == 4 * 2
    assert set(histories["backbone"]) == {"tiny"}


def test_a_saved_model_gives_the_predictions_of_its_trial(finished):
    bench, frame = finished
    trial = frame.loc[frame["backbone"] == "tiny", "trial"].iloc[0]
    classifier = ldl.load_classifier(bench.store.root / "trials" / trial)
    assert classifier.class_names == ("hem", "all")
    assert classifier.provenance["dataset"] == bench.dataset.info.name
    predictions = bench.predictions()
    part = predictions[predictions["trial"] == trial]
    rows = bench.dataset.table.reset_index().set_index("sample").loc[part["sample"], "index"]
    chosen = bench.dataset.subset(rows.to_numpy())
    again = classifier.predict(chosen, calibrated=False, show_progress=False)
    np.testing.assert_allclose(again["probability_all"], part["probability_all"], atol=1e-5)
    # The temperature of the row travels in the file.
    assert classifier.temperature == frame.loc[frame["backbone"] == "tiny", "temperature"].iloc[0]
    calibrated = classifier.predict(chosen, show_progress=False)["probability_all"]
    odds = np.log(part["probability_all"] / part["probability_hem"]).to_numpy() / classifier.temperature
    np.testing.assert_allclose(calibrated, 1 / (1 + np.exp(-odds)), atol=1e-5)


def test_a_second_run_reuses_everything_and_equals_the_first(finished, dataset, monkeypatch):
    bench, frame = finished
    before = {path: path.read_bytes() for path in bench.store.root.glob("*.csv")}
    again = ldl.Benchmark(dataset, ["tiny"], recipe=RECIPE, folds=[0, 2], seeds=[0, 1], store=bench.store.root)
    assert (again.plan()["status"] == "ok").all()
    for name in ("executors.run_trial", "grid_runner.run_baseline", "executors._work"):
        monkeypatch.setattr(f"leukemia_dl.benchmark.{name}", lambda *a: pytest.fail("a trial ran again"))
    pd.testing.assert_frame_equal(again.run(executor="in-process", show_progress=False), frame)
    assert {path: path.read_bytes() for path in bench.store.root.glob("*.csv")} == before


def test_the_same_run_elsewhere_gives_the_same_bytes(finished, dataset, tmp_path):
    bench, _ = finished
    ldl.Benchmark(dataset, ["tiny"], recipe=RECIPE, folds=[0, 2], seeds=[0, 1], store=tmp_path / "b").run(
        existing="rerun", executor="in-process", show_progress=False
    )
    assert (tmp_path / "b" / "results.csv").read_bytes() == (bench.store.root / "results.csv").read_bytes()


def test_a_failed_trial_is_a_row_and_runs_again_next_time(dataset, tmp_path):
    store = tmp_path / "store"
    bench = ldl.Benchmark(dataset, ["broken", "tiny"], recipe=RECIPE, baselines=[], store=store)
    frame = bench.run(executor="in-process", show_progress=False)
    assert list(frame["status"]) == ["failed", "ok"]
    assert frame["exception"][0] == "PluginError"
    assert frame["message"][0] == "The builder of 'broken' raised ZeroDivisionError: the plugin's own fault"
    trace = (store / frame["traceback"][0]).read_text()
    assert "in break_down" in trace
    assert trace.rstrip().endswith("PluginError: " + frame["message"][0])
    assert math.isnan(frame["accuracy"][0])
    assert list(bench.plan()["status"]) == ["failed", "ok"]
    assert set(bench.predictions()["backbone"]) == {"tiny"}
    ldl.register_backbone(
        ldl.BackboneSpec(name="broken", build=build, scaling="unit", native_size=32, min_size=8), replace=True
    )
    mended = ldl.Benchmark(dataset, ["broken", "tiny"], recipe=RECIPE, baselines=[], store=store)
    assert list(mended.run(executor="in-process", show_progress=False)["status"]) == ["ok", "ok"]


def test_on_error_raise(dataset, tmp_path):
    bench = ldl.Benchmark(dataset, ["broken"], recipe=RECIPE, baselines=[], store=tmp_path)
    with pytest.raises(TrainingError, match="the plugin's own fault"):
        bench.run(on_error="raise", executor="in-process", show_progress=False)


def test_an_interrupted_run_keeps_what_was_finished(dataset, tmp_path):
    bench = ldl.Benchmark(dataset, ["tiny", "stopped"], recipe=RECIPE, store=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        bench.run(executor="in-process", show_progress=False)
    assert list(pd.read_csv(tmp_path / "results.csv")["backbone"]) == ["tiny", *ldl.benchmark.baselines.BASELINES]
    assert list(bench.plan()["status"]) == ["ok", "to do", "ok", "ok", "ok"]


def test_the_tables_of_a_store_hold_the_trials_of_every_grid(dataset, tmp_path):
    def run(**grid):
        return ldl.Benchmark(dataset, ["tiny"], recipe=RECIPE, store=tmp_path, **grid).run(
            executor="in-process", show_progress=False
        )

    assert len(run(baselines=["majority"])) == 2
    assert len(run(baselines=[], seeds=[1])) == 1
    saved = pd.read_csv(tmp_path / "results.csv")
    assert sorted(saved["backbone"]) == ["majority", "tiny", "tiny"]
    assert sorted(saved["seed"].dropna()) == [0, 1]
    assert len(pd.read_csv(tmp_path / "timings.csv")) == 3


def test_a_model_that_was_not_kept_is_made_when_it_is_asked_for(dataset, tmp_path):
    def models(**settings):
        grid = {"recipe": RECIPE, "baselines": [], "store": tmp_path, **settings}
        ldl.Benchmark(dataset, ["tiny"], **grid).run(executor="in-process", show_progress=False)
        return len(list(tmp_path.glob("trials/*/model.keras")))

    assert models(save_models=False) == 0
    assert models() == 1
    assert models(save_models=False) == 1


def test_preliminary_and_no_val_leak(dataset, tmp_path):
    frame = ldl.Benchmark(
        dataset, ["tiny"], recipe=RECIPE, protocol="preliminary", baselines=["majority"], store=tmp_path
    ).run(executor="in-process", show_progress=False)
    assert list(frame["n_test"]) == [12, 12]
    assert frame["fold"].isna().all()


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"backbones": ["resnet5"]}, UnknownNameError, "Did you mean 'resnet50'"),
        ({"backbones": "cnn"}, SettingsError, "must be a list of names"),
        ({"backbones": []}, SettingsError, "at least 1"),
        ({"backbones": ["cnn", "cnn"]}, SettingsError, "none twice"),
        ({"baselines": ["size"]}, UnknownNameError, "no baseline 'size'"),
        ({"recipe": "slow"}, UnknownNameError, "no recipe 'slow'"),
        ({"protocol": "offical"}, UnknownNameError, "Did you mean 'official'"),
        ({"folds": [7]}, SettingsError, "7"),
        ({"seeds": []}, SettingsError, "seeds"),
        ({"recipe": 5}, UnknownNameError, "no recipe 5"),
        ({"protocol": "random", "allow_leakage": "no"}, SettingsError, "allow_leakage must be True or False"),
        ({"seeds": [0.5]}, SettingsError, "seeds"),
        ({"seeds": [1, 1]}, SettingsError, "none twice"),
        ({"seeds": [10**20]}, SettingsError, "seeds"),
        ({"n_folds": 3}, SettingsError, "n_folds and n_repeats are for the protocol kfold"),
        ({"n_folds": "3", "protocol": "kfold"}, SettingsError, "n_folds"),
        ({"recipe": ldl.Recipe(image_size=64), "backbones": ["inception_v3"]}, SettingsError, "at least 75 x 75"),
        ({"pipeline": ldl.Pipeline.default(64, canvas=450)}, SettingsError, "pipeline must be a Pipeline that ends in"),
        ({"protocol": "random"}, SplitError, "allow_leakage"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_read(dataset, tmp_path, arguments, error, says):
    with pytest.raises(error, match=says):
        ldl.Benchmark(dataset, **{"backbones": ["cnn"], "store": tmp_path / "store", **arguments})
    assert not (tmp_path / "store").exists()


def test_wrong_arguments_of_run(dataset, tmp_path):
    bench = ldl.Benchmark(dataset, ["tiny"], recipe=RECIPE, store=tmp_path / "store")
    with pytest.raises(SettingsError, match="existing must be one of"):
        bench.run(existing="all")
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StoreError, match="--store"):
        bench.run(executor="in-process", show_progress=False)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path, write_image):
    for label in ("a", "b"):
        for i in range(12):
            write_image(tmp_path / "data" / label / f"{i}.png", number=i + 100 * (label == "b"))
    victim = tmp_path / "data" / "a" / "3.png"
    victim.write_bytes(victim.read_bytes()[:50])
    dataset = ldl.Dataset.from_folder(tmp_path / "data")
    bench = ldl.Benchmark(
        dataset, ["tiny"], recipe=RECIPE, protocol="random", allow_leakage=True, store=tmp_path / "store"
    )
    with pytest.raises(ImageError, match=r"(?s)1 of \d+ images.*a/3\.png"):
        bench.run(executor="in-process", show_progress=False)


def test_fields_of_view_make_the_cell_baselines_not_applicable(tmp_path, write_image):
    for label in ("x", "y", "z"):
        for i in range(10):
            write_image(tmp_path / "data" / label / f"{i}.png", number=i + 100 * "xyz".index(label))
    bench = ldl.Benchmark(
        ldl.Dataset.from_folder(tmp_path / "data"),
        ["tiny"],
        recipe=RECIPE,
        protocol="random",
        allow_leakage=True,
        store=tmp_path / "store",
    )
    frame = bench.run(executor="in-process", show_progress=False).set_index("backbone")
    assert dict(frame["status"]) == {
        "tiny": "ok",
        "majority": "ok",
        "cell_size": "not_applicable",
        "cell_colour": "not_applicable",
    }
    assert "single cell" in frame.loc["cell_size", "message"]
    assert math.isnan(frame.loc["cell_size", "accuracy"])
    assert math.isnan(frame.loc["tiny", "sensitivity"])
    assert (bench.plan()["status"] != "to do").all()
    assert len(bench.run(executor="in-process", show_progress=False)) == 4


def test_stain_is_fitted_on_the_training_images_of_each_split_alone(dataset, tmp_path):
    """And travels with the model, so that predictions on files are those of the benchmark."""
    pipeline = ldl.Pipeline.default(32, canvas=450).then(Reinhard())
    bench = ldl.Benchmark(
        dataset, ["tiny"], recipe=RECIPE, folds=[0, 2], baselines=[], store=tmp_path, pipeline=pipeline
    )
    frame = bench.run(executor="in-process", show_progress=False)
    assert (frame["status"] == "ok").all(), frame["message"].tolist()
    plain = ldl.Pipeline.default(32, canvas=450)
    targets = []
    for split, trial in zip(bench.splits, frame["trial"], strict=True):
        classifier = ldl.load_classifier(tmp_path / "trials" / trial)
        expected = Reinhard().fit(bench.dataset.subset(split.train).to_numpy(plain, show_progress=False))
        assert classifier.pipeline.steps[-1] == expected
        targets.append(expected)
        test = bench.dataset.subset(split.test)
        again = classifier.predict(test, calibrated=False, show_progress=False).set_index("sample")
        known = bench.predictions().query("trial == @trial and side == 'test'").set_index("sample")
        np.testing.assert_allclose(again["probability_all"], known["probability_all"].loc[again.index], atol=1e-5)
    assert targets[0] != targets[1]
    settings = tomllib.loads((tmp_path / "settings.toml").read_text())
    assert ldl.Pipeline.from_dict(settings["pipeline"]["32"]) == pipeline


def test_a_crop_is_said_on_the_row(dataset, tmp_path):
    pipeline = ldl.Pipeline((CropToCell(), Resize(32)))
    bench = ldl.Benchmark(dataset, ["tiny"], recipe=RECIPE, baselines=[], store=tmp_path, pipeline=pipeline)
    assert "their size is not seen" in bench.run(executor="in-process", show_progress=False)["flags"].iloc[0]


def test_as_many_folds_are_drawn_as_are_asked_for(dataset, tmp_path):
    for number in (2, np.int64(4)):
        made = ldl.Benchmark(dataset, ["cnn"], protocol="kfold", n_folds=number, baselines=[], store=tmp_path)
        assert made.plan()["fold"].tolist() == list(range(number))
        tested = np.concatenate([split.test for split in made.splits])
        assert sorted(tested) == np.flatnonzero(made.dataset.table["split"] == "train").tolist()
