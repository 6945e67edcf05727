"""A folder per class, with or without sides on top."""

import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from leukemia_dl.datasets import Dataset
from leukemia_dl.errors import DataError

Writer = Callable[..., Path]


def test_classes_are_the_folders_sorted(tmp_path: Path, write_image: Writer) -> None:
    for name in ("pro/b.png", "benign/a.JPG", "benign/c.tif", "early/deeper/a.bmp"):
        write_image(tmp_path / name)
    dataset = Dataset.from_folder(tmp_path)
    assert dataset.class_names == ("benign", "early", "pro")
    assert dataset.table["sample"].tolist() == ["benign/a.JPG", "benign/c.tif", "early/deeper/a.bmp", "pro/b.png"]
    assert dataset.labels.tolist() == [0, 0, 1, 2]
    assert dataset.table[["subject", "group", "fold", "split"]].isna().all(axis=None)
    assert not dataset.has_subjects
    assert dataset.info.canvas is None
    assert Dataset.load("folder", root=str(tmp_path)).fingerprint == dataset.fingerprint


def test_class_order_by_choice(tmp_path: Path, write_image: Writer) -> None:
    for name in ("all/1.bmp", "hem/1.bmp"):
        write_image(tmp_path / name)
    assert Dataset.from_folder(tmp_path, class_names=["hem", "all"]).labels.tolist() == [1, 0]
    assert Dataset.load("folder", root=tmp_path, class_names="hem, all").class_names == ("hem", "all")
    with pytest.raises(DataError, match=r"class_names is hem, ALL, but the folders with images in .* are all, hem"):
        Dataset.from_folder(tmp_path, class_names=["hem", "ALL"])


def test_a_canvas_keeps_the_scale(tmp_path: Path, write_image: Writer) -> None:
    for name in ("all/1.bmp", "hem/1.bmp"):
        write_image(tmp_path / name)
    assert Dataset.from_folder(tmp_path, canvas=450).info.canvas == 450
    assert Dataset.load("folder", root=tmp_path, canvas=300).info.canvas == 300


def test_sides_on_top(tmp_path: Path, write_image: Writer) -> None:
    for name in ("Training/a/1.png", "Training/b/1.png", "Validation/a/1.png", "Testing/b/1.png"):
        write_image(tmp_path / name)
    table = Dataset.from_folder(tmp_path).table.set_index("sample")
    assert table["split"].to_dict() == {
        "Testing/b/1.png": "test", "Training/a/1.png": "train", "Training/b/1.png": "train", "Validation/a/1.png": "val"
    }  # fmt: skip
    assert table["label"].tolist() == ["b", "a", "b", "a"]


def test_hidden_and_other_files_are_left_out(
    tmp_path: Path, write_image: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a/1.png", "b/1.png", "a/._1.png", ".thumbs/1.png", "__MACOSX/1.png", "a/.cache/1.png"):
        write_image(tmp_path / name)
    for name in ("a/Thumbs.db", "README.txt", "b/notes.csv"):
        (tmp_path / name).write_text("x")
    (tmp_path / "docs").mkdir()
    with caplog.at_level(logging.INFO):
        dataset = Dataset.from_folder(tmp_path)
    assert dataset.table["sample"].tolist() == ["a/1.png", "b/1.png"]
    assert "left out 3 files" in caplog.text
    assert "the folders docs hold no images" in caplog.text


SYSTEM = ("@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", ".ipynb_checkpoints")


@pytest.mark.parametrize("dataset", ["folder", "all_aria", "c_nmc_2019", "segmentation_wbc"])
def test_system_folders_and_files_are_neither_classes_nor_images(
    dataset: str, tmp_path: Path, write_image: Writer
) -> None:
    """20.18: every source passes over what operating systems and storage servers leave."""
    names = {
        "folder": ["a/1.png", "b/1.png"],
        "all_aria": ["Early/WBC-Malignant-Early-001.jpg", "Pro/WBC-Malignant-Pro-001.jpg"],
        "c_nmc_2019": [f"training_data/fold_0/{c}/UID_{s}_1_1_{c}.bmp" for c, s in (("all", "1"), ("hem", "H1"))],
        "segmentation_wbc": ["Dataset 1/001.bmp", "Dataset 1/002.bmp"],
    }[dataset]
    for name in names:
        write_image(tmp_path / name)
        for system in SYSTEM:
            write_image(tmp_path / system / name)
            write_image(tmp_path / name.rpartition("/")[0] / system / name.rpartition("/")[2])
        write_image(tmp_path / name.replace("/", "/._"))
    (tmp_path / "Class Labels of Dataset 1.csv").write_text("image ID,class label\n1,1\n2,2\n")
    assert sorted(Dataset.load(dataset, tmp_path).paths) == sorted(tmp_path / name for name in names)


def test_loops_of_links_end(tmp_path: Path, write_image: Writer) -> None:
    for name in ("a/1.png", "b/1.png"):
        write_image(tmp_path / name)
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(Dataset.from_folder(tmp_path)) == 2


def test_names_that_are_not_utf8(tmp_path: Path, write_image: Writer) -> None:
    for name in ("a/1.png", "b/1.png"):
        write_image(tmp_path / name)
    try:
        (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "caf\udce9\n.png")
    except OSError:
        pytest.skip("this file system wants UTF-8")
    assert len(Dataset.from_folder(tmp_path).fingerprint) == 64


def test_missing_file_and_archive(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"There is no folder .*gone \(the nearest that exists is .*Wanted: a folder per"
    ):
        Dataset.from_folder(tmp_path / "gone")
    (tmp_path / "cells.txt").write_text("x")
    with pytest.raises(DataError, match=r"cells\.txt is a file, not a folder"):
        Dataset.from_folder(tmp_path / "cells.txt")
    for name in ("cells.zip", "cells"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("a/1.png", b"x")
        with pytest.raises(DataError, match=rf"{name} is an archive, not a folder: unpack it first"):
            Dataset.from_folder(tmp_path / name)


def test_empty_and_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There are no images in .* It is empty. Wanted: a folder per class"):
        Dataset.from_folder(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("x")
    with pytest.raises(DataError, match=r"The folders in it \(a\) hold no images"):
        Dataset.from_folder(tmp_path)


def test_one_class(tmp_path: Path, write_image: Writer) -> None:
    write_image(tmp_path / "Original" / "a" / "1.png")
    write_image(tmp_path / "Original" / "b" / "1.png")
    with pytest.raises(
        DataError, match=r"one class only, 'Original': .* If its folders \(a, b\) are the classes, pass"
    ):
        Dataset.from_folder(tmp_path)
    assert len(Dataset.from_folder(tmp_path / "Original")) == 2


def test_images_directly_in_the_root(tmp_path: Path, write_image: Writer) -> None:
    write_image(tmp_path / "1.png")
    write_image(tmp_path / "2.png")
    with pytest.raises(DataError, match=r"2 images lie directly in .*Dataset.from_csv"):
        Dataset.from_folder(tmp_path)


def test_real_folder_of_four_classes(aria_sample: Path) -> None:
    dataset = Dataset.from_folder(aria_sample)
    assert dataset.class_names == ("Benign", "Early", "Pre", "Pro")
    assert dataset.summary().iloc[0].tolist() == [1200, 300, 300, 300, 300, 0, 0, 0]
