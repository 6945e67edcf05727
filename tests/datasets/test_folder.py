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
    with pytest.raises(DataError, match=r"has the unknown label 'all' in row 1. Allowed by class_names: hem, pro"):
        Dataset.from_folder(tmp_path, class_names=["hem", "pro"])


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
    assert "left out" not in caplog.text
    assert "the folders docs hold no images" in caplog.text


SOURCES = {
    "folder": ["a/1.png", "b/1.png"],
    "all_aria": ["Early/WBC-Malignant-Early-001.jpg", "Pro/WBC-Malignant-Pro-001.jpg"],
    "c_nmc_2019": [f"training_data/fold_0/{c}/UID_{s}_1_1_{c}.bmp" for c, s in (("all", "1"), ("hem", "H1"))],
    "segmentation_wbc": ["Dataset 1/001.bmp", "Dataset 1/002.bmp"],
}
SYSTEM = ("@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", ".ipynb_checkpoints")


@pytest.mark.parametrize("dataset", SOURCES)
def test_system_folders_and_files_are_neither_classes_nor_images(
    dataset: str, tmp_path: Path, write_image: Writer
) -> None:
    """20.18: every source passes over what operating systems and storage servers leave."""
    names = SOURCES[dataset]
    for name in names:
        write_image(tmp_path / name)
        for system in SYSTEM:
            write_image(tmp_path / system / name)
            write_image(tmp_path / name.rpartition("/")[0] / system / name.rpartition("/")[2])
        write_image(tmp_path / name.replace("/", "/._"))
    (tmp_path / "Class Labels of Dataset 1.csv").write_text("image ID,class label\n1,1\n2,2\n")
    assert sorted(Dataset.load(dataset, tmp_path).paths) == sorted(tmp_path / name for name in names)


def written(root: Path, write_image: Writer, names: list[str]) -> Path:
    for number, name in enumerate(names):
        write_image(root / name, number)
    return root


def each(tops: str, inner: str) -> list[str]:
    return [f"{top}/{label}/1.png" for top in tops.split() for label in inner.split()]


