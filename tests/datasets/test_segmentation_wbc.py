"""segmentation_WBC: classes joined to images by number, one part at a time, masks never taken for images."""

import csv
import itertools
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from leukemia_dl.datasets import Dataset, make_splits
from leukemia_dl.errors import DataError, SettingsError, SplitError

Writer = Callable[..., Path]
Lister = Callable[..., None]
NAMES = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil")
LABELS = {1: 2, 100: 4, 10: 3, 2: 1, 3: 5}  # not in the order of the files
SAMPLES = ["1/001", "1/002", "1/003", "1/010", "1/100"]
FIRST, SECOND = "Class Labels of Dataset 1.csv", "Class Labels of Dataset 2.csv"


def table(labels: dict[int, int], column: str = "class label") -> str:
    return f"image ID,{column}\r\n" + "".join(f"{number},{label}\r\n" for number, label in labels.items())


@pytest.fixture
def public(tmp_path: Path, write_image: Writer) -> Path:
    """The layout of the public repository: images, masks, and CSV files that differ in their headers."""
    top = tmp_path / "segmentation_WBC-master"
    for number, suffix in itertools.product(LABELS, ("bmp", "png")):
        write_image(top / "Dataset 1" / f"{number:03d}.{suffix}", number)
    for number in (1, 2):
        write_image(top / "Dataset 2" / f"{number:03d}.bmp", 1000 + number, size=12)
    write_image(top / "Dataset 1.png")
    (top / FIRST).write_text(table(LABELS), newline="")
    (top / SECOND).write_text(table({1: 5, 2: 4}, "class"), newline="")
    return top


@pytest.fixture
def flat(public: Path, tmp_path: Path) -> Path:
    """Images and CSV file of part 1 in one folder."""
    folder = tmp_path / "other" / "cells"
    shutil.copytree(public / "Dataset 1", folder)
    shutil.copy(public / FIRST, folder / "class_labels.csv")
    return folder


def test_part_one(public: Path) -> None:
    dataset = Dataset.load("segmentation_wbc", root=public, part=1)
    assert dataset.class_names == NAMES
    assert dataset.table["sample"].tolist() == SAMPLES
    assert dataset.table["label"].tolist() == ["lymphocyte", "neutrophil", "basophil", "monocyte", "eosinophil"]
    assert {path.suffix for path in dataset.paths} == {".bmp"}
    assert dataset.table[["subject", "group", "fold", "split"]].isna().all(axis=None)


def test_part_two_has_another_header(public: Path) -> None:
    dataset = Dataset.load("segmentation_wbc", root=public, part="2")  # as the command line gives it
    assert dataset.table[["sample", "label"]].to_numpy().tolist() == [["2/001", "basophil"], ["2/002", "eosinophil"]]


def test_two_parts_are_a_question(public: Path) -> None:
    with pytest.raises(DataError, match=r"several copies of .*Dataset 1, .*Dataset 2. Pass one of them as root"):
        Dataset.load("segmentation_wbc", root=public)
    shutil.rmtree(public / "Dataset 2")
    assert len(Dataset.load("segmentation_wbc", root=public)) == 5
    with pytest.raises(DataError, match=r"does not look like part 2 of segmentation_WBC.* Found in it: .*Dataset 1"):
        Dataset.load("segmentation_wbc", root=public, part=2)


@pytest.mark.parametrize("part", [0, 3, True, "one", 1.5])
def test_unknown_part(public: Path, part: object) -> None:
    with pytest.raises(SettingsError, match=rf"part must be one of '1', '2'. Received: part='{part}'"):
        Dataset.load("segmentation_wbc", root=public, part=part)


def test_all_layouts_and_places_have_one_fingerprint(public: Path, flat: Path) -> None:
    expected = Dataset.load("segmentation_wbc", root=public, part=1)
    inside = public.parent / "inside" / "Dataset_1"
    shutil.copytree(public / "Dataset 1", inside)
    shutil.copy(public / FIRST, inside)
    for root in (public / "Dataset 1", public.parent / "inside", inside, flat, flat.parent):
        dataset = Dataset.load("segmentation_wbc", root=root)
        assert dataset.table[["sample", "label"]].equals(expected.table[["sample", "label"]])
        assert dataset.fingerprint == expected.fingerprint
    shutil.rmtree(public.parent / "inside")
    shutil.rmtree(flat.parent)
    assert Dataset.load("segmentation_wbc", root=public.parent, part=1).fingerprint == expected.fingerprint


