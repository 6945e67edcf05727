import copy
import dataclasses
import hashlib
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import leukemia_dl as ldl
from leukemia_dl import Recipe
from leukemia_dl.errors import DataError, SettingsError, UnknownNameError, WeightsError
from leukemia_dl.identity import digest
from leukemia_dl.models.build import weights_identity


def test_a_preset_and_changes_to_it():
    recipe = Recipe.preset("quick", epochs=10)
    assert (recipe.name, recipe.epochs) == ("quick", 10)
    assert recipe == dataclasses.replace(Recipe.preset("quick"), epochs=10)
    assert Recipe(**recipe.to_dict()) == recipe
    assert "quick" in Recipe.presets()


OTHER = {
    "name": "x", "weights": "imagenet", "if_no_weights": {"epochs": 5}, "image_size": 97, "scaling": "unit",
    "head": "flatten", "standardize": True, "head_solver": "logistic", "head_units": 8, "sigmoid": True,
    "head_epochs": 1, "epochs": 4,
    "select_epoch": True, "preprocessing": "published", "batch_size": 17, "learning_rate": 1e-2,
    "head_learning_rate": 1e-2, "input_lr_ratio": 0.5, "schedule": "constant",
    "warmup_fraction": 0.2, "weight_decay": 0.0, "global_clipnorm": 0.0, "ema_momentum": 0.9, "dropout": 0.0,
    "label_smoothing": 0.1, "class_balance": "weights", "tta": True, "symmetries": False, "rotation": 10.0,
    "shift": 0.1, "brightness": 0.1, "contrast": 0.1, "stain": 0.1, "precision": "float32",
}  # fmt: skip
"""A value of each setting that is not its default."""


def test_every_setting_changes_the_digest():
    recipe = Recipe()
    assert set(OTHER) == set(recipe.to_dict())
    digests = {digest(recipe.to_dict() | {name: value}) for name, value in OTHER.items()}
    assert len(digests | {digest(recipe.to_dict())}) == len(OTHER) + 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", -1),
        ("head_epochs", -1),
        ("head_epochs", "many"),
        ("head_units", -1),
        ("head_learning_rate", 0),
        ("head", "pool"),
        ("scaling", "caffe"),
        ("schedule", None),
        ("ema_momentum", 1.0),
        ("label_smoothing", -0.1),
        ("class_balance", True),
        ("input_lr_ratio", 0),
        ("input_lr_ratio", 1.5),
        ("input_lr_ratio", "low"),
        ("sigmoid", 1),
        ("select_epoch", "yes"),
        ("tta", 0),
        ("image_size", "Native"),
        ("epochs", 2.5),
        ("epochs", True),
        ("batch_size", -1),
        ("image_size", "96"),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("learning_rate", "fast"),
        ("warmup_fraction", 1.0),
        ("weight_decay", -0.1),
        ("global_clipnorm", -1.0),
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


def test_a_wrong_value_in_if_no_weights_is_refused_by_name():
    with pytest.raises(SettingsError, match="epochs must be a whole number"):
        Recipe(if_no_weights={"epochs": -1})


def test_numbers_of_numpy_are_those_of_python():
    settings = {"epochs": 3, "image_size": 64, "head_units": 8, "dropout": 0.5, "input_lr_ratio": 0.5, "rotation": 5.0}
    numbers = {name: (np.int32 if isinstance(value, int) else np.float32)(value) for name, value in settings.items()}
    python, numpy = Recipe(**settings), Recipe(**numbers)
    assert numpy == python
    assert digest(numpy.to_dict()) == digest(python.to_dict())
    assert numpy.to_toml() == python.to_toml()
    for wrong in (np.bool_(True), np.float64(3), np.int64(-1)):
        with pytest.raises(SettingsError, match="epochs must be a whole number"):
            Recipe(epochs=wrong)


