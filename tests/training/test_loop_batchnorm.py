"""BatchNorm statistics: exact over the images, frozen layers left alone, and the trap that they are there for."""

import dataclasses

import numpy as np
import pytest

import grids
import leukemia_dl as ldl
from discs import SMALL
from leukemia_dl.models.build import Head, batchnorm_layers, build_model
from leukemia_dl.models.classifier import predict_logits
from leukemia_dl.training import Recipe, fit
from leukemia_dl.training.augmentation import Augmentation, augment_images
from leukemia_dl.training.loop import reestimate_batchnorm

keras = pytest.importorskip("keras")


def test_statistics_are_those_of_the_images():
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    inputs = keras.Input((8, 8, 3))
    norm = keras.layers.BatchNormalization(momentum=0.99)
    model = keras.Model(inputs, norm(inputs))
    assert reestimate_batchnorm(model, images, 8) == 1
    pixels = images.reshape(-1, 3).astype(float)
    np.testing.assert_allclose(np.asarray(norm.moving_mean), pixels.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(norm.moving_variance), pixels.var(axis=0), rtol=1e-4)
    assert norm.momentum == 0.99


class Block(keras.layers.Layer):
    """A composite layer: its convolution and its BatchNorm are no layers of the model."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.convolution = keras.layers.Conv2D(4, 3, use_bias=False)
        self.norm = keras.layers.BatchNormalization()

    def call(self, x, training=False):
        return self.norm(self.convolution(x), training=training)


def test_statistics_inside_composite_and_nested_layers_are_those_of_the_images():
    """20.8: BatchNorm inside a composite layer, a nested model or both is re-estimated too."""
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    inputs = keras.Input((8, 8, 3))
    first, inner = Block(), Block()
    x = first(inputs)
    model = keras.Model(inputs, keras.Sequential([inner, keras.layers.ReLU()])(x))
    assert batchnorm_layers(model) == [first.norm, inner.norm]
    assert reestimate_batchnorm(model, images, 8) == 2
    values = np.asarray(first.convolution(images.astype(np.float32))).reshape(-1, 4)
    np.testing.assert_allclose(np.asarray(first.norm.moving_mean), values.mean(axis=0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(np.asarray(first.norm.moving_variance), values.var(axis=0), rtol=1e-3)
    assert not np.allclose(np.asarray(inner.norm.moving_variance), 1)


def test_a_look_at_the_statistics_does_not_change_the_seeds_of_dropout():
    images = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    model = build_model(ldl.get_backbone("cnn"), 32, 2, head=Head(dropout=0.5))
    seeds = [v for v in model.non_trainable_variables if "seed" in v.path]
    before = [np.array(keras.ops.convert_to_numpy(seed)) for seed in seeds]
    assert reestimate_batchnorm(model, images, 8) == len(batchnorm_layers(model))
    assert seeds
    for seed, value in zip(seeds, before, strict=True):
        np.testing.assert_array_equal(np.asarray(seed), value)


def test_frozen_layers_and_nets_without_any_are_left_alone():
    images = np.full((4, 8, 8, 3), 7, np.uint8)
    inputs = keras.Input((8, 8, 3))
    norm = keras.layers.BatchNormalization()
    model = keras.Model(inputs, norm(inputs))
    norm.trainable = False
    assert reestimate_batchnorm(model, images, 2) == 0
    np.testing.assert_array_equal(np.asarray(norm.moving_mean), 0)
    assert reestimate_batchnorm(keras.Model(inputs, keras.layers.ReLU()(inputs)), images, 2) == 0
    assert reestimate_batchnorm(model, images[:0], 2) == 0


def test_with_reestimated_statistics_resnet50_predicts_what_it_gives_in_training_mode():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 32, 32, 3)).astype(np.uint8)
    keras.utils.set_random_seed(0)
    model = build_model(ldl.get_backbone("resnet50"), 32, 2)
    expected = np.asarray(model(images, training=True))  # by the statistics of this batch
    stale = np.abs(predict_logits(model, images, 16) - expected).max()  # moved by a hundredth of the way
    assert reestimate_batchnorm(model, images, 16) == 53
    np.testing.assert_allclose(predict_logits(model, images, 16), expected, rtol=1e-2, atol=1e-2)
    assert stale > 0.1


def two(inputs, weights):
    x = keras.layers.ReLU()(grids.tiny(inputs, None))
    return keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(x))


def test_statistics_of_deeper_layers_do_not_depend_on_the_order_of_the_images():
    """20.15: in batches of one class, as images lie in folders, deeper layers would see other statistics."""
    labels = np.arange(192) // 96
    images = np.random.default_rng(0).integers(0, 60, (192, 32, 32, 3)).astype(np.uint8)
    images[96:] += 180
    spec = dataclasses.replace(SMALL, build=two)
    model = fit(spec, images, labels, 2, Recipe(image_size=32, epochs=1, batch_size=16, symmetries=False)).model
    deeper = batchnorm_layers(model)[1]
    found = np.array(deeper.moving_variance)
    reestimate_batchnorm(model, images, 192)
    together = np.array(deeper.moving_variance)
    reestimate_batchnorm(model, images, 64)
    in_runs = np.array(deeper.moving_variance)
    assert np.abs(found / together - 1).max() < 0.2 * np.abs(in_runs / together - 1).max()


def test_the_last_statistics_are_of_all_training_images_as_they_are_augmented():
    """20.15: statistics are of images as they are turned and mirrored in training; mutant 4: of all training images."""
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (100, 32, 32, 3)) * rng.uniform(0, 1, (100, 1, 1, 1))  # dark and bright images
    images = (noise / np.arange(1, 33)[:, None, None]).astype(np.uint8)  # darker downwards
    labels = np.arange(100) % 2
    for changes in ({"symmetries": True, "shift": 0.2, "stain": 0.2}, {"symmetries": False}):
        recipe = Recipe(image_size=32, epochs=1, batch_size=25, **changes)
        model = fit(SMALL, images, labels, 2, recipe, seed=3).model
        (norm,) = batchnorm_layers(model)
        found = [np.array(norm.moving_mean), np.array(norm.moving_variance)]
        pixels = augment_images(images, Augmentation(), 3, epoch=-1) if recipe.augments else images
        reestimate_batchnorm(model, pixels, 100)
        np.testing.assert_allclose(found[0], np.asarray(norm.moving_mean), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(found[1], np.asarray(norm.moving_variance), rtol=1e-3, atol=1e-5)
        reestimate_batchnorm(model, images[:64] if not recipe.augments else images, 100)
        gap = np.abs(found[0] / np.asarray(norm.moving_mean) - 1).max()
        assert gap > 0.01