def test_one_part_needs_no_labels_of_the_other(public: Path) -> None:
    (public / FIRST).unlink()
    assert len(Dataset.load("segmentation_wbc", root=public, part=2)) == 2
    with pytest.raises(
        DataError, match=r"need one CSV file .* 'Class Labels of Dataset 1\.csv'.* Class Labels of Data"
    ):
        Dataset.load("segmentation_wbc", root=public, part=1)


def test_the_label_file_of_the_other_part_is_never_taken(public: Path) -> None:
    (public / FIRST).unlink()
    shutil.move(public / SECOND, public / "Dataset 1" / SECOND)
    with pytest.raises(DataError, match=r"need one CSV file with their classes, 'Class Labels of Dataset 1\.csv'"):
        Dataset.load("segmentation_wbc", root=public / "Dataset 1")


def test_flat_folder_of_part_two(flat: Path) -> None:
    assert Dataset.load("segmentation_wbc", root=flat, part=2).table["sample"][0] == "2/001"
    (flat / "class_labels.csv").rename(flat / SECOND)
    assert Dataset.load("segmentation_wbc", root=flat).table["sample"][0] == "2/001"
    with pytest.raises(DataError, match=r"need one CSV file with their classes, 'Class Labels of Dataset 1\.csv'"):
        Dataset.load("segmentation_wbc", root=flat, part=1)


def test_several_or_no_label_files(flat: Path) -> None:
    (flat / "more.csv").write_text(table(LABELS))
    with pytest.raises(DataError, match=r"CSV files that are there: class_labels\.csv, more\.csv"):
        Dataset.load("segmentation_wbc", root=flat)
    for path in flat.glob("*.csv"):
        path.unlink()
    with pytest.raises(DataError, match="CSV files that are there: none"):
        Dataset.load("segmentation_wbc", root=flat)


def test_two_copies_are_a_question(flat: Path) -> None:
    shutil.copytree(flat, flat.parent / "copy")
    with pytest.raises(DataError, match=r"several copies of segmentation_WBC in .*cells.*copy"):
        Dataset.load("segmentation_wbc", root=flat.parent)


