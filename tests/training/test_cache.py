"""Features of frozen backbones: computed once, the same numbers as through the net, found again, safe on a bad disk."""

import dataclasses
import os

import numpy as np
import pytest

import leukemia_dl as ldl
from discs import IMAGES, LABELS, SMALL, counting
from leukemia_dl.datasets import cache as pixel_cache
from leukemia_dl.models.build import build_model, split_at_features
from leukemia_dl.models.classifier import predict_logits, softmax
from leukemia_dl.plugins import DISTRIBUTION
from leukemia_dl.training import FeatureCache, ModelCache, Recipe, Subset, cache, fit
from leukemia_dl.training.backends import prepare

keras = pytest.importorskip("keras")
HEAD = Recipe(image_size=32, head_epochs=3, epochs=0, batch_size=8, head_learning_rate=1e-2)
TRAIN = (IMAGES[:32], LABELS[:32])
ONE = LABELS[:32]  # one group of each class: there are no inner folds, whose heads would be trained too


@pytest.fixture(scope="module")
def extractor():
    keras.utils.set_random_seed(0)
    return split_at_features(build_model(SMALL, 32, 2))[0]


@pytest.fixture
def computed(monkeypatch):
    """Count the images that go through a net to be turned into features."""
    seen = []
    plain = cache.predict_in_batches

    def counting(model, inputs, batch_size):
        seen.append(len(inputs))
        return plain(model, inputs, batch_size)

    monkeypatch.setattr(cache, "predict_in_batches", counting)
    return seen


@pytest.fixture
def said(monkeypatch):
    """The warnings; not by caplog, since some library that the suite has imported before may have silenced logging."""
    heard = []
    for module in (cache, pixel_cache):
        monkeypatch.setattr(module._log, "warning", lambda text, *values: heard.append(text % values))
    return heard


LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("vgg16", "inception_v3", "xception")]


@pytest.mark.parametrize("name", ["cnn", "resnet50", *LARGE])
def test_features_of_an_image_do_not_depend_on_those_beside_it(name):
    """To the bit: what makes features from a cache those of any fold."""
    spec = ldl.get_backbone(name)
    images = np.random.default_rng(0).integers(0, 256, (12, spec.min_size, spec.min_size, 3), dtype=np.uint8)
    net, device = split_at_features(build_model(spec, spec.min_size, 2))[0], prepare()
    whole = FeatureCache().read(net, images, device, 8)[:]
    order = np.random.default_rng(1).permutation(12)
    np.testing.assert_array_equal(FeatureCache().read(net, images[order], device, 8)[:], whole[order])
    np.testing.assert_array_equal(FeatureCache().read(net, images[3:8], device, 8)[:], whole[3:8])


def test_a_head_on_cached_features_predicts_as_one_trained_through_the_frozen_net():
    """The oracle is Keras itself: the same head, trained on pixels through the frozen backbone, batch by batch."""
    recipe = dataclasses.replace(HEAD, dropout=0.0, head_epochs=10, head_learning_rate=0.1)
    ours = fit(SMALL, *TRAIN, 2, recipe, seed=3, groups=ONE)
    still = dataclasses.replace(recipe, head_epochs=1, head_learning_rate=1e-12)
    untrained = fit(SMALL, *TRAIN, 2, still, seed=3, groups=ONE).model
    from leukemia_dl.training.batches import Batches
    from leukemia_dl.training.optimizer import build_loss, build_optimizer

    for layer in untrained.layers:
        layer.trainable = layer.name == "logits"
    optimizer = build_optimizer(recipe, recipe.head_learning_rate, {})
    optimizer.build(untrained.trainable_variables)
    untrained.compile(optimizer, build_loss(recipe, 2), jit_compile=False)
    batches = Batches(TRAIN, 8, 3)
    optimizer.start(10 * batches.steps)
    stream = batches.stream()
    for _ in range(10 * batches.steps):
        untrained.train_on_batch(*next(stream))
    mine, theirs = (softmax(predict_logits(model, IMAGES[32:], 16)) for model in (ours.model, untrained))
    assert np.ptp(mine) > 0.2  # something was learned
    np.testing.assert_allclose(mine, theirs, atol=1e-3)
    np.testing.assert_allclose(softmax(ours.logits(IMAGES[32:])), mine, atol=1e-5)