def test_unknown_names_suggest_the_near_one():
    with pytest.raises(UnknownNameError, match="Did you mean 'quick'"):
        Recipe.preset("quik")
    with pytest.raises(UnknownNameError, match=r"no recipe setting 'epoch'\. Did you mean 'epochs'"):
        Recipe.preset("quick", epoch=3)
    with pytest.raises(UnknownNameError, match=r"no recipe setting 'epoch'\. Did you mean 'epochs'"):
        Recipe(if_no_weights={"epoch": 3})


@pytest.mark.parametrize("name", Recipe.presets())
def test_presets_are_recipes_in_and_out_of_toml(name, tmp_path):
    recipe = Recipe.preset(name)
    (tmp_path / "copy.toml").write_text(recipe.to_toml())
    assert Recipe.from_toml(tmp_path / "copy.toml") == recipe


@given(names=st.sets(st.sampled_from(sorted(set(OTHER) - {"head_solver"}))))  # which needs others; presets have it
def test_any_settings_go_through_toml(names, tmp_path_factory):
    recipe = Recipe(**{name: OTHER[name] for name in names})
    path = tmp_path_factory.mktemp("recipes") / "mine.toml"
    path.write_text(recipe.to_toml())
    assert Recipe.from_toml(path) == recipe
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert hash(recipe) == hash(Recipe.from_toml(path))


def test_a_toml_file_may_start_from_a_preset_and_is_named_after_itself(tmp_path):
    path = tmp_path / "gentle.toml"
    path.write_text('preset = "finetune"\nlearning_rate = 1e-5\n')
    assert Recipe.from_toml(path) == Recipe.preset("finetune", name="gentle", learning_rate=1e-5)
    path.write_text("image_size = 32\n")
    assert Recipe.from_toml(path) == Recipe(name="gentle", image_size=32)


def test_files_that_are_no_recipes_say_why(tmp_path):
    path = tmp_path / "mine.toml"
    with pytest.raises(DataError, match=r"mine\.toml cannot be read: No such file"):
        Recipe.from_toml(path)
    path.write_text("epochs = = 3")
    with pytest.raises(DataError, match=r"mine\.toml cannot be read"):
        Recipe.from_toml(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"mine\.toml cannot be read"):
        Recipe.from_toml(path)
    path.write_text("epoch = 3")
    with pytest.raises(UnknownNameError, match="Did you mean 'epochs'"):
        Recipe.from_toml(path)
    path.write_text('preset = "finetun"')
    with pytest.raises(UnknownNameError, match="Did you mean 'finetune'"):
        Recipe.from_toml(path)


def test_a_backbone_has_its_own_size_and_without_weights_its_own_settings():
    vgg16, cnn = (ldl.get_backbone(name) for name in ("vgg16", "cnn"))
    recipe = Recipe.preset("finetune", image_size="native")
    own = recipe.for_backbone(vgg16)
    assert own == dataclasses.replace(recipe, weights="imagenet", image_size=224, if_no_weights={})
    assert own.for_backbone(vgg16) == own
    other = recipe.for_backbone(cnn)
    assert (other.weights, other.head_epochs, other.image_size) == (None, 0, 128)
    assert {name: getattr(other, name) for name in recipe.if_no_weights} == recipe.if_no_weights
    # Random weights by choice are treated alike, and what was set by hand is not replaced.
    assert Recipe.preset("finetune", image_size="native", weights="random").for_backbone(cnn) == other
    assert Recipe.preset("finetune", image_size="native", weights="random").for_backbone(vgg16).epochs == 60
    assert Recipe.preset("finetune", epochs=2).for_backbone(cnn).epochs == 2
    assert recipe.changed(epochs=3).changed(batch_size=5).for_backbone(cnn).epochs == 3
    assert Recipe(weights=None, head_epochs=4).for_backbone(cnn).head_epochs == 4
    file = dataclasses.replace(recipe, weights="weights/cnn.h5")
    assert file.for_backbone(cnn) == dataclasses.replace(file, image_size=128, if_no_weights={})