def test_image_without_row_and_row_without_image(flat: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = {**LABELS, 7: 1, 8: 1}
    del labels[10]
    (flat / "class_labels.csv").write_text(table(labels))
    with caplog.at_level(logging.WARNING):
        dataset = Dataset.load("segmentation_wbc", root=flat)
    assert dataset.table["sample"].tolist() == SAMPLES
    assert dataset.labels.tolist() == [1, 0, 4, -1, 3]
    found = "3 numbers have an image and no row, so no label, or a row and no image: 7, 8, 10"
    assert f"class_labels.csv: {found}" in caplog.text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "\r\n10,3",
            "\r\n10,3\r\n10,3",
            "row 4: '10', '3'. Wanted: image ID, a whole number like 1 that no other row has",
        ),
        ("\r\n10,3", "\r\n003,3", "row 5: '3', '5'. Wanted: image ID, a whole number like 1 that no other row has"),
        ("\r\n10,3", "\r\n10,6", "row 3: '10', '6'. Wanted: .*a class from 1 to 5"),
        ("\r\n10,3", "\r\n10,0", "'10', '0'. Wanted"),
        ("\r\n10,3", "\r\n10", "'10', ''. Wanted"),
        ("\r\n10,3", "\r\n10,٣", "a class from 1 to 5"),
        ("\r\n10,3", "\r\n../10,3", r"row 3: '\.\./10', '3'. Wanted: image ID, a whole number like 1"),
        ("\r\n10,3", "\r\n,3", "'', '3'. Wanted: image ID, a whole number"),
        ("\r\n10,3", "\r\n" + "1" * 5000 + ",3", "image ID, a whole number"),
        ("\r\n10,3", "\r\n10\0,3", "image ID, a whole number|cannot be read as CSV"),
        ("\r\n10,3", '\r\n"' + "1" * 140_000 + '",3', "image ID, a whole number"),
    ],
)
def test_label_file_is_checked(flat: Path, old: str, new: str, message: str) -> None:
    text = table(LABELS)
    assert old in text
    (flat / "class_labels.csv").write_text(text.replace(old, new), newline="", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        Dataset.load("segmentation_wbc", root=flat)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe" + "image ID,class\r\n1,2".encode("utf-16-le"), b"\x89PNG\r\n"])
def test_label_file_that_is_none(flat: Path, content: bytes) -> None:
    (flat / "class_labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read as CSV|It has: (none|'.*')\."):
        Dataset.load("segmentation_wbc", root=flat)


def test_label_file_variants(flat: Path) -> None:
    expected = Dataset.load("segmentation_wbc", root=flat).table
    text = "\ufeff" + "\n".join(f" {number} , {label} " for number, label in reversed(LABELS.items()))
    text = text.replace("\ufeff", "\ufeffIMAGE id, Class Label\n") + "\n\n,\n"
    (flat / "class_labels.csv").write_text(text, encoding="utf-8")
    assert Dataset.load("segmentation_wbc", root=flat).table.equals(expected)


def test_labels_of_other_images(flat: Path) -> None:
    (flat / "class_labels.csv").write_text(table({400: 1, 401: 2}))
    with pytest.raises(DataError, match="names none of the 5 images"):
        Dataset.load("segmentation_wbc", root=flat)


def test_one_number_twice(flat: Path, write_image: Writer) -> None:
    write_image(flat / "3.bmp")
    with pytest.raises(DataError, match=r"has 1 sample ids twice, such as '1/003'"):
        Dataset.load("segmentation_wbc", root=flat)


def test_strange_files_are_left_out(flat: Path, write_image: Writer, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cell.bmp", "12.bmp\n", "._4.bmp", "٣.bmp", "004.png"):
        (flat / name).write_text("x")
    (flat / "005.bmp").mkdir()
    (flat / "loop").symlink_to(flat, target_is_directory=True)
    (flat / "more.csv").mkdir()
    try:
        (flat / "caf\udce9.bmp").write_text("x")
        left_out = 3
    except OSError:
        left_out = 2  # this file system wants UTF-8
    with caplog.at_level(logging.WARNING):
        assert Dataset.load("segmentation_wbc", root=flat).table["sample"].tolist() == SAMPLES
    assert f"left out {left_out} files" in caplog.text


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone does not exist"):
        Dataset.load("segmentation_wbc", root=tmp_path / "gone")
    with pytest.raises(DataError, match=r"does not look like segmentation_WBC. Wanted: .* Found in it: nothing"):
        Dataset.load("segmentation_wbc", root=tmp_path)


def test_an_unreadable_folder_is_named(public: Path, list_folders: Lister) -> None:
    list_folders(refused="Dataset 1")
    with pytest.raises(
        DataError, match=r"Cannot list the folder .*Dataset 1: Permission denied. Check its permissions"
    ):
        Dataset.load("segmentation_wbc", root=public, part=1)


def test_labels_do_not_depend_on_the_order_of_listing(flat: Path, list_folders: Lister) -> None:
    expected = Dataset.load("segmentation_wbc", root=flat).table
    for seed in range(5):
        rows = list(LABELS.items())
        random.Random(seed).shuffle(rows)
        (flat / "class_labels.csv").write_text(table(dict(rows)))
        list_folders(seed=seed)
        assert Dataset.load("segmentation_wbc", root=flat).table.equals(expected)


def test_grouped_protocols_are_refused_with_the_choice(public: Path) -> None:
    dataset = Dataset.load("segmentation_wbc", root=public, part=1)
    with pytest.raises(SplitError, match=r'Of the 5 .* 5 have no subject.*protocol="random", allow_leakage=True'):
        make_splits(dataset, "kfold")


def test_real_sample(wbc_sample: Path) -> None:
    dataset = Dataset.load("segmentation_wbc", root=wbc_sample)
    assert dataset.summary().iloc[0].tolist() == [300, 176, 53, 48, 22, 1, 0, 0, 0]
    (labels,) = wbc_sample.glob("*.csv")
    with labels.open(newline="") as file:
        given = {f"1/{int(row['image ID']):03d}": NAMES[int(row["class label"]) - 1] for row in csv.DictReader(file)}
    assert dict(zip(dataset.table["sample"], dataset.table["label"], strict=True)) == given
    assert all(int(path.stem) == int(sample[2:]) for path, sample in zip(dataset.paths, given, strict=True))
    with pytest.raises(SplitError, match=r'protocol="random", allow_leakage=True'):
        make_splits(dataset, "kfold")


def test_real_class_of_one_image(wbc_sample: Path) -> None:
    dataset = Dataset.load("segmentation_wbc", root=wbc_sample)
    assert dataset.table["sample"][dataset.labels == 4].tolist() == ["1/291"]
    with pytest.raises(SplitError, match=r"at least 3 different images of each class .* 1 of 'basophil'"):
        make_splits(dataset, "random", allow_leakage=True)
    four = Dataset(dataset.table[dataset.labels != 4], NAMES[:4], dataset.info)
    (split,) = make_splits(four, "random", allow_leakage=True)
    assert len(split.train) + len(split.val) + len(split.test) == 299
    assert set(four.labels[split.test]) == {0, 1, 2, 3}
