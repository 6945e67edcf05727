"""A run as its store knows it, beside the benchmark that made it."""

import shutil

import pandas as pd
import pytest

import leukemia_dl as ldl
import stores
from leukemia_dl.benchmark.stored import read_run, run_of
from leukemia_dl.errors import StoreError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    store = tmp_path_factory.mktemp("stored") / "store"
    return stores.made_up(store, stores.cells(), protocol="kfold", folds=[0, 2], seeds=[0, 5], missing=[2], failed=[0])


@pytest.mark.parametrize("name", ["results", "timings", "histories", "predictions"])
@pytest.mark.parametrize("read", [lambda bench: read_run(bench.store.root), run_of], ids=["files", "benchmark"])
def test_its_frames_are_those_of_the_benchmark(made, name, read):
    pd.testing.assert_frame_equal(getattr(read(made), name), getattr(made, name)(), check_dtype=name != "predictions")


def test_it_knows_the_grid_and_what_is_missing(made):
    run = read_run(made.store.root)
    plan = made.plan()
    assert run.grid["trial"].tolist() == plan["trial"].tolist()
    assert run.missing["trial"].tolist() == plan.loc[plan["status"] == "to do", "trial"].tolist()
    assert run.others == 0
    assert run.class_names == ["hem", "all"]


def test_trials_of_another_benchmark_are_counted_but_not_shown(tmp_path):
    dataset = stores.cells()
    stores.made_up(tmp_path, dataset, ["cnn"])
    stores.made_up(tmp_path, dataset, ["cnn", "vgg16"], seeds=[1])
    run = read_run(tmp_path)
    assert run.others == 1
    assert set(run.results["seed"].dropna()) == {1}


def test_names_may_be_anything(tmp_path):
    """A patient called NA, a comma, a quotation mark, a byte that is no UTF-8."""
    dataset = stores.cells(40, 8)
    strange = {"P0": "NA", "P1": 'a,"b"', "P2": "half \udcff", "P3": " spaces "}
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
        ("settings.toml", "[recipe]", "[recipes]"),
        ("settings.toml", 'title = "Made-up cells"', "title = 7"),
        ("settings.toml", "class_names", "klass_names"),
        ("settings.toml", "[dataset]", "[dataset"),
        ("settings.toml", 'url = ""', "url = 5"),
        ("settings.toml", '"all"', '"hem"'),
        ("settings.toml", 'step = "CenterOnCanvas"', "step = 3"),
        ("settings.toml", '{ step = "CenterOnCanvas", size = 16 },', '{ step = "Mine" }, 3,'),
        ("settings.toml", "[pipeline.32]", "[pipeline.abc]"),
    ],
)
def test_what_is_damaged_is_refused(made, tmp_path, file, old, new):
    copy = tmp_path / "copy"
    shutil.copytree(made.store.root, copy)
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new, 1))
    with pytest.raises(StoreError, match=r"settings\.toml, grid\.csv or samples\.csv is damaged"):
        read_run(copy)


def test_a_trial_of_other_classes_or_images_is_left_out(made, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(made.store.root, copy)
    samples = copy / "samples.csv"
    lines = samples.read_text().splitlines()
    samples.write_text("\n".join(lines[:40]) + "\n")
    run = read_run(copy)
    assert (run.results["status"] != "ok").all()
    settings = copy / "settings.toml"
    samples.write_text("\n".join(lines) + "\n")
    settings.write_text(settings.read_text().replace('"all",', '"all",\n    "more",'))
    assert (read_run(copy).results["status"] != "ok").all()