def test_a_recipe_can_be_copied_and_sent_and_equal_settings_are_one():
    recipe = Recipe.preset("finetune", callbacks="module:function")
    for twin in (copy.deepcopy(recipe), pickle.loads(pickle.dumps(recipe))):
        assert twin == recipe
        assert twin.callbacks == "module:function"
    assert digest(Recipe(dropout=0, rotation=180).to_dict()) == digest(Recipe(dropout=0.0, rotation=180.0).to_dict())
    assert digest(dataclasses.replace(recipe, callbacks=None).to_dict()) == digest(recipe.to_dict())
    assert 'callbacks = "module:function"' in recipe.to_toml()
    native = Recipe(weights="imagenet", if_no_weights={"image_size": "native"})
    assert native.for_backbone(ldl.get_backbone("cnn")).image_size == 128


def test_backbones_with_weights_of_their_own_names_can_be_compared(tmp_path):
    """20.26: each backbone's default, or a mapping; a name with a dot is a name where the backbone offers it."""
    vgg16, cnn = (ldl.get_backbone(name) for name in ("vgg16", "cnn"))
    plugin = dataclasses.replace(cnn, name="plugin", weights=("own.v1", "own.v2"))
    every = Recipe.preset("finetune", weights="pretrained")
    assert [every.for_backbone(spec).weights for spec in (vgg16, cnn, plugin)] == ["imagenet", None, "own.v1"]
    assert every.for_backbone(cnn).head_epochs == 0
    assert every.for_backbone(plugin).head_epochs == 20
    assert digest(every.for_backbone(vgg16).to_dict()) == digest(
        Recipe.preset("finetune").for_backbone(vgg16).to_dict()
    )
    mapped = Recipe.preset("finetune", weights={"vgg16": "random", "plugin": "own.v2"})
    assert [mapped.for_backbone(spec).weights for spec in (vgg16, plugin)] == [None, "own.v2"]
    assert weights_identity(plugin, mapped.for_backbone(plugin).weights) == "own.v2"
    (tmp_path / "mine.h5").write_bytes(b"weights")
    files = Recipe(weights={"vgg16": "pretrained", "plugin": str(tmp_path / "mine.h5")})
    assert weights_identity(vgg16, files.for_backbone(vgg16).weights) == "imagenet"
    expected = f"sha256:{hashlib.sha256(b'weights').hexdigest()}"
    assert weights_identity(plugin, files.for_backbone(plugin).weights) == expected
    with pytest.raises(SettingsError, match="weights does not name cnn: add it"):
        mapped.for_backbone(cnn)
    with pytest.raises(WeightsError, match=r"Allowed: None, 'own.v1', 'own.v2', .*weights='pretrained', or a mapping"):
        weights_identity(plugin, Recipe.preset("finetune", weights="imagenet").for_backbone(plugin).weights)
    path = tmp_path / "mapped.toml"
    path.write_text(mapped.to_toml() + "callbacks = 'module:function'\n")
    assert Recipe.from_toml(path) == mapped
    assert Recipe.from_toml(path).callbacks == "module:function"


def test_a_head_on_features_of_random_weights_is_refused():
    with pytest.raises(SettingsError, match="cnn has no weights for 'linear_probe': leave it out, or pass weights"):
        Recipe.preset("linear_probe").for_backbone(ldl.get_backbone("cnn"))


@pytest.mark.parametrize("preset", ["linear_probe", "finetune", "published_v1"])
def test_pretrained_is_in_a_trial_the_name_of_what_is_fetched(preset):
    """Presets ask for each backbone's own weights, and equal weights are equal settings: a trial is not run again."""
    for name in ("vgg16", "resnet50", "inception_v3", "xception"):
        spec = ldl.get_backbone(name)
        now, before = (Recipe.preset(preset, **more).for_backbone(spec) for more in ({}, {"weights": "imagenet"}))
        assert now == before
        assert digest(now.to_dict()) == digest(before.to_dict())