@pytest.mark.parametrize(
    ("tops", "sides"),
    [
        ("TRAIN TEST TEST_SIMPLE", ["test", "test", "train"]),
        ("Train TestA TestB", ["test", "test", "train"]),
        ("training_set test_set", ["test", "train"]),
        ("C-NMC_training_data C-NMC_validation_data", ["train", "val"]),
        ("trainset valset", ["train", "val"]),
    ],
)
def test_folders_whose_names_say_sides_are_no_classes(
    tmp_path: Path, write_image: Writer, tops: str, sides: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """20.16: the inner folders repeat, so they are the classes; two folders of one side are said."""
    table = Dataset.from_folder(written(tmp_path, write_image, each(tops, "all hem"))).table
    assert sorted(set(table["label"])) == ["all", "hem"]
    assert table.loc[table["label"] == "all", "split"].sort_values().tolist() == sides
    assert ("are all taken for the side test" in caplog.text) == (sides.count("test") > 1)


def test_folders_whose_names_say_folds_give_the_folds(tmp_path: Path, write_image: Writer) -> None:
    """20.16: fold_0, fold_1, fold_2 are no classes."""
    dataset = Dataset.from_folder(written(tmp_path, write_image, each("fold_0 fold_1 Fold-2", "all hem")))
    assert dataset.class_names == ("all", "hem")
    assert dataset.table.set_index("sample")["fold"].to_dict() == {
        f"{top}/{label}/1.png": int(top[-1]) for top in ("fold_0", "fold_1", "Fold-2") for label in ("all", "hem")
    }


def test_sides_in_each_class_folder(tmp_path: Path, write_image: Writer) -> None:
    """20.16: with the classes outside, sides inside are sides as well."""
    dataset = Dataset.from_folder(written(tmp_path, write_image, each("all hem", "train test")))
    assert dataset.class_names == ("all", "hem")
    assert dataset.table["split"].tolist() == ["test", "train"] * 2


def test_what_lies_beside_the_sides_is_left_out_and_counted(
    tmp_path: Path, write_image: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    """20.16: a nested copy, plots, annotations, and images that are in no class folder."""
    names = [*each("train test val", "all hem"), *each("cells/train cells/test", "all hem"), "plots/1.png", "loose.png"]
    (tmp_path / "annotations").mkdir()
    dataset = Dataset.from_folder(written(tmp_path, write_image, [*names, "test/1.png", "test/2.png"]))
    assert dataset.table.groupby(["split", "label"]).size().tolist() == [1] * 6
    assert "left out 8 images outside of the class folders" in caplog.text
    for part in ("4 in cells", "1 in plots", "2 in test", f"1 in {tmp_path.name}"):
        assert part in caplog.text
    assert "the folders annotations hold no images" in caplog.text


def test_a_test_folder_without_classes_does_not_make_the_sides_classes(
    tmp_path: Path, write_image: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    """20.16: images without a label in test_set are left out with their number."""
    names = [*each("training_set", "all hem"), "test_set/1.png", "test_set/2.png"]
    assert Dataset.from_folder(written(tmp_path, write_image, names)).class_names == ("all", "hem")
    assert "left out 2 images outside of the class folders: 2 in test_set" in caplog.text


def test_two_readings_are_an_error_that_says_how_to_choose(tmp_path: Path, write_image: Writer) -> None:
    """20.16: equal names in folders that say no side may be classes or not."""
    written(tmp_path, write_image, each("siteA siteB", "all hem"))
    with pytest.raises(DataError, match=r"two ways.*pass class_names=siteA,siteB.*pass class_names=all,hem"):
        Dataset.from_folder(tmp_path)
    assert Dataset.from_folder(tmp_path, ["siteB", "siteA"]).labels.tolist() == [1, 1, 0, 0]
    assert Dataset.from_folder(tmp_path, ["hem", "all"]).labels.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    "names",
    [
        [f"fold_{fold}/{name}" for fold in (0, 1) for name in each("train test", "hem all")],
        [f"train/{name}" for name in each("images masks", "hem all")],
        [*(f"fold_{fold}/{name}" for fold in (0, 1) for name in each("train test", "hem all")), "plots/x/1.png"],
        [f"{side}/{name}" for side, who in (("train", "p1 p2"), ("test", "p3 p4")) for name in each(who, "hem all")],
    ],
)
def test_sides_patients_and_masks_between_sides_and_classes_are_refused(
    tmp_path: Path, write_image: Writer, names: list[str]
) -> None:
    """20.16: folders of sides, patients or masks inside folders of sides became the classes."""
    with pytest.raises(DataError, match="can be read in two ways"):
        Dataset.from_folder(written(tmp_path, write_image, names))


def test_images_beside_folders_of_sides_are_left_out_with_a_count(
    tmp_path: Path, write_image: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    """20.16: one image beside the folders train and test of a class made all sides unknown."""
    names = [
        *(f"{label}/{side}/{n}.png" for n, label in enumerate(["hem", "all"]) for side in ("train", "test")),
        "hem/overview.png",
    ]
    dataset = Dataset.from_folder(written(tmp_path, write_image, names))
    assert sorted(dataset.table["split"]) == ["test", "test", "train", "train"]
    assert "left out 1 image" in caplog.text


@pytest.mark.parametrize("names", ["Train TestA TestB", "train test", "all hem test"])
def test_sides_without_class_folders_are_an_error(tmp_path: Path, write_image: Writer, names: str) -> None:
    """20.16: images that lie directly in folders called like sides have no class."""
    written(tmp_path, write_image, [f"{name}/1.png" for name in names.split()])
    with pytest.raises(DataError, match=r"called like sides or folds .*no folder per class in them"):
        Dataset.from_folder(tmp_path)
    assert Dataset.from_folder(tmp_path, names.split()).class_names == tuple(names.split())


@pytest.mark.parametrize(
    "names",
    [
        each("all hem", "images"),
        ["all/p1/1.png", "all/p2/1.png", "hem/p2/1.png", "hem/p3/1.png"],
        ["test_positive/p1/1.png", "other/p2/1.png", "other/1.png"],
    ],
)
def test_other_folders_in_class_folders_are_no_classes(tmp_path: Path, write_image: Writer, names: list[str]) -> None:
    """20.16: what can be read in one way only is read so."""
    dataset = Dataset.from_folder(written(tmp_path, write_image, names))
    assert list(dataset.class_names) == sorted({name.split("/")[0] for name in names})
    assert len(dataset) == len(names)


def test_other_suffixes_are_counted_and_named_in_a_warning(
    tmp_path: Path, write_image: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    """20.17: images of a kind that is not read are not dropped in silence."""
    written(tmp_path, write_image, ["a/1.png", "b/1.PNG", "b/2.webp", "b/3.JFIF", "b/4.TIF"])
    for name in ("a/x.gif", "a/y.GIF", "b/slide.svs", "b/scan", "a/notes.txt", "table.csv"):
        (tmp_path / name).write_bytes(b"x")
    assert len(Dataset.from_folder(tmp_path)) == 5
    assert "left out 4 files, such as 'a/x.gif'" in caplog.text
    assert "only these suffixes are read: .bmp, .jfif, .jpe, .jpeg, .jpg, .png, .tif, .tiff, .webp" in caplog.text


@pytest.mark.parametrize("dataset", SOURCES)
def test_every_source_counts_files_of_other_suffixes(
    dataset: str, tmp_path: Path, write_image: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    """20.17: each reader says what it leaves out."""
    for name in written(tmp_path, write_image, SOURCES[dataset]).rglob("*.*"):
        name.with_suffix(".gif").write_bytes(b"x")
    (tmp_path / "Class Labels of Dataset 1.csv").write_text("image ID,class label\n1,1\n2,2\n")
    assert len(Dataset.load(dataset, tmp_path)) == 2
    assert "left out 2 files, such as" in caplog.text


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
        DataError, match=r"gone does not exist \(the nearest folder that exists is .*Wanted: a folder per"
    ):
        Dataset.from_folder(tmp_path / "gone")
    (tmp_path / "cells.txt").write_text("x")
    with pytest.raises(DataError, match=r"cells\.txt is a file, not a folder"):
        Dataset.from_folder(tmp_path / "cells.txt")
    for name in ("cells.zip", "cells"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("a/1.png", b"x")
        with pytest.raises(DataError, match=rf"{name} is an archive: unpack it first"):
            Dataset.from_folder(tmp_path / name)


def test_empty_and_without_images(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"has 0 images directly in it and none in its folders \(none\)\. Wanted: a folder per class"
    ):
        Dataset.from_folder(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("x")
    with pytest.raises(DataError, match=r"0 images directly in it and none in its folders \(a\)"):
        Dataset.from_folder(tmp_path)


def test_one_class(tmp_path: Path, write_image: Writer) -> None:
    write_image(tmp_path / "Original" / "a" / "1.png")
    write_image(tmp_path / "Original" / "b" / "1.png")
    with pytest.raises(
        DataError, match=r"one class only, 'Original': .* Pass the folder that holds the folders of the classes"
    ):
        Dataset.from_folder(tmp_path)
    assert len(Dataset.from_folder(tmp_path / "Original")) == 2


def test_images_directly_in_the_root(tmp_path: Path, write_image: Writer) -> None:
    write_image(tmp_path / "1.png")
    write_image(tmp_path / "2.png")
    with pytest.raises(DataError, match=r"has 2 images directly in it.*Dataset.from_csv"):
        Dataset.from_folder(tmp_path)


def test_real_folder_of_four_classes(aria_sample: Path) -> None:
    dataset = Dataset.from_folder(aria_sample)
    assert dataset.class_names == ("Benign", "Early", "Pre", "Pro")
    assert dataset.summary().iloc[0].tolist() == [1200, 300, 300, 300, 300, 0, 0, 0]
