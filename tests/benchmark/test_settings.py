"""A settings file repeats a run, or says why not."""

import os
import subprocess
import sys
import tomllib

import keras
import numpy as np
import pytest

import grids
import leukemia_dl as ldl
from command import fails
from leukemia_dl.errors import DataError, SettingsError, StoreError
from leukemia_dl.models import backbones as registry


@pytest.fixture(autouse=True)
def _backbones(_own_registry):
    grids.register(grids.tiny)


def bench(dataset, store, **settings):
    return ldl.Benchmark(dataset, ["tiny"], **{"recipe": grids.RECIPE, "store": store, "baselines": [], **settings})


def test_the_file_alone_repeats_the_run(dataset, tmp_path):
    settings = {"baselines": ["majority"], "folds": [0, 2], "seeds": [3], "threads": 1, "save_models": False}
    first = bench(dataset, tmp_path / "a", **settings)
    text = first.to_toml(tmp_path / "x.toml")
    assert (tmp_path / "x.toml").read_text() == text
    again = ldl.Benchmark.from_toml(tmp_path / "x.toml", store=tmp_path / "b")
    assert list(again.plan()["digest"]) == list(first.plan()["digest"])
    assert again.planned.compute.threads == 1
    assert not again.planned.save_models
    assert str(ldl.Benchmark.from_toml(tmp_path / "x.toml").store.root) == str(tmp_path / "a")
    frames = [made.run(executor="in-process", show_progress=False) for made in (first, again)]
    assert (frames[0]["status"] == "ok").all()
    tables = [(tmp_path / name / "results.csv").read_bytes() for name in "ab"]
    assert tables[0] == tables[1]
    # And so does the one that a run leaves in its store.
    assert (tmp_path / "a" / "settings.toml").read_text() == text
    assert ldl.Benchmark.from_toml(tmp_path / "b" / "settings.toml").to_toml().replace("/b", "/a") == text


@pytest.mark.parametrize(
    "settings",
    [
        {"protocol": ["kfold", "random"], "allow_leakage": True, "folds": "all"},
        {"protocol": "preliminary"},
        {"n_folds": 3, "protocol": ["kfold", "random"], "allow_leakage": True},
        {"pipeline": ldl.Pipeline.default(32, canvas=450).then(ldl.preprocess.Reinhard())},
        {"recipe": ldl.Recipe.preset("finetune", image_size="native", weights=None, if_no_weights={"epochs": 1})},
        {"callbacks": "leukemia_dl.training.callbacks:tensorboard"},
        {"callbacks": ldl.training.callbacks.tensorboard},
        {"device": "cpu", "seeds": range(2)},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_a_benchmark_can_be_given_comes_back(dataset, tmp_path, settings):
    made = bench(dataset, tmp_path / "s", **settings)
    made.to_toml(tmp_path / "x.toml")
    again = ldl.Benchmark.from_toml(tmp_path / "x.toml")
    assert list(again.plan()["digest"]) == list(made.plan()["digest"])
    assert again.planned.protocols == made.planned.protocols
    assert again.planned.compute == made.planned.compute
    if "callbacks" in settings:
        assert again.planned.callbacks == "leukemia_dl.training.callbacks:tensorboard"
    assert again.to_toml() == made.to_toml()


def test_numbers_of_numpy_are_those_of_python(dataset, tmp_path):
    def made(whole, real, array):
        changes = {"epochs": whole(2), "image_size": whole(32), "learning_rate": real(0.002), "rotation": real(8)}
        recipe = grids.RECIPE.changed(**changes, if_no_weights={"epochs": whole(1)})
        numbers = {"folds": array([0, 1]), "seeds": array([0, 3]), "threads": whole(1)}
        return bench(dataset, tmp_path / "s", recipe=recipe, protocol="kfold", **numbers)

    python, numpy = made(int, float, list), made(np.int64, np.float64, np.array)
    assert list(numpy.plan()["digest"]) == list(python.plan()["digest"])
    assert numpy.to_toml() == python.to_toml()


def test_one_fold_may_be_given_without_a_list(dataset, tmp_path):
    texts = {bench(dataset, tmp_path, protocol="kfold", folds=fold).to_toml() for fold in (1, np.int8(1))}
    assert texts == {bench(dataset, tmp_path, protocol="kfold", folds=[1]).to_toml()}


@pytest.mark.parametrize("seeds", [np.array([0.0]), np.array([[0]]), np.array([True]), np.array([-1]), np.array([])])
def test_what_is_no_seed_is_refused_of_numpy_too(dataset, tmp_path, seeds):
    with pytest.raises(SettingsError, match=r"seeds must be a"):
        bench(dataset, tmp_path / "s", seeds=seeds)


def test_callbacks_that_cannot_be_imported_are_refused(dataset, tmp_path):
    bench(dataset, tmp_path, callbacks=lambda context: []).to_toml(tmp_path / "x.toml")
    with pytest.raises(SettingsError, match="cannot be imported"):
        ldl.Benchmark.from_toml(tmp_path / "x.toml")


def test_backbones_of_a_script_have_to_be_registered(dataset, tmp_path):
    bench(dataset, tmp_path / "s").to_toml(tmp_path / "x.toml")
    registry._registered.clear()
    assert "There is no backbone 'tiny'" in fails("benchmark", tmp_path / "x.toml", "--plan")


def test_data_from_memory_have_to_be_passed(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    data = ldl.Dataset.from_arrays(images, np.arange(30) % 2, ("hem", "all"), subjects=[f"p{i}" for i in range(30)])
    made = bench(data, tmp_path / "s", protocol="holdout")
    made.to_toml(tmp_path / "x.toml")
    with pytest.raises(SettingsError, match="dataset="):
        ldl.Benchmark.from_toml(tmp_path / "x.toml")
    again = ldl.Benchmark.from_toml(tmp_path / "x.toml", dataset=data)
    assert list(again.plan()["digest"]) == list(made.plan()["digest"])


def test_other_data_are_refused(dataset, synthetic_root, tmp_path):
    bench(dataset, tmp_path / "s").to_toml(tmp_path / "x.toml")
    other = ldl.Dataset.load("synthetic", root=tmp_path / "other", **grids.SIZES, seed=1)
    for given in ({"dataset": other}, {"dataset": dataset.subset(np.arange(40))}):
        with pytest.raises(DataError, match=r"not the one that .*x\.toml was written for"):
            ldl.Benchmark.from_toml(tmp_path / "x.toml", **given)


def test_data_may_lie_elsewhere(dataset, synthetic_root, tmp_path):
    made = bench(dataset, tmp_path / "s")
    text = made.to_toml().replace(str(synthetic_root), "/nowhere")
    (tmp_path / "x.toml").write_text(text)
    again = ldl.Benchmark.from_toml(tmp_path / "x.toml", root=synthetic_root)
    assert list(again.plan()["digest"]) == list(made.plan()["digest"])


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (("[recipe]", "[recipes]"), SettingsError, "unknown table 'recipes'"),
        (("device =", "devise ="), SettingsError, "unexpected keyword argument 'devise'"),
        (("[pipeline.32]", "[pipelines.32]"), SettingsError, "unknown table 'pipelines'"),
        (('backend = "tensorflow"', 'backend = "torch"'), SettingsError, "KERAS_BACKEND=torch"),
        (('"tiny"', '"tiny2"'), ldl.errors.UnknownNameError, "Did you mean 'tiny'"),
        (("batch_size = 8", "batch_size = 0"), SettingsError, "batch_size"),
        (("[dataset]", "[dataset"), SettingsError, "cannot be read as TOML"),
        (('step = "CenterOnCanvas"', 'step = "CentreOnCanvas"'), ldl.errors.UnknownNameError, "CenterOnCanvas"),
    ],
)
def test_a_file_that_is_wrong_is_an_error_that_says_what_is(dataset, tmp_path, change, error, says):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("written for TensorFlow")
    text = bench(dataset, tmp_path / "s").to_toml()
    assert change[0] in text
    (tmp_path / "x.toml").write_text(text.replace(*change))
    with pytest.raises(error, match=says):
        ldl.Benchmark.from_toml(tmp_path / "x.toml")


def test_another_toml_file_is_none_of_ours(tmp_path):
    (tmp_path / "x.toml").write_text('[dataset]\nname = "synthetic"\n')
    with pytest.raises(SettingsError, match=r"is no file of to_toml: KeyError: 'benchmark'"):
        ldl.Benchmark.from_toml(tmp_path / "x.toml")


def test_no_file_and_no_place_for_one(dataset, tmp_path):
    with pytest.raises(SettingsError, match="cannot be read"):
        ldl.Benchmark.from_toml(tmp_path / "none.toml")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        bench(dataset, tmp_path / "s").to_toml(tmp_path / "file" / "x.toml")


def test_the_backend_of_the_file_is_chosen_where_nobody_has(dataset, tmp_path):
    text = bench(dataset, tmp_path / "s").to_toml().replace('backend = "tensorflow"', 'backend = "none"')
    (tmp_path / "x.toml").write_text(text)
    program = f"import leukemia_dl as ldl\ntry: ldl.Benchmark.from_toml({str(tmp_path / 'x.toml')!r})\n"
    program += "except Exception as error: print(type(error).__name__, error)"
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert "KERAS_BACKEND must be one of" in ran.stdout


def leaves(table, path=()):
    for name, value in table.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))


