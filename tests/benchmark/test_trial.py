import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leukemia_dl.benchmark.trial import Trial

TRIAL = Trial(
    kind="backbone", backbone="cnn", plugin="leukemia-dl", plugin_version="0.1.0", weights=None, dataset="d", split="s",
    pipeline={"steps": [{"step": "Resize", "size": 96}]}, recipe={"epochs": 3, "name": "quick"}, seed=0,
    backend="tensorflow", protocol="official_clean", fold=2,
)  # fmt: skip
OTHER = {
    "kind": "baseline", "backbone": "vgg16", "plugin": "other", "plugin_version": "2", "weights": "imagenet",
    "dataset": "e", "split": "t", "pipeline": {"steps": []}, "recipe": None, "seed": 1, "backend": "jax",
    "protocol": "kfold", "fold": None,
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
