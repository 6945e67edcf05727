"""Batches: an order that depends on seed and epoch alone, for a fit and as a `PyDataset` of Keras."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leukemia_dl import Dataset, Pipeline, as_keras
from leukemia_dl.errors import SettingsError
from leukemia_dl.training.augmentation import PARAMETERS, Augmentation
from leukemia_dl.training.batches import Batches

IMAGES = np.arange(10 * 4 * 4 * 3, dtype=np.uint32).astype(np.uint8).reshape(10, 4, 4, 3)
LABELS = np.arange(10, dtype=np.int64)
PIXELS = np.random.default_rng(0).integers(0, 256, (11, 9, 9, 3), dtype=np.uint8)
CLASSES = np.arange(11) % 2
PIPELINE = Pipeline.default(8)


def epoch(batches, number):
    return list(islice(batches.stream(), number * batches.steps, (number + 1) * batches.steps))


@given(n=st.integers(1, 10), batch_size=st.integers(1, 12), seed=st.integers(0, 99), number=st.integers(0, 3))
def test_an_epoch_hands_out_each_image_at_most_once_in_full_batches(n, batch_size, seed, number):
    batches = Batches((IMAGES[:n], LABELS[:n]), batch_size, seed)
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
        return tuple(np.concatenate([label for _, label in epoch(Batches((IMAGES, LABELS), 2, seed), number)]))

    assert order(0, 1) == order(0, 1)
    assert len({order(0, 0), order(0, 1), order(1, 0), order(1, 1)}) == 4


def test_parameters_belong_to_images_whatever_the_batch_size():
    def drawn(batch_size, number):
        batches = Batches((IMAGES, LABELS), batch_size, 3, Augmentation(rotation=90))
        found = np.full((10, len(PARAMETERS)), np.nan, np.float32)
        for (images, parameters), labels in epoch(batches, number):
            np.testing.assert_array_equal(images, IMAGES[labels])
            found[labels] = parameters
        return found

    np.testing.assert_array_equal(drawn(5, 1), drawn(10, 1))
    assert not np.array_equal(drawn(5, 0), drawn(5, 1))


@pytest.mark.parametrize("size", [1, 3])
def test_one_image_is_a_batch(size):
    assert Batches((IMAGES[:1], LABELS[:1]), size, 0).steps == 1


@pytest.fixture
def dataset() -> Dataset:
    return Dataset.from_arrays(PIXELS, CLASSES, ("hem", "all"))


def test_in_order_it_is_the_pipeline(dataset: Dataset) -> None:
    batches = as_keras(dataset, PIPELINE, batch_size=np.int64(4))
    assert [len(batches[i][1]) for i in range(len(batches))] == [4, 4, 3]
    images = np.concatenate([batches[i][0] for i in range(3)])
    labels = np.concatenate([batches[i][1] for i in range(3)])
    np.testing.assert_array_equal(images, PIPELINE(PIXELS))
    np.testing.assert_array_equal(labels, CLASSES)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    with pytest.raises(IndexError):
        batches[3]


def test_shuffled_every_epoch_has_each_image_once_in_an_order_of_its_own(dataset: Dataset) -> None:
    rows = np.array([9, 3, 4, 7, 0, 10])
    orders = []
    for seed in (0, 0, 1):
        batches = as_keras(dataset, PIPELINE, rows, batch_size=4, shuffle=True, seed=seed)
        for _ in range(2):
            seen = np.concatenate([batches[i][0] for i in range(len(batches))])
            found = [int(np.flatnonzero((PIPELINE(PIXELS) == image).all(axis=(1, 2, 3)))[0]) for image in seen]
            assert sorted(found) == sorted(rows)
            assert [CLASSES[row] for row in found] == [int(y) for i in range(len(batches)) for y in batches[i][1]]
            orders.append(found)
            batches.on_epoch_end()
    assert orders[:2] == orders[2:4]
    assert len({tuple(order) for order in orders}) == 4


def test_keras_trains_and_predicts_with_it(dataset: Dataset) -> None:
    import keras

    model = keras.Sequential([keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(as_keras(dataset, PIPELINE, shuffle=True, batch_size=4), epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    predicted = model.predict(as_keras(dataset, PIPELINE, batch_size=4), verbose=0)
    np.testing.assert_allclose(predicted, model.predict(PIPELINE(PIXELS), verbose=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"batch_size": 0}, "batch_size must be"),
    ],
)
def test_bad_arguments(dataset: Dataset, arguments: dict, match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        as_keras(dataset, PIPELINE, **arguments)


def test_rows_without_label_are_refused() -> None:
    dataset = Dataset.from_arrays(PIXELS, CLASSES - 1, ("hem", "all"))
    with pytest.raises(SettingsError, match=r"6 of the 11 rows have no label. Pass the rows of a split"):
        as_keras(dataset, PIPELINE)


def test_splits_share_one_store(dataset: Dataset, monkeypatch) -> None:
    stores, plain = [], Dataset.pixel_store
    monkeypatch.setattr(Dataset, "pixel_store", lambda *given: stores.append(plain(*given)) or stores[-1])
    for rows in ([1, 2], [3], None):
        as_keras(dataset, PIPELINE, rows)
    assert len({store.path for store in stores}) == 1