def test_no_wrong_type_anywhere_ends_in_a_traceback(dataset, tmp_path, monkeypatch):
    """Every key of the file, with values of every other type."""
    monkeypatch.chdir(tmp_path)  # some of them are names of folders, where a data set is drawn
    import copy

    import tomli_w

    content = tomllib.loads(bench(dataset, tmp_path / "s", callbacks=ldl.training.callbacks.tensorboard).to_toml())
    draw, refused = np.random.default_rng(0), 0
    values = [5, -1.5, "x", "", "\u00b2", True, [], {}, ["x"], [[1]], [{}], {"x": 1}, "a\x00b"]
    for path in leaves(content):
        for value in draw.permutation(len(values))[:4]:
            changed = copy.deepcopy(content)
            table = changed
            for name in path[:-1]:
                table = table[name]
            table[path[-1]] = values[value]
            (tmp_path / "x.toml").write_text(tomli_w.dumps(changed))
            try:
                ldl.Benchmark.from_toml(tmp_path / "x.toml", dataset=None if path[0] == "dataset" else dataset)
            except ldl.errors.LeukemiaDLError:
                refused += 1
    assert refused > 100


def test_a_class_that_was_left_out_is_left_out_again(tmp_path, write_image):
    """20.32: the settings remember classes that were left out, and `report --root` reads the same images."""
    for number in range(30):
        write_image(tmp_path / "cells" / ("hem", "all", "odd")[number % 3] / f"{number}.png", number, 32)
    dataset = ldl.Dataset.load("folder", tmp_path / "cells").drop_classes(["odd"])
    bench = ldl.Benchmark(dataset, ["cnn"], protocol="random", allow_leakage=True, store=tmp_path / "store")
    bench.to_toml(tmp_path / "settings.toml")
    (tmp_path / "cells").rename(tmp_path / "moved")
    again = ldl.Benchmark.from_toml(tmp_path / "settings.toml", root=tmp_path / "moved")
    assert again.dataset.class_names == ("all", "hem")
    assert again.dataset.fingerprint == bench.dataset.fingerprint
