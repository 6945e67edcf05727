from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leukemia_dl.training.batches import Batches, symmetry

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
    assert images.dtype == np.float32
    assert labels.dtype == np.int32


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, number):
        return tuple(np.concatenate([label for _, label in epoch(Batches(IMAGES, LABELS, 2, seed), number)]))

    assert order(0, 1) == order(0, 1)
    assert len({order(0, 0), order(0, 1), order(1, 0), order(1, 1)}) == 4


def test_augmentation_draws_all_eight_symmetries_and_changes_nothing_in_place():
    images = IMAGES.copy()
    images.flags.writeable = False
    batches = Batches(images, LABELS, 10, 0, augment=True)
    seen = set()
    for batch, labels in islice(batches, 40):
        for image, label in zip(batch, labels, strict=True):
            codes = [c for c in range(8) if np.array_equal(symmetry(IMAGES[label], c), image)]
            assert len(codes) == 1
            seen.update(codes)
    assert seen == set(range(8))


def test_symmetries_are_the_group_of_the_square():
    image = IMAGES[0]
    results = {symmetry(image, code).tobytes() for code in range(8)}
    assert len(results) == 8
    np.testing.assert_array_equal(symmetry(image, 0), image)
    for code in range(4, 8):  # reflections undo themselves
        np.testing.assert_array_equal(symmetry(symmetry(image, code), code), image)
    turned = image
    for _ in range(4):
        turned = symmetry(turned, 1)
    np.testing.assert_array_equal(turned, image)
    assert all(symmetry(symmetry(image, a), b).tobytes() in results for a in range(8) for b in range(8))


def test_on_step_counts():
    seen = []
    batches = Batches(IMAGES, LABELS, 4, 0, on_step=lambda e, s: seen.append((e, s)))
    list(islice(batches, 4))
    assert seen == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize("size", [1, 3])
def test_one_image_is_a_batch(size):
    assert Batches(IMAGES[:1], LABELS[:1], size, 0).steps == 1
