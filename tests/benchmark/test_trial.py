import dataclasses
import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leukemia_dl.benchmark.trial import Trial

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
