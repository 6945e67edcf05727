import numpy as np
import pytest

from leukemia_dl import Dataset, Pipeline, as_keras
from leukemia_dl.errors import SettingsError

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 9, 9, 3), dtype=np.uint8)
LABELS = np.arange(11) % 2
PIPELINE = Pipeline.default(8)


@pytest.fixture
def dataset() -> Dataset:
    return Dataset.from_arrays(IMAGES, LABELS, ("hem", "all"))


def test_in_order_it_is_the_pipeline(dataset: Dataset) -> None:
    batches = as_keras(dataset, PIPELINE, batch_size=np.int64(4))
    assert [len(batches[i][1]) for i in range(len(batches))] == [4, 4, 3]
    images = np.concatenate([batches[i][0] for i in range(3)])
    labels = np.concatenate([batches[i][1] for i in range(3)])
    np.testing.assert_array_equal(images, PIPELINE(IMAGES))
    np.testing.assert_array_equal(labels, LABELS)
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
            found = [int(np.flatnonzero((PIPELINE(IMAGES) == image).all(axis=(1, 2, 3)))[0]) for image in seen]
            assert sorted(found) == sorted(rows)
            assert [LABELS[row] for row in found] == [int(y) for i in range(len(batches)) for y in batches[i][1]]
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
    np.testing.assert_allclose(predicted, model.predict(PIPELINE(IMAGES), verbose=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"batch_size": 0}, "batch_size must be"),
        ({"rows": []}, "at least one"),
        ({"rows": [True] * 11}, "row numbers"),
        ({"rows": [11]}, "from 0 to 10. Received: 11 to 11"),
        ({"rows": [-1]}, "from 0 to 10"),
    ],
)
def test_bad_arguments(dataset: Dataset, arguments: dict, match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        as_keras(dataset, PIPELINE, **arguments)


def test_rows_without_label_are_for_prediction_alone() -> None:
    dataset = Dataset.from_arrays(IMAGES, LABELS - 1, ("hem", "all"))
    with pytest.raises(SettingsError, match=r"6 of the 11 rows have no label. Pass the rows of a split"):
        as_keras(dataset, PIPELINE)
    rows = np.flatnonzero(dataset.labels < 0)
    (images,) = as_keras(dataset, PIPELINE, rows)[0]
    np.testing.assert_array_equal(images, PIPELINE(IMAGES[rows]))


def test_splits_share_one_store(dataset: Dataset) -> None:
    stores = {as_keras(dataset, PIPELINE, rows).store.folder for rows in ([1, 2], [3], None)}
    assert len(stores) == 1