def test_folds_and_seeds_share_what_was_computed_once(computed, tmp_path):
    weights = tmp_path / "small.weights.h5"
    inputs = keras.Input((32, 32, 3))
    keras.Model(inputs, SMALL.build(inputs, None)).save_weights(weights)
    recipe = dataclasses.replace(HEAD, weights=str(weights))
    features, models = FeatureCache(tmp_path / "features"), ModelCache()
    rows = np.arange(48)
    for fold in range(3):
        for seed in range(2):
            train, test = (Subset(IMAGES, part) for part in (rows[rows % 3 != fold], rows[rows % 3 == fold]))
            sides = (train, LABELS[train.rows])
            result = fit(SMALL, *sides, 2, recipe, seed=seed, groups=sides[1], features=features, models=models)
            found = result.logits(test)
            np.testing.assert_allclose(found, predict_logits(result.model, test, 32), atol=1e-4)
    assert sum(computed) == 48
    # Another process finds the file; other weights, other images and another size of batch are other features.
    first = (Subset(IMAGES, rows[:8]), LABELS[:8])
    fit(SMALL, *first, 2, recipe, groups=first[1], features=FeatureCache(tmp_path / "features"))
    assert sum(computed) == 48
    assert [file.name.startswith("small-") for file in list((tmp_path / "features").glob("*.npy"))] == [True]
    fit(SMALL, *TRAIN, 2, recipe, groups=ONE, features=features)
    assert sum(computed) == 48 + 32


def test_a_cache_in_memory_serves_the_inner_folds_of_a_fit(computed):
    recipe = dataclasses.replace(HEAD, select_epoch=True)
    fit(SMALL, *TRAIN, 2, recipe, groups=np.arange(32) // 4 * 2 + LABELS[:32])
    assert sum(computed) == 32  # five inner folds, the refit and its out-of-fold heads


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:6],
        lambda content: b"nothing of the kind" * 99,
    ],
)
def test_features_of_a_damaged_file_are_computed(extractor, computed, tmp_path, damage, said):
    device = prepare()
    first = FeatureCache(tmp_path).read(extractor, IMAGES, device, 8)[:]
    (file,) = list(tmp_path.glob("*.npy"))
    file.write_bytes(damage(file.read_bytes()))
    again = FeatureCache(tmp_path).read(extractor, IMAGES, device, 8)[:]
    np.testing.assert_array_equal(first, again)
    assert sum(computed) == 96
    assert len(said) == 1
    assert f"{file} is damaged, and is made again" in said[0]
    assert np.load(file).shape == first.shape


def test_where_nothing_can_be_written_features_are_held_in_memory(extractor, computed, tmp_path, said):
    (tmp_path / "file").write_text("in the way")
    features = FeatureCache(tmp_path / "file")
    found = features.read(extractor, IMAGES, prepare(), 8)
    np.testing.assert_array_equal(features.read(extractor, IMAGES, prepare(), 8)[:], found[:])
    assert len(found) == 48
    assert sum(computed) == 48
    assert len(said) == 1
    assert "held in memory" in said[0]


def test_images_that_were_changed_in_place_are_other_images(extractor):
    features, device, buffer = FeatureCache(), prepare(), IMAGES.copy()
    first = features.read(extractor, buffer, device, 8)[:]
    buffer[:] = IMAGES[::-1]
    np.testing.assert_array_equal(features.read(extractor, buffer, device, 8)[:], first[::-1])
    buffer[:] = IMAGES
    buffer.flags.writeable = False
    np.testing.assert_array_equal(features.read(extractor, buffer, device, 8)[:], first)


def factor(number):
    def build(inputs, weights):
        return keras.layers.Conv2D(4, 3, name="convolution")(inputs * number)

    return dataclasses.replace(SMALL, build=build)


def own_layer(number):
    class Own(keras.layers.Layer):
        def call(self, inputs):
            return inputs * number

    return dataclasses.replace(SMALL, build=lambda inputs, weights: keras.layers.Conv2D(4, 3)(Own()(inputs)))


def mute(number):
    class Mute(keras.layers.Layer):
        def call(self, inputs):
            return inputs * number

        def get_config(self):
            raise NotImplementedError

    return dataclasses.replace(SMALL, build=lambda inputs, weights: keras.layers.Conv2D(4, 3)(Mute()(inputs)))


@pytest.mark.parametrize("kind", [factor, own_layer, mute])
def test_nets_that_compute_something_else_do_not_share_features(kind, tmp_path):
    """Same layers, same weights: what differs is an operation, the code of a layer, or what it will not say."""
    features, device, found = FeatureCache(tmp_path), prepare(), []
    for number in (1.0, -3.0):
        keras.utils.set_random_seed(0)
        net, _ = split_at_features(build_model(kind(number), 32, 2))
        found.append(features.read(net, IMAGES[:4], device, 8)[:])
        np.testing.assert_array_equal(found[-1], FeatureCache().read(net, IMAGES[:4], device, 8)[:])
    assert not np.allclose(*found)


