"""Which trials a benchmark asks for, what names them, and what their recipes changed."""

import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import leukemia_dl as ldl
import stores
from leukemia_dl.benchmark import plan as plan_module
from leukemia_dl.benchmark.plan import Trial, changes_of
from leukemia_dl.benchmark.run_files import read_run
from leukemia_dl.errors import SettingsError
from leukemia_dl.reporting.summary import summaries_of

DATASET = stores.cells(60, 12)


def bench(store, **settings):
    settings = {"recipe": stores.RECIPE, "protocol": "holdout", **settings}
    return ldl.Benchmark(DATASET, ["cnn"], store=store, **settings)


def digests(store, **settings):
    return bench(store, **settings).plan().set_index("backbone")["digest"].to_dict()


def test_versions_that_compute_name_a_trial_and_that_of_this_library_does_not(tmp_path, monkeypatch):
    """20.10: a release of this library keeps every trial, a new Keras or backend makes new ones."""
    versions = {"leukemia-dl": "1.0", "keras": "3.1", "tensorflow": "2.1", "jax": "0.9", "scikit-learn": "1.8"}
    monkeypatch.setattr(plan_module, "installed_version", versions.__getitem__)
    before = digests(tmp_path)
    versions["leukemia-dl"] = "1.1"
    assert digests(tmp_path) == before
    backend = bench(tmp_path).planned.trials[0].trial.backend
    for name, changed in (("keras", {"cnn"}), (backend, {"cnn"}), ("scikit-learn", {"cell_size", "cell_colour"})):
        old = digests(tmp_path)
        versions[name] += ".9"
        assert {key for key, value in digests(tmp_path).items() if value != old[key]} == changed
    monkeypatch.setattr(plan_module, "RESULTS_VERSION", plan_module.RESULTS_VERSION + 1)
    assert not set(digests(tmp_path).values()) & set(before.values())


def test_a_plugin_keeps_its_own_version(tmp_path, monkeypatch):
    """20.10: the version of the plugin that provides a backbone names its trials."""
    spec = dataclasses.replace(ldl.get_backbone("cnn"), name="of_a_script")
    ldl.register_backbone(spec, replace=True)
    (trial,) = [cell.trial for cell in ldl.Benchmark(
        DATASET, ["of_a_script"], recipe=stores.RECIPE, protocol="holdout", baselines=[], store=tmp_path
    ).planned.trials]  # fmt: skip
    assert trial.plugin == "this process"
    assert trial.plugin_version.startswith("source ")
    assert bench(tmp_path).planned.trials[0].trial.plugin_version is None


def test_a_baseline_is_named_by_what_it_uses_only(tmp_path):
    """20.10: `majority` is one trial in a store with two image sizes, recipes and pipelines, not two."""
    first = digests(tmp_path)
    other = digests(tmp_path, recipe=ldl.Recipe(image_size=64), pipeline=ldl.Pipeline.published_v1)
    assert first.pop("cnn") != other.pop("cnn")
    assert first == other
    (trial, *_) = [cell.trial for cell in bench(tmp_path).planned.trials if cell.spec is None]
    assert (trial.pipeline, trial.recipe, trial.backend, trial.seed) == (None, None, None, None)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (ldl.Recipe.preset("quick"), ""),
        (ldl.Recipe.preset("quick", learning_rate=0.01, rotation=20), "learning_rate=0.01, rotation=20"),
        # `cnn` has no weights: what replaces them in the preset is no change, and what replaces that is one.
        (ldl.Recipe.preset("finetune"), ""),
        (ldl.Recipe.preset("finetune", epochs=5), "epochs=5"),
        (ldl.Recipe.preset("linear_probe", epochs=2, weights=None), "weights=random, epochs=2"),
        (ldl.Recipe(name="mine", batch_size=8), "batch_size=8"),
    ],
)
def test_changes_are_those_to_the_preset_as_it_is_for_the_backbone(recipe, expected):
    """20.7: `changes` holds each setting that differs from the preset, and no other."""
    spec = ldl.get_backbone("cnn")
    recipe = recipe.for_backbone(spec)
    usual = recipe.pipeline(int(recipe.image_size), None)
    found = changes_of(recipe, spec, usual, usual)
    assert sorted(found.split(", ")) == sorted(expected.split(", "))


def test_another_pipeline_is_a_change_and_a_file_of_weights_is_named_without_its_folder(tmp_path):
    """20.7: trials that differ in the preprocessing only are told apart too."""
    recipe = ldl.Recipe.preset("finetune", weights=str(tmp_path / "w.h5"))
    spec, usual = ldl.get_backbone("vgg16"), ldl.Pipeline()
    found = changes_of(recipe.for_backbone(spec), spec, usual.then(ldl.preprocess.PadToSquare()), usual)
    assert found == "weights=w.h5, pipeline=PadToSquare()"


def test_repetitions_of_folds_are_planned_and_their_predictions_are_runs_of_their_own(tmp_path):
    dataset = stores.cells(120, 24)
    stores.made_up(tmp_path, dataset, ["cnn"], protocol="kfold", folds=None, n_folds=3, n_repeats=2)
    run = read_run(tmp_path)
    frame = run.predictions
    assert frame.groupby("repeat")["fold"].unique().map(sorted).to_dict() == {0: [0, 1, 2], 1: [3, 4, 5]}
    table = ldl.evaluate(frame, metrics="accuracy").set_index("backbone")
    assert table.loc["cnn", ["seeds", "images", "groups"]].tolist() == [2, 120, 24]
    assert run.settings["benchmark"]["n_repeats"] == 2
    with pytest.raises(SettingsError, match="n_folds and n_repeats are for the protocol kfold"):
        bench(tmp_path, n_repeats=2)


