"""A run as its store knows it, beside the benchmark that made it."""

import os
import shutil

import pandas as pd
import pytest

import leukemia_dl as ldl
import stores
from leukemia_dl.benchmark import plan
from leukemia_dl.benchmark.run_files import read_run
from leukemia_dl.errors import SettingsError, StoreError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    store = tmp_path_factory.mktemp("stored") / "store"
    return stores.made_up(store, stores.cells(), protocol="kfold", folds=[0, 2], seeds=[0, 5], missing=[2], failed=[0])


@pytest.mark.parametrize("name", ["results", "timings", "histories", "predictions"])
@pytest.mark.parametrize(
    "read", [lambda bench: read_run(bench.store.root), lambda bench: bench.stored()], ids=["files", "benchmark"]
)
def test_its_frames_are_those_of_the_benchmark(made, name, read):
    pd.testing.assert_frame_equal(getattr(read(made), name), getattr(made, name)(), check_dtype=name != "predictions")


def test_it_knows_the_grid_and_what_is_missing(made):
    run = read_run(made.store.root)
    plan = made.plan()
    assert run.grid["trial"].tolist() == plan["trial"].tolist()
    missing = run.grid.loc[~run.grid["trial"].isin(run.results["trial"]), "trial"]
    assert missing.tolist() == plan.loc[plan["status"] == "to do", "trial"].tolist()
    assert run.others == 0
    assert run.class_names == ["hem", "all"]


def sweep(store, *rates, **settings):
    """Return benchmarks of one net in one store that differ in their learning rate only."""
    recipes = [ldl.Recipe.preset("quick", image_size=32, epochs=3, learning_rate=rate) for rate in rates]
    return [stores.made_up(store, stores.cells(), ["cnn"], recipe=recipe, **settings) for recipe in recipes]


def test_a_second_benchmark_replaces_no_file_of_the_first(tmp_path):
    """20.2: each benchmark of a store keeps its own settings, grid and samples, and a reader asks which is meant."""
    first = stores.made_up(tmp_path, stores.cells(), ["cnn"])
    folder = first.stored().folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(before) == ["grid.csv", "samples.csv", "settings.toml"]
    second = stores.made_up(tmp_path, stores.cells(80), ["vgg16"], recipe="quick", seeds=[1])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(StoreError, match=r"holds 2 benchmarks. Give the folder of one instead: ") as asked:
        read_run(tmp_path)
    for bench in (first, second):
        assert f"{bench.stored().folder} ({bench.planned.backbones[0]}, majority, " in str(asked.value)
        run = read_run(bench.stored().folder)
        assert run.text == bench.to_toml()
        pd.testing.assert_frame_equal(run.results, bench.results())
        assert len(run.samples) == len(bench.dataset)
        assert run.others == 4


def test_a_benchmark_that_is_part_of_another_needs_no_choice(tmp_path):
    """20.2: a benchmark that was extended by seeds is read as a whole, whichever was run last."""
    for seeds in ([0], [0, 1], [1]):
        stores.made_up(tmp_path, stores.cells(), ["cnn"], seeds=seeds)
    assert set(read_run(tmp_path).results["seed"].dropna()) == {0, 1}
    assert read_run(tmp_path).others == 0


def test_trials_that_differ_in_a_setting_are_told_apart(tmp_path):
    """20.7: a sweep of the learning rate in one store gives rows with different `changes` and different names."""
    usual, fast = sweep(tmp_path, 1e-3, 0.01)
    assert usual.results().set_index("backbone").loc["cnn", "changes"] == "image_size=32"
    assert fast.results().set_index("backbone").loc["cnn", "changes"] == "image_size=32, learning_rate=0.01"
    assert (fast.results().set_index("backbone")["changes"].drop("cnn") == "").all()
    with pytest.raises(
        StoreError, match=r"holds 2 benchmarks(?=.*image_size=32\)).*image_size=32, learning_rate=0\.01"
    ):
        read_run(tmp_path)


def test_trials_of_two_versions_are_not_read_together(tmp_path, monkeypatch):
    """20.10: trials of another version of Keras are never mixed with those of this one in one table."""
    stores.made_up(tmp_path, stores.cells(), ["cnn"])
    monkeypatch.setattr(plan, "installed_version", {"keras": "9.9"}.get)
    stores.made_up(tmp_path, stores.cells(), ["cnn"])
    with pytest.raises(StoreError, match="holds 2 benchmarks"):
        read_run(tmp_path)


