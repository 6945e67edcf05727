import dataclasses

import pytest

from leukemia_dl import Recipe
from leukemia_dl.errors import SettingsError, UnknownNameError
from leukemia_dl.identity import digest


def test_a_preset_and_changes_to_it():
    recipe = Recipe.preset("quick", epochs=10)
    assert (recipe.name, recipe.epochs) == ("quick", 10)
    assert recipe == dataclasses.replace(Recipe.preset("quick"), epochs=10)
    assert Recipe(**recipe.to_dict()) == recipe
    assert "quick" in Recipe.presets()


def test_every_setting_changes_the_digest():
    recipe = Recipe()
    other = {
        "name": "x", "weights": "imagenet", "image_size": 97, "epochs": 4, "batch_size": 17, "learning_rate": 1e-2,
        "warmup": 0.2, "weight_decay": 0.0, "clip_norm": 2.0, "dropout": 0.0, "symmetries": False,
        "rotation": 10.0, "shift": 0.1, "brightness": 0.1, "contrast": 0.1, "stain": 0.1, "precision": "float32",
    }  # fmt: skip
    assert set(other) == set(recipe.to_dict())
    digests = {digest(dataclasses.replace(recipe, **{name: value}).to_dict()) for name, value in other.items()}
    assert len(digests | {digest(recipe.to_dict())}) == len(other) + 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", 2.5),
        ("epochs", True),
        ("batch_size", -1),
        ("image_size", "96"),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("learning_rate", "fast"),
        ("warmup", 1.0),
        ("weight_decay", -0.1),
        ("clip_norm", 0.0),
        ("dropout", 1),
        ("symmetries", "yes"),
        ("rotation", -1),
        ("shift", 0.6),
        ("stain", True),
        ("precision", "float16"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=name):
        Recipe(**{name: value})


def test_unknown_names_suggest_the_near_one():
    with pytest.raises(UnknownNameError, match="Did you mean 'quick'"):
        Recipe.preset("quik")
    with pytest.raises(UnknownNameError, match=r"no recipe setting 'epoch'\. Did you mean 'epochs'"):
        Recipe.preset("quick", epoch=3)
