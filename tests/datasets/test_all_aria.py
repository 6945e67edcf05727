"""The ALL data set of Aria et al.: one version at a time, class and number from names that agree with their folder."""

import itertools
import logging
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from leukemia_dl.datasets import Dataset, dataset_table, make_splits
from leukemia_dl.datasets.sources.all_aria import CLASS_NAMES
from leukemia_dl.errors import DataError, ImageError, SettingsError, SplitError

Writer = Callable[..., Path]
Lister = Callable[..., None]
FILES = [
    "Benign/WBC-Benign-001.jpg",
    "Benign/WBC-Benign-504.jpg",
    "Early/WBC-Malignant-Early-012.jpg",
    "Pre/WBC-Malignant-Pre-010.jpg",
    "Pre/WBC-Malignant-Pre-2.jpg",
    "Pro/WBC-Malignant-Pro-804.jpg",
]
SAMPLES = ["Benign/001", "Benign/504", "Early/012", "Pre/002", "Pre/010", "Pro/804"]


@pytest.fixture
def tree(tmp_path: Path, write_image: Writer) -> Path:
    """Both versions in `archive`, as they are unpacked."""
    top = tmp_path / "data" / "archive"
    for number, (version, name) in enumerate(itertools.product(("Original", "Segmented"), FILES)):
        write_image(top / version / name, number)
    return top


def test_original_is_the_default_and_nothing_is_mixed(tree: Path) -> None:
    dataset = Dataset.load("all_aria", root=tree)
    assert dataset.class_names == CLASS_NAMES == ("Benign", "Early", "Pre", "Pro")
    assert dataset.table["sample"].tolist() == SAMPLES
    assert dataset.labels.tolist() == [0, 0, 1, 2, 2, 3]
    assert {path.parent.parent.name for path in dataset.paths} == {"Original"}
    assert dataset.table[["subject", "group", "fold", "split"]].isna().all(axis=None)
    segmented = Dataset.load("all_aria", root=tree, version="segmented")
    assert {path.parent.parent.name for path in segmented.paths} == {"Segmented"}
    assert segmented.table["sample"].tolist() == SAMPLES
    assert segmented.fingerprint != dataset.fingerprint


@pytest.mark.parametrize("root", [".", "archive", "archive/Original", "archive/Original/Pre"])
def test_root_too_high_or_too_low(tree: Path, root: str) -> None:
    dataset = Dataset.load("all_aria", root=tree.parent / root)
    assert dataset.fingerprint == Dataset.load("all_aria", root=tree).fingerprint
    assert {path.parent.parent.name for path in dataset.paths} == {"Original"}


def test_classes_without_a_version_around_them_are_the_original(tree: Path) -> None:
    expected = Dataset.load("all_aria", root=tree).fingerprint
    shutil.rmtree(tree / "Segmented")
    bare = (tree / "Original").rename(tree.parent / "bare")
    tree.rmdir()
    for root in (bare, bare.parent, bare / "Early"):
        assert Dataset.load("all_aria", root=root).fingerprint == expected
    with pytest.raises(
        DataError, match=r"does not look like the segmented version .* Wanted: .* Found in it: Benign, Early"
    ):
        Dataset.load("all_aria", root=bare, version="segmented")


def test_a_root_that_contradicts_the_version_is_a_question(tree: Path) -> None:
    with pytest.raises(
        DataError, match=r"Segmented is the segmented version: pass version='segmented', or the root .*archive"
    ):
        Dataset.load("all_aria", root=tree / "Segmented")
    with pytest.raises(DataError, match=r"Original is the original version: pass version='original'"):
        Dataset.load("all_aria", root=tree / "Original" / "Pro", version="segmented")
    assert len(Dataset.load("all_aria", root=tree / "Segmented", version="segmented")) == 6
    shutil.rmtree(tree / "Original")
    with pytest.raises(DataError, match=r"does not look like the original version .* Found in it: Segmented"):
        Dataset.load("all_aria", root=tree)
    with pytest.raises(SettingsError, match="version must be one of 'original', 'segmented'"):
        Dataset.load("all_aria", root=tree, version="Both")


def test_two_copies_are_a_question(tree: Path) -> None:
    shutil.copytree(tree, tree.parent / "copy")
    with pytest.raises(DataError, match=r"several copies of the original version of .*archive/Original, .*copy/Origin"):
        Dataset.load("all_aria", root=tree.parent)


@pytest.mark.parametrize("name", ["WBC-Benign-003.jpg", "WBC-Malignant-Pre-003.jpg", "wbc-malignant-PRE-3.JPEG"])
def test_name_against_folder(tree: Path, write_image: Writer, name: str) -> None:
    write_image(tree / "Original" / "Early" / name)
    with pytest.raises(DataError, match=r"says '(Pre|Benign)' in its name but lies in the folder 'Early'"):
        Dataset.load("all_aria", root=tree)


def test_one_number_twice(tree: Path, write_image: Writer) -> None:
    write_image(tree / "Original" / "Early" / "WBC-Malignant-Early-12.jpg")
    with pytest.raises(DataError, match=r"has 1 sample ids twice, such as 'Early/012'"):
        Dataset.load("all_aria", root=tree)