def test_a_record_of_another_trial_is_left_out(made, tmp_path, caplog):
    """20, mutant 7: a record of another trial in the folder of one is not shown."""
    copy = tmp_path / "copy"
    shutil.copytree(made.store.root, copy)
    names = read_run(copy).results["trial"]
    trial, other = names.iloc[-1], names.iloc[-2]
    shutil.rmtree(copy / "trials" / trial)
    (copy / "trials" / other).rename(copy / "trials" / trial)
    run = read_run(copy)
    assert set(names) - set(run.results["trial"]) == {trial, other}
    assert {trial, other} < set(run.grid["trial"])
    assert f"it holds the record of {other}" in caplog.text


def test_names_may_be_anything(tmp_path):
    """A patient called NaN-1, a comma, a quotation mark, a byte that is no UTF-8."""
    dataset = stores.cells(40, 8)
    strange = {"P0": "NaN-1", "P1": 'a,"b"', "P2": "half \udcff", "P3": "two words"}
    table = dataset.table
    for column in ("subject", "group"):
        table[column] = table[column].replace(strange)
    dataset = ldl.Dataset(table, dataset.class_names, dataset.info, dataset._arrays)
    made = stores.made_up(tmp_path, dataset, ["cnn"])
    assert set(strange.values()) <= set(read_run(tmp_path).samples["subject"])
    assert read_run(tmp_path).predictions["group"].tolist() == made.predictions()["group"].tolist()


def test_a_plan_writes_nothing_and_a_run_writes_first(tmp_path):
    bench = ldl.Benchmark(stores.cells(), ["cnn"], recipe=stores.RECIPE, protocol="holdout", store=tmp_path / "s")
    bench.plan()
    assert not (tmp_path / "s").exists()
    with pytest.raises(StoreError, match="is not the store of a benchmark"):
        read_run(tmp_path / "s")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("grid.csv", "cnn-", "../cnn-"),
        ("grid.csv", "cnn-", "a/cnn-"),
        ("grid.csv", "cnn-", ".cnn-"),
        ("grid.csv", "digest", "digits"),
        ("grid.csv", ",2,5", ",one,5"),
        ("samples.csv", "Made-1,", "Made-2,"),
        ("samples.csv", "group", "groop"),
        ("settings.toml", "class_names", "klass_names"),
        ("settings.toml", "[dataset]", "[dataset"),
        ("settings.toml", '"all"', '"hem"'),
    ],
)
def test_what_is_damaged_is_refused(made, tmp_path, file, old, new):
    copy = tmp_path / "copy"
    shutil.copytree(made.store.root, copy)
    path = stores.run_folder(copy) / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(StoreError, match=r"settings\.toml, grid\.csv or samples\.csv is damaged"):
        read_run(copy)


def test_predictions_of_other_classes_or_images_are_refused(made, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(made.store.root, copy)
    samples = stores.run_folder(copy) / "samples.csv"
    text = samples.read_text()
    samples.write_text("\n".join(text.splitlines()[:40]) + "\n")
    with pytest.raises(StoreError, match="its predictions are not of the classes and images of"):
        len(read_run(copy).predictions)
    samples.write_text(text)
    settings = samples.with_name("settings.toml")
    settings.write_text(settings.read_text().replace('"all",', '"all",\n    "more",'))
    with pytest.raises(StoreError, match="its predictions are not of the classes and images of"):
        len(read_run(copy).predictions)


@pytest.mark.parametrize("name", ["settings.toml", "grid.csv", "samples.csv"])
def test_the_files_of_a_benchmark_are_regular_and_not_too_large(made, tmp_path, name):
    """20.39: a pipe or a sparse file of gigabytes as settings, grid or samples is refused at once."""
    shutil.copytree(made.store.root, tmp_path / "copy")
    path = stores.run_folder(tmp_path / "copy") / name
    with path.open("r+b") as file:
        file.truncate(5 * 10**9)
    with pytest.raises(StoreError, match=rf"is damaged \({name} has more than"):
        read_run(path.parent)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StoreError, match=rf"is damaged \({name} is not a regular file"):
        read_run(tmp_path / "copy")
    if name == "settings.toml":
        with pytest.raises(SettingsError, match="is not a regular file"):
            ldl.Benchmark.from_toml(path)