def test_the_primary_metric_suits_the_classes_and_is_kept_in_the_settings(tmp_path):
    assert bench(tmp_path).planned.primary_metric == "accuracy"
    unequal = DATASET.subset(
        np.flatnonzero(DATASET.labels == 0)[:10].tolist() + np.flatnonzero(DATASET.labels == 1).tolist()
    )
    made = ldl.Benchmark(unequal, ["cnn"], recipe=stores.RECIPE, protocol="random", allow_leakage=True, store=tmp_path)
    assert made.planned.primary_metric == "balanced_accuracy"
    stores.made_up(tmp_path, stores.cells(200, 40), ["cnn", "vgg16"], protocol="holdout", primary_metric="auroc")
    (summary,) = summaries_of(read_run(tmp_path))
    assert "auroc" in summary.leaderboard
    assert any(text.startswith("Ranks are by AUROC, chosen before the run; ") for text in summary.sentences())
    for wrong in ("acc", "prevalence"):
        with pytest.raises(SettingsError, match="primary_metric must be one of"):
            bench(tmp_path, primary_metric=wrong)


TRIAL = Trial(
    kind="backbone", backbone="cnn", plugin="leukemia-dl", plugin_version="0.1.0", weights=None, dataset="d", split="s",
    pipeline={"steps": [{"step": "Resize", "size": 96}]}, recipe={"epochs": 3, "name": "quick"}, seed=0,
    backend="tensorflow", protocol="official_clean", fold=2, versions={"results": 1, "keras": "3.15.0"},
)  # fmt: skip
# Of TRIAL; it names folders in the stores of users.
GOLDEN = "2647d897a10ec357"
OTHER = {
    "kind": "baseline", "backbone": "vgg16", "plugin": "other", "plugin_version": "2", "weights": "imagenet",
    "dataset": "e", "split": "t", "pipeline": {"steps": []}, "recipe": None, "seed": 1, "backend": "jax",
    "protocol": "kfold", "fold": None, "versions": {"results": 2, "keras": "3.15.0"},
}  # fmt: skip


def test_the_digest_depends_on_every_field():
    assert set(OTHER) == {field.name for field in dataclasses.fields(Trial)}
    digests = {dataclasses.replace(TRIAL, **{name: value}).digest for name, value in OTHER.items()}
    assert len(digests | {TRIAL.digest}) == len(OTHER) + 1


def test_the_digest_does_not_depend_on_the_order_of_keys():
    turned = dataclasses.replace(TRIAL, recipe={"name": "quick", "epochs": 3})
    assert turned.digest == TRIAL.digest


def test_the_folder_is_readable_and_unique():
    assert re.fullmatch(r"cnn-official_clean-fold2-seed0-[0-9a-f]{12}", TRIAL.folder)
    assert dataclasses.replace(TRIAL, fold=None, seed=None).folder.startswith("cnn-official_clean-")


@given(st.text(min_size=1, max_size=20))
def test_a_folder_is_one_safe_name(name):
    folder = dataclasses.replace(TRIAL, backbone=name, protocol="random").folder
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", folder)
    assert folder not in (".", "..")


@pytest.mark.parametrize("name", list(OTHER))
def test_fields_are_frozen(name):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(TRIAL, name, OTHER[name])


def test_the_digest_is_the_sha_256_of_canonical_json():
    canonical = json.dumps(dataclasses.asdict(TRIAL), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert TRIAL.digest == hashlib.sha256(canonical.encode()).hexdigest()
    # On whatever platform.
    assert TRIAL.digest.startswith(GOLDEN)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
RECIPES = st.dictionaries(st.text(max_size=3), VALUES, max_size=4)
TEXTS = st.text(max_size=4)
TRIALS = st.builds(
    Trial, kind=st.sampled_from(["backbone", "baseline"]), backbone=TEXTS, plugin=TEXTS, plugin_version=TEXTS,
    weights=st.none() | TEXTS, dataset=TEXTS, split=TEXTS, pipeline=RECIPES, recipe=st.none() | RECIPES,
    seed=st.none() | st.integers(0, 2**32 - 1), backend=st.none() | TEXTS, protocol=TEXTS,
    fold=st.none() | st.integers(0, 9), versions=RECIPES,
)  # fmt: skip


def turned(value):
    """The same value with every dictionary in another order."""
    if isinstance(value, dict):
        return {key: turned(inner) for key, inner in reversed(value.items())}
    return [turned(inner) for inner in value] if isinstance(value, list) else value


@given(TRIALS)
def test_no_order_changes_the_digest(trial):
    assert Trial(**turned(trial.to_dict())).digest == trial.digest


@given(TRIALS, TRIALS, st.sampled_from(sorted(OTHER)))
def test_any_changed_field_changes_the_digest(trial, other, name):
    changed = dataclasses.replace(trial, **{name: getattr(other, name)})
    same = json.dumps(changed.to_dict(), sort_keys=True) == json.dumps(trial.to_dict(), sort_keys=True)
    assert (changed.digest == trial.digest) == same
