"""One built and compiled net for all folds and seeds: to the bit what a net built anew gives, and traced once."""

import dataclasses

import numpy as np
import pytest

from discs import IMAGES, LABELS, SMALL, counting
from leukemia_dl.training import ModelCache, Recipe, fit, model_cache

keras = pytest.importorskip("keras")
QUICK = Recipe(image_size=32, epochs=1, batch_size=8, learning_rate=3e-3)
VALIDATION = (IMAGES[40:], LABELS[40:])
SETTINGS = {
    "full": {},
    "everything": {"rotation": 20.0, "ema_momentum": 0.9, "class_balance": "weights", "label_smoothing": 0.1},
    "both": {"head_epochs": 1, "schedule": "constant", "warmup_fraction": 0.0},
}


def weights(result):
    return [array.copy() for array in result.model.get_weights()]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_net_that_is_used_again_gives_the_bits_of_a_new_one(name):
    recipe, kept = dataclasses.replace(QUICK, **SETTINGS[name]), ModelCache()
    for seed, count in ((0, 40), (1, 32)):  # two seeds, two folds of other lengths
        train = (IMAGES[:count], LABELS[:count])
        again = fit(SMALL, *train, 2, recipe, seed=seed, validation=VALIDATION, models=kept)
        found = weights(again)
        new = fit(SMALL, *train, 2, recipe, seed=seed, validation=VALIDATION)
        for mine, other in zip(found, weights(new), strict=True):
            np.testing.assert_array_equal(mine, other)
        columns = [column for column in new.history if column != "seconds"]
        assert again.history[columns].equals(new.history[columns])


def test_a_frozen_backbone_of_given_weights_is_not_even_built_again(tmp_path, monkeypatch):
    inputs = keras.Input((32, 32, 3))
    keras.Model(inputs, SMALL.build(inputs, None)).save_weights(tmp_path / "small.weights.h5")
    recipe = dataclasses.replace(
        QUICK, weights=str(tmp_path / "small.weights.h5"), head_epochs=2, epochs=0, head_units=5
    )
    built, plain = [], model_cache.build_model
    monkeypatch.setattr(model_cache, "build_model", lambda *a, **k: built.append(1) or plain(*a, **k))
    kept = ModelCache()
    for seed in range(3):
        found = weights(fit(SMALL, IMAGES, LABELS, 2, recipe, seed=seed, models=kept))
    assert len(built) == 1
    for mine, other in zip(found, weights(fit(SMALL, IMAGES, LABELS, 2, recipe, seed=2)), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_one_trace_serves_all_folds_and_seeds():
    traced = []
    spec = counting(traced)
    kept = ModelCache()
    fit(spec, IMAGES[:40], LABELS[:40], 2, QUICK, models=kept)
    # What is counted besides: building the net, and statistics of BatchNorm, which are not compiled.
    first = len(traced)
    for seed, count in ((1, 40), (0, 32), (1, 32)):
        fit(spec, IMAGES[:count], LABELS[:count], 2, QUICK, seed=seed, models=kept)
    per_fit = (len(traced) - first) / 3
    traced.clear()
    fit(spec, IMAGES[:40], LABELS[:40], 2, QUICK)
    assert per_fit < len(traced) == first


@pytest.mark.parametrize("change", [{"batch_size": 4}, {"label_smoothing": 0.2}, {"learning_rate": 1e-2}])
def test_other_settings_are_another_net(change):
    kept = ModelCache()
    one = fit(SMALL, IMAGES[:16], LABELS[:16], 2, QUICK, models=kept)
    assert fit(SMALL, IMAGES[:16], LABELS[:16], 2, QUICK, models=kept).model is one.model
    other = fit(SMALL, IMAGES[:16], LABELS[:16], 2, dataclasses.replace(QUICK, **change), models=kept)
    assert other.model is not one.model


def test_without_a_cache_two_fits_share_nothing():
    one = fit(SMALL, IMAGES[:16], LABELS[:16], 2, QUICK)
    before = weights(one)
    other = fit(SMALL, IMAGES[:16], LABELS[:16], 2, QUICK, seed=1)
    assert other.model is not one.model
    for mine, kept in zip(weights(one), before, strict=True):
        np.testing.assert_array_equal(mine, kept)


def test_a_file_of_weights_that_has_changed_is_read_again(tmp_path):
    recipe = dataclasses.replace(QUICK, weights=str(tmp_path / "small.weights.h5"), head_epochs=1, epochs=0)
    kept, first = ModelCache(), []
    for seed in (0, 1):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((32, 32, 3))
        keras.Model(inputs, SMALL.build(inputs, None)).save_weights(tmp_path / "small.weights.h5")
        first.append(weights(fit(SMALL, IMAGES[:16], LABELS[:16], 2, recipe, models=kept))[0])
    assert not np.array_equal(*first)


def test_a_plugin_that_adds_random_layers_to_what_it_fetches_has_them_anew_for_each_seed():
    def build(inputs, weights):
        x = keras.layers.Conv2D(4, 3, kernel_initializer="ones", name="fetched")(inputs)
        return keras.layers.Conv2D(4, 3, name="added")(x)

    spec = dataclasses.replace(SMALL, build=build, weights=("mine",))
    recipe, kept = dataclasses.replace(QUICK, weights="mine", head_epochs=2, epochs=0), ModelCache()
    for seed in (0, 1):
        found = weights(fit(spec, IMAGES, LABELS, 2, recipe, seed=seed, models=kept))
        for mine, other in zip(found, weights(fit(spec, IMAGES, LABELS, 2, recipe, seed=seed)), strict=True):
            np.testing.assert_array_equal(mine, other)