def named(number):
    """A net with a layer that is called as what it computes."""
    kind = "relu" if number > 0 else "tanh"

    def build(inputs, weights):
        inner = keras.Input(inputs.shape[1:])
        nested = keras.Model(inner, keras.layers.Activation(kind, name=kind)(inner))
        return keras.layers.Conv2D(4, 3)(nested(inputs - 0.5))

    return dataclasses.replace(SMALL, build=build)


def nested(number):
    import vit  # its layers have a configuration

    return dataclasses.replace(SMALL, build=vit.build, pooling="cls" if number > 0 else "mean")


@pytest.mark.parametrize("kind", [named, nested])
def test_nested_models_are_known_again_whatever_keras_calls_their_layers(kind, computed, tmp_path):
    """Of a net that is built again its features are read, and those of a net that differs inside are computed."""
    device, found = prepare(), []
    for number, images in ((1.0, 4), (1.0, 4), (-3.0, 8)):
        keras.utils.set_random_seed(0)
        net, _ = split_at_features(build_model(kind(number), 32, 2))
        found.append(FeatureCache(tmp_path).read(net, IMAGES[:4], device, 8)[:])
        assert sum(computed) == images
    np.testing.assert_array_equal(*found[:2])
    assert not np.allclose(found[0], found[2])


def test_what_a_killed_process_has_left_is_deleted_by_the_next(extractor, tmp_path):
    """20.42: what is a day old belongs to no running process."""
    left, alive = tmp_path / ".small.npy-0a1b2c3d.unfinished", tmp_path / ".small.npy-4e5f6a7b.unfinished"
    for file in (left, alive):
        file.write_bytes(b"x" * 10)
    os.utime(left, (1e9, 1e9))
    FeatureCache(tmp_path).read(extractor, IMAGES[:4], prepare(), 8)
    assert [file.exists() for file in (left, alive)] == [False, True]


def test_another_precision_device_or_version_computes_anew(extractor, computed, tmp_path, monkeypatch):
    """20, mutant 18: what a backend computes with is part of what names the features."""
    features, device = FeatureCache(tmp_path), prepare()
    images = IMAGES[:4].copy()
    images.flags.writeable = False
    for changes in ({}, {"dtype_policy": "mixed_bfloat16"}, {"name": "another"}, {"threads": device.threads + 1}):
        features.read(extractor, images, dataclasses.replace(device, **changes), 4)
    assert computed == [4, 4, 4, 4]
    features.read(extractor, images, device, 4)
    assert computed == [4, 4, 4, 4]
    assert len(list(tmp_path.glob("*.npy"))) == 4
    known = cache.installed_version
    for count, changed in enumerate((DISTRIBUTION, "keras", device.backend), 5):
        versions = {changed: "another"}
        monkeypatch.setattr(cache, "installed_version", lambda name, v=versions: v.get(name, known(name)))
        features.read(extractor, images, device, 4)
        assert computed == [4] * count, changed


# One built and compiled net for all folds and seeds: to the bit what a net built anew gives, and traced once.
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
    built, plain = [], cache.build_model
    monkeypatch.setattr(cache, "build_model", lambda *a, **k: built.append(1) or plain(*a, **k))
    kept = ModelCache()
    for seed in range(3):
        found = weights(fit(SMALL, IMAGES, LABELS, 2, recipe, seed=seed, groups=LABELS, models=kept))
    assert len(built) == 1
    new = fit(SMALL, IMAGES, LABELS, 2, recipe, seed=2, groups=LABELS)
    for mine, other in zip(found, weights(new), strict=True):
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
        first.append(weights(fit(SMALL, IMAGES[:16], LABELS[:16], 2, recipe, groups=LABELS[:16], models=kept))[0])
    assert not np.array_equal(*first)


def test_a_plugin_that_adds_random_layers_to_what_it_fetches_has_them_anew_for_each_seed():
    def build(inputs, weights):
        x = keras.layers.Conv2D(4, 3, kernel_initializer="ones", name="fetched")(inputs)
        return keras.layers.Conv2D(4, 3, name="added")(x)

    spec = dataclasses.replace(SMALL, build=build, weights=("mine",))
    recipe, kept = dataclasses.replace(QUICK, weights="mine", head_epochs=2, epochs=0), ModelCache()
    for seed in (0, 1):
        found = weights(fit(spec, IMAGES, LABELS, 2, recipe, seed=seed, groups=LABELS, models=kept))
        new = fit(spec, IMAGES, LABELS, 2, recipe, seed=seed, groups=LABELS)
        for mine, other in zip(found, weights(new), strict=True):
            np.testing.assert_array_equal(mine, other)
