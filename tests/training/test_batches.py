from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leukemia_dl.training.augmentation import PARAMETERS, Augmentation
from leukemia_dl.training.batches import Batches

IMAGES = np.arange(10 * 4 * 4 * 3, dtype=np.uint32).astype(np.uint8).reshape(10, 4, 4, 3)
LABELS = np.arange(10, dtype=np.int64)


def epoch(batches, number):
    return list(islice(batches, number * batches.steps, (number + 1) * batches.steps))


@given(n=st.integers(1, 10), batch_size=st.integers(1, 12), seed=st.integers(0, 99), number=st.integers(0, 3))
def test_an_epoch_hands_out_each_image_at_most_once_in_full_batches(n, batch_size, seed, number):
    batches = Batches(IMAGES[:n], LABELS[:n], batch_size, seed)
    parts = epoch(batches, number)
    labels = np.concatenate([label for _, label in parts])
    images = np.concatenate([image for image, _ in parts])
    assert all(len(label) == batches.batch_size == min(batch_size, n) for _, label in parts)
    assert len(set(labels)) == len(labels) == batches.steps * batches.batch_size
    assert len(labels) > n - batches.batch_size
    np.testing.assert_array_equal(images, IMAGES[labels])
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, number):
        return tuple(np.concatenate([label for _, label in epoch(Batches(IMAGES, LABELS, 2, seed), number)]))

    assert order(0, 1) == order(0, 1)
    assert len({order(0, 0), order(0, 1), order(1, 0), order(1, 1)}) == 4


def test_parameters_belong_to_images_whatever_the_batch_size():
    def drawn(batch_size, number):
        batches = Batches(IMAGES, LABELS, batch_size, 3, Augmentation(rotation=90))
        found = np.full((10, len(PARAMETERS)), np.nan, np.float32)
        for (images, parameters), labels in epoch(batches, number):
            np.testing.assert_array_equal(images, IMAGES[labels])
            found[labels] = parameters
        return found

    np.testing.assert_array_equal(drawn(5, 1), drawn(10, 1))
    assert not np.array_equal(drawn(5, 0), drawn(5, 1))


def test_the_example_has_the_form_of_every_batch():
    for augmentation in (None, Augmentation()):
        batches = Batches(IMAGES, LABELS, 4, 0, augmentation)
        assert forms(batches.example()) == forms(next(iter(batches)))


def forms(batch):
    inputs, labels = batch
    arrays = inputs if isinstance(inputs, tuple) else (inputs,)
    return [(array.shape, array.dtype) for array in (*arrays, labels)]


@pytest.mark.parametrize("size", [1, 3])
def test_one_image_is_a_batch(size):
    assert Batches(IMAGES[:1], LABELS[:1], size, 0).steps == 1