def test_other_names_are_left_out_and_counted(
    tree: Path, write_image: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    early = tree / "Original" / "Early"
    for name in ("notes.txt", "._WBC-Malignant-Early-1.jpg", "WBC-Malignant-Early-1.jpg\n", "WBC-Malignant-1.jpg"):
        (early / name).write_text("x")
    for name in ("WBC-Malignant-Early-٣.jpg", "WBC-Malignant-Early-095.png"):
        write_image(early / name)
    (early / "WBC-Malignant-Early-099.jpg").mkdir()
    (tree / "Original" / "loop").symlink_to(tree, target_is_directory=True)
    left_out = 3
    try:
        (early / "caf\udce9.jpg").write_text("x")
        left_out += 1
    except OSError:
        pass  # this file system wants UTF-8
    with caplog.at_level(logging.INFO):
        dataset = Dataset.load("all_aria", root=tree)
    assert dataset.table["sample"].tolist() == SAMPLES
    assert f"left out {left_out} files" in caplog.text
    assert "not all that all_aria declares is there: images: 6 of 3,256" in caplog.text
    assert "Early: 1 of 985" in caplog.text


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(tree: Path) -> None:
    (tree / "Original" / "Early" / "WBC-Malignant-Early-098.jpg").symlink_to(tree / "gone")
    dataset = Dataset.load("all_aria", root=tree)
    row = dataset.table["sample"].tolist().index("Early/098")
    with pytest.raises(ImageError, match="there is no such file"):
        dataset.decode(row)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone does not exist \(the nearest folder that exists is "):
        Dataset.load("all_aria", root=tmp_path / "gone")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("x", b"x")
    with pytest.raises(DataError, match="is an archive: unpack it first"):
        Dataset.load("all_aria", root=tmp_path / "archive.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"does not look like the original version .* Found in it: nothing"):
        Dataset.load("all_aria", root=tmp_path / "empty")
    (tmp_path / "one" / "Early").mkdir(parents=True)
    with pytest.raises(DataError, match=r"does not look like the original version .* Found in it: Early"):
        Dataset.load("all_aria", root=tmp_path / "one")


def test_an_unreadable_folder_is_named(tree: Path, list_folders: Lister) -> None:
    list_folders(refused="Pre")
    with pytest.raises(DataError, match=r"Cannot list the folder .*Pre: Permission denied. Check its permissions"):
        Dataset.load("all_aria", root=tree)


def test_the_order_of_listing_changes_nothing(tree: Path, list_folders: Lister) -> None:
    expected = Dataset.load("all_aria", root=tree).table
    for seed in range(5):
        list_folders(seed=seed)
        assert Dataset.load("all_aria", root=tree).table.equals(expected)


def test_ids_and_fingerprint_do_not_depend_on_the_place(tree: Path, tmp_path: Path) -> None:
    before = Dataset.load("all_aria", root=tree)
    fingerprint = before.fingerprint
    moved = tree.rename(tmp_path / "elsewhere\n")
    after = Dataset.load("all_aria", root=moved)
    assert after.table["sample"].equals(before.table["sample"])
    assert after.fingerprint == fingerprint


def test_upper_and_lower_case(tree: Path) -> None:
    expected = Dataset.load("all_aria", root=tree)
    original = tree / "Original"
    for path in [*original.glob("*/*"), *original.glob("*"), original]:
        path.rename(path.with_name(path.name.swapcase()))
    dataset = Dataset.load("all_aria", root=tree)
    assert dataset.table[["sample", "label"]].equals(expected.table[["sample", "label"]])


def test_grouped_protocols_are_refused_with_the_choice(tree: Path) -> None:
    dataset = Dataset.load("all_aria", root=tree)
    for protocol in ("kfold", "holdout"):
        with pytest.raises(SplitError, match=r'Of the 6 .* 6 have no subject.*protocol="random", allow_leakage=True'):
            make_splits(dataset, protocol)


def test_real_sample(aria_sample: Path) -> None:
    dataset = Dataset.load("all_aria", root=aria_sample)
    assert dataset.summary().iloc[0].tolist() == [1200, 300, 300, 300, 300, 0, 0, 0]
    assert dataset.table["sample"].is_unique
    assert {"Benign/001", "Early/002", "Pre/007", "Pro/002"} <= set(dataset.table["sample"])
    assert dataset.decode(0).shape == (224, 224, 3)
    with pytest.raises(SplitError, match=r'protocol="random", allow_leakage=True'):
        make_splits(dataset, "kfold")
    (split,) = make_splits(dataset, "random", allow_leakage=True)
    assert len(split.train) + len(split.val) + len(split.test) == 1200
    assert "content-disjoint" in split.guarantees
    assert "group-disjoint" not in split.guarantees


def test_what_the_authors_declare() -> None:
    row = dataset_table().set_index("name").loc["all_aria"]
    assert row[["classes", "images", "licence"]].tolist() == ["Benign, Early, Pre, Pro", "3256", "see the Kaggle page"]
    assert row["options"] == "root, version"
