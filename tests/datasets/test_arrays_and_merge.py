import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leukemia_dl.datasets import Dataset, DatasetInfo, make_splits
from leukemia_dl.errors import DataError, ImageError
from leukemia_dl.preprocess import Pipeline

INFO = DatasetInfo("one", "One", "CC", "Me.", canvas=450)
OTHER = DatasetInfo("two", "Two", "BY", "You.", canvas=450, synthetic=True)
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
CLASSES = ("hem", "all")


def arrays(info: DatasetInfo = INFO, **columns: list[str]) -> Dataset:
    return Dataset.from_arrays(IMAGES, np.arange(12) % 2, CLASSES, info, **columns)


def test_images_in_memory_are_a_data_set_like_any_other() -> None:
    subjects = [f"p{i // 2 * 2 + i % 2}" for i in range(12)]
    dataset = arrays(subjects=subjects, splits=["train"] * 8 + ["test"] * 4)
    assert (len(dataset), dataset.class_names, list(dataset.labels[:3])) == (12, CLASSES, [0, 1, 0])
    for row in (0, 5, 11):
        np.testing.assert_array_equal(dataset.decode(row), IMAGES[row])
    dataset.decode(0)[:] = 0
    np.testing.assert_array_equal(dataset.decode(0), IMAGES[0])
    part = dataset.subset([7, 2])
    np.testing.assert_array_equal(part.to_numpy(Pipeline()), IMAGES[[7, 2]])
    assert len(set(dataset.content_hashes)) == 12
    assert dataset.fingerprint == dataset.subset(range(11, -1, -1)).fingerprint != part.fingerprint
    assert make_splits(dataset, "fixed")[0].test.tolist() == [8, 9, 10, 11]
    with pytest.raises(DataError, match=r"images that are arrays, not files. Use decode\(row\)"):
        _ = dataset.paths


def test_equal_arrays_have_equal_contents_and_other_shapes_have_not() -> None:
    images = np.zeros((3, 4, 4, 3), np.uint8)
    assert len(set(Dataset.from_arrays(images, [0, 1, 0], CLASSES).content_hashes)) == 1
    flat = Dataset.from_arrays(images.reshape(3, 2, 8, 3), [0, 1, 0], CLASSES)
    assert set(flat.content_hashes).isdisjoint(Dataset.from_arrays(images, [0, 1, 0], CLASSES).content_hashes)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"images": IMAGES[0]}, DataError, r"Images are uint8 \(n, height, width, 3\)"),
        ({"images": IMAGES.astype(float)}, ImageError, "float64"),
        ({"labels": [0, 1]}, DataError, r"labels int64 \(2,\)"),
        ({"labels": np.arange(12) / 2}, DataError, "labels float64"),
        ({"labels": [2] * 12}, DataError, r"from 0 to 1.* Received: .* \[2\]"),
        ({"samples": ["a"] * 12}, DataError, "sample ids twice"),
        ({"subjects": ["a"]}, ValueError, "same length"),
        ({"splits": ["left"] * 12}, DataError, "unknown split 'left'"),
        ({"class_names": ("one",), "labels": [0] * 12}, DataError, "at least two"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict, error: type, match: str) -> None:
    arguments = {"images": IMAGES, "labels": np.arange(12) % 2, "class_names": CLASSES} | changes
    with pytest.raises(error, match=match):
        Dataset.from_arrays(**arguments)


def test_a_canvas_is_that_of_info_or_another() -> None:
    labels = np.arange(12) % 2
    assert Dataset.from_arrays(IMAGES, labels, CLASSES, INFO).info is INFO
    other = Dataset.from_arrays(IMAGES, labels, CLASSES, INFO, canvas=96).info
    assert (other.name, other.canvas) == ("one", 96)
    assert Dataset.from_arrays(IMAGES, labels, CLASSES, canvas=96).info.canvas == 96


def test_unknown_labels_and_columns_of_labels() -> None:
    dataset = Dataset.from_arrays(IMAGES, np.array([[-1], [0], [1]] * 4), CLASSES)
    assert dataset.labels.tolist() == [-1, 0, 1] * 4


@settings(max_examples=15)
@given(
    first=st.lists(st.integers(0, 11), min_size=1, unique=True),
    second=st.lists(st.integers(0, 11), min_size=1, unique=True),
)
def test_merge_keeps_every_row_once(first: list[int], second: list[int]) -> None:
    one = arrays(subjects=["s"] * 12).subset(first)
    two = arrays(OTHER, subjects=["s"] * 12).subset(second)
    merged = one.merge(two)
    table = merged.table
    assert len(merged) == len(first) + len(second)
    assert table["sample"].tolist() == [f"one/{i}" for i in first] + [f"two/{i}" for i in second]
    assert set(table["subject"]) == set(table["group"]) == {"one/s", "two/s"}, "patient s here is not patient s there"
    for row, image in enumerate([*first, *second]):
        np.testing.assert_array_equal(merged.decode(row), IMAGES[image])
    assert merged.labels.tolist() == [i % 2 for i in [*first, *second]]


def test_merge_maps_labels_and_keeps_what_authors_say() -> None:
    other = Dataset.from_arrays(IMAGES, np.arange(12) % 3, ("Benign", "Early", "odd"), OTHER)
    merged = arrays().merge(other, label_map={"Benign": "hem", "Early": "all"})
    assert merged.class_names == ("hem", "all", "odd")
    assert merged.table["label"].tolist()[12:] == ["hem", "all", "odd"] * 4
    info = merged.info
    assert (info.name, info.title, info.licence, info.citation) == ("one+two", "One + Two", "CC; BY", "Me. You.")
    assert (info.canvas, info.synthetic, info.class_names) == (450, True, ("hem", "all", "odd"))
    with pytest.raises(DataError, match="label_map names 'early'; the labels are hem, all, Benign, Early, odd"):
        arrays().merge(other, label_map={"early": "all"})


def test_merge_takes_classes_of_other_spelling_for_one(caplog: pytest.LogCaptureFixture) -> None:
    """20.19: (hem, all) and (HEM, ALL) became four classes."""
    merged = arrays().merge(Dataset.from_arrays(IMAGES, np.arange(12) % 2, ("HEM", "ALL"), OTHER))
    assert merged.class_names == CLASSES
    assert merged.labels.tolist() == [0, 1] * 12
    assert "2, such as 'ALL', 'all', which are taken for 'all'" in caplog.text


def test_parts_of_one_data_set_come_together_again() -> None:
    whole = arrays(subjects=[str(i // 4) for i in range(12)])
    again = whole.subset(range(5)).merge(whole.subset(range(5, 12)))
    pd.testing.assert_frame_equal(again.table, whole.table)
    assert again.info == whole.info
    with pytest.raises(DataError, match="sample ids twice"):
        whole.merge(whole)


def test_series_of_another_order_are_taken_by_their_place():
    """Rows of a sorted table: pandas would align subjects and sides by their index."""
    images, places = np.zeros((4, 8, 8, 3), np.uint8), [3, 2, 1, 0]
    subjects, sides = pd.Series(list("ABCD"), index=places), pd.Series(["train", "train", "test", "test"])
    dataset = Dataset.from_arrays(images, [0, 1, 0, 1], ("a", "b"), subjects=subjects, splits=sides)
    assert dataset.table["subject"].tolist() == list("ABCD")
    assert dataset.table["split"].tolist() == sides.tolist()
