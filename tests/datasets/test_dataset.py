"""The sample table: checked on creation, immutable, with an identity of its own."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leukemia_dl.datasets import Dataset, DatasetInfo
from leukemia_dl.datasets.table import COLUMNS
from leukemia_dl.errors import DataError, ImageError, SettingsError, UnknownNameError
from leukemia_dl.preprocess import Pipeline

INFO = DatasetInfo("cells", "Cells", "none", "nobody")


def a_frame(**columns: list) -> pd.DataFrame:
    frame = pd.DataFrame({"sample": list("abcd"), "path": [f"/x/{name}.png" for name in "abcd"]})
    return frame.assign(label=["hem", "all", "all", None], subject=["H1", "1", "1", None], **columns)


def of_frame(frame: pd.DataFrame, class_names: tuple[str, ...] = ("hem", "all")) -> Dataset:
    return Dataset(frame, class_names, INFO)


@pytest.fixture
def small(tmp_path: Path, write_image: Callable[..., Path]) -> Dataset:
    """Six images of 8 pixels in two classes and four subjects; the last two files are identical."""
    rows = [("a", "hem", "H1"), ("b", "hem", "H2"), ("c", "hem", "H2"), ("d", "all", "1"), ("e", "all", "2")]
    frame = pd.DataFrame([*rows, ("f", "all", "2")], columns=["path", "label", "subject"])
    frame["path"] = [f"{name}.png" for name in frame["path"]]
    for number, name in enumerate(frame["path"]):
        write_image(tmp_path / "images" / name, min(number, 4))
    return Dataset.from_dataframe(frame, images_root=tmp_path / "images", class_names=["hem", "all"])


def test_columns_dtypes_and_defaults() -> None:
    dataset = of_frame(a_frame(fold=[0, 1, None, 2]))
    assert tuple(dataset.table.columns) == COLUMNS
    assert dataset.table["fold"].tolist() == [0, 1, pd.NA, 2]
    assert str(dataset.table["fold"].dtype) == "Int64"
    assert dataset.table["group"].tolist() == ["H1", "1", "1", pd.NA]
    assert dataset.table[["field", "cell", "split"]].isna().all(axis=None)
    assert dataset.labels.tolist() == [0, 1, 1, -1]
    assert dataset.labels.dtype == np.int64
    assert dataset.paths[0] == Path("/x/a.png")
    assert dataset.has_subjects
    assert len(dataset) == 4
    assert repr(dataset) == "<Dataset 'cells': 4 images, 2 subjects, classes hem, all>"


def test_group_may_be_given_for_some_rows() -> None:
    assert of_frame(a_frame(group=["H1+H2", None, None, None])).table["group"].tolist() == ["H1+H2", "1", "1", pd.NA]


def test_it_is_immutable(small: Dataset) -> None:
    table = small.table
    table["label"] = "hem"
    assert small.table["label"].nunique() == 2
    with pytest.raises(AttributeError):
        small.class_names = ("a", "b")
    with pytest.raises(ValueError, match="read-only"):
        small.labels[0] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": list("abca")}, "has 1 sample ids twice, such as 'a'"),
        ({"label": ["hem", "all", "ALL", None]}, "unknown label 'ALL'. Allowed: hem, all"),
        ({"split": ["train", "dev", None, None]}, "unknown split 'dev'. Allowed: train, val, test, preliminary, final"),
        ({"group": ["x", "y", "z", None]}, "the subject '1' in two groups"),
        ({"fold": [0, 1.5, None, 2]}, "Folds are whole numbers. Received: "),
        ({"fold": ["one", None, None, None]}, "Folds are whole numbers. Received: "),
    ],
)
def test_contradictions_are_refused(change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        of_frame(a_frame().assign(**change))


def test_no_rows_and_no_classes_are_refused() -> None:
    with pytest.raises(DataError, match="has no samples"):
        of_frame(a_frame().iloc[:0])
    for names in (("hem",), (), ("hem", "hem"), ("hem", "")):
        with pytest.raises(DataError, match="at least two different class names"):
            of_frame(a_frame(), names)


def test_subset_by_mask_and_by_rows(small: Dataset) -> None:
    assert small.subset(small.labels == 1).table["sample"].tolist() == ["d.png", "e.png", "f.png"]
    chosen = small.subset([4, 0])
    assert chosen.table["sample"].tolist() == ["e.png", "a.png"]
    assert chosen.labels.tolist() == [1, 0]
    assert chosen.class_names == small.class_names
    assert chosen.info is small.info


@pytest.mark.parametrize("dtype", ["boolean", "bool", object])
def test_subset_by_a_mask_of_pandas_or_a_list(small: Dataset, dtype: object) -> None:
    mask = (small.table["subject"] == "H2").astype(dtype)
    for rows in (mask, mask.array, mask.tolist()):
        assert small.subset(rows).table["sample"].tolist() == ["b.png", "c.png"]
    for rows in (mask[:3].array, mask[:3].tolist()):
        with pytest.raises(DataError, match="subset takes a bool mask of length 6"):
            small.subset(rows)
    with pytest.raises(DataError, match="no samples"):
        small.subset(mask & False)


def test_what_is_not_known_in_a_mask_is_not_chosen(small: Dataset) -> None:
    table = small.table
    mask = table["subject"].mask(table["label"] == "all") == "H2"
    assert mask.isna().sum() == 3
    for rows in (mask, mask.tolist()):
        assert small.subset(rows).table["sample"].tolist() == table[mask]["sample"].tolist() == ["b.png", "c.png"]


def test_what_is_no_path_is_named() -> None:
    for make, name in (
        (lambda: Dataset.from_csv(None), "path=None"),
        (lambda: Dataset.from_folder(None), "root=None"),
        (lambda: Dataset.load("csv", path=5), "path=5"),
        (lambda: Dataset.from_folder(["a"]), r"root=\['a'\]"),
    ):
        with pytest.raises(DataError, match=f"{name} is no path that can be used"):
            make()


@pytest.mark.parametrize("canvas", [0, -450, 450.0, True, "450", 4_473])
def test_a_canvas_is_a_side_in_pixels(canvas: object) -> None:
    info = DatasetInfo("cells", "Cells", "none", "nobody", canvas=canvas)
    with pytest.raises(SettingsError, match=r"size must be a whole number from 1 to 4,472"):
        Dataset(a_frame(), ("hem", "all"), info).default_pipeline(224)


@pytest.mark.parametrize("rows", [[True, False], [0, 6], [0.5], ["a"]])
def test_wrong_rows_are_refused(small: Dataset, rows: list) -> None:
    with pytest.raises(DataError, match="subset takes a bool mask of length 6"):
        small.subset(rows)


def test_a_row_twice_and_none_at_all_are_refused(small: Dataset) -> None:
    with pytest.raises(DataError, match="sample ids twice"):
        small.subset([1, 1])
    with pytest.raises(DataError, match="no samples"):
        small.subset([])


def test_content_hashes(small: Dataset) -> None:
    hashes = small.content_hashes
    assert hashes[4] == hashes[5]
    assert len(set(hashes)) == 5
    assert all(len(value) == 64 for value in hashes)
    assert small.subset([3, 0]).content_hashes == (hashes[3], hashes[0])  # handed on, not read again


def test_a_file_that_went_away_is_named(small: Dataset) -> None:
    small.paths[2].unlink()
    with pytest.raises(DataError, match=r"Cannot read .*c\.png: No such file.*Was it moved"):
        _ = small.content_hashes


def test_fingerprint_knows_neither_place_nor_order(small: Dataset, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "images", tmp_path / "elsewhere")
    frame = small.table.iloc[::-1].drop(columns="path")
    frame["path"] = frame["sample"]
    moved = Dataset.from_dataframe(frame, images_root=tmp_path / "elsewhere", class_names=["hem", "all"])
    assert moved.table["sample"].tolist() == small.table["sample"].tolist()[::-1]
    assert moved.fingerprint == small.fingerprint


def test_fingerprint_knows_everything_else(small: Dataset, write_image: Callable[..., Path]) -> None:
    table = small.table
    variants = [
        Dataset(table, ("all", "hem"), small.info),
        small.subset([0, 1, 3, 4, 5]),
        *(
            Dataset(table.assign(**{column: value}), small.class_names, small.info)
            for column, value in [
                ("label", "hem"),
                ("subject", table["subject"] + "x"),
                ("group", "x"),
                ("fold", 1),
                ("split", "train"),
                ("same_cell", "x"),
            ]
        ),
    ]
    prints = [variant.fingerprint for variant in [small, *variants]]
    write_image(small.paths[0], 99)
    prints.append(Dataset(table, small.class_names, small.info).fingerprint)
    assert len(set(prints)) == len(prints)


@given(order=st.permutations(range(6)))
def test_summary_does_not_depend_on_order(order: list[int]) -> None:
    rows = [("hem", "H1", 0), ("hem", "H2", 0), ("all", "1", 0), ("all", "1", 1), ("all", "2", 1), (None, None, None)]
    frame = pd.DataFrame([rows[i] for i in order], columns=["label", "subject", "fold"])
    frame = frame.assign(sample=[f"s{i}" for i in order], path=[f"/{i}" for i in order])
    frame["split"] = np.where(frame["label"].isna(), "final", "train")
    summary = of_frame(frame).summary()
    assert summary.loc[("train", "0")].to_dict() == {
        "images": 3, "hem": 2, "all": 1, "unlabelled": 0, "subjects": 3, "groups": 3
    }  # fmt: skip
    assert summary.loc[("train", "1"), ["images", "subjects"]].tolist() == [2, 2]
    assert summary.loc[("final", "-"), ["images", "unlabelled", "subjects"]].tolist() == [1, 1, 0]


def test_to_numpy_keeps_the_order(small: Dataset) -> None:
    pipeline = Pipeline.default(4, canvas=8)
    pixels = small.to_numpy(pipeline)
    assert pixels.shape == (6, 4, 4, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.stack([pipeline.load(path) for path in small.paths]))
    assert small.to_numpy(Pipeline(), show_progress=False).shape == (6, 8, 8, 3)


def test_to_numpy_names_every_bad_file_at_once(small: Dataset) -> None:
    for row in (1, 4):
        small.paths[row].write_bytes(small.paths[row].read_bytes()[:60])
    with pytest.raises(ImageError, match="2 of 6 images cannot be read") as caught:
        small.to_numpy(Pipeline.default(4, canvas=450))
    for row in (1, 4):
        assert str(small.paths[row]) in str(caught.value)


def test_to_numpy_names_ten_of_many(tmp_path: Path) -> None:
    for number in range(14):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    frame = pd.DataFrame({"path": [f"{number}.png" for number in range(14)], "label": ["a", "b"] * 7})
    with pytest.raises(ImageError, match="and 4 more") as caught:
        Dataset.from_dataframe(frame, images_root=tmp_path).to_numpy(Pipeline.default(4, canvas=450))
    assert str(caught.value).count("it is none of BMP") == 10


def test_to_numpy_asks_for_one_size(small: Dataset, write_image: Callable[..., Path]) -> None:
    write_image(small.paths[0], 0, size=12)
    with pytest.raises(SettingsError, match=r"images of 8 x 8 and 12 x 12 pixels: let it end in Resize"):
        small.to_numpy(Pipeline())


def test_from_dataframe_takes_labels_of_any_type(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    paths = [write_image(tmp_path / f"{i}.png", i) for i in range(3)]
    frame = pd.DataFrame({"Path": paths, "LABEL": [1, 0, None], "patient": ["x", "y", "z"]})
    dataset = Dataset.from_dataframe(frame)
    assert dataset.class_names == ("0", "1")
    assert dataset.labels.tolist() == [1, 0, -1]
    assert dataset.table["sample"].tolist() == ["0.png", "1.png", "2.png"]
    assert not dataset.has_subjects


def test_a_series_as_mask_is_taken_by_its_index(small: Dataset) -> None:
    shuffled = small.table.sort_values("sample", ascending=False)
    chosen = small.subset(shuffled["label"] == small.class_names[0])
    assert set(chosen.table["label"]) == {small.class_names[0]}
    assert chosen.table["sample"].tolist() == small.subset(small.labels == 0).table["sample"].tolist()
    with pytest.raises(DataError, match="a Series: with the index of `table`"):
        small.subset(shuffled.set_index("sample")["label"] == small.class_names[0])


def test_classes_can_be_left_out_and_the_source_remembers(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    """20.32: by a method or when loading; what `source` says loads the same data again."""
    for name in ("a/1.png", "b/1.png", "c/1.png", "c/2.png"):
        write_image(tmp_path / name, len(name))
    loaded = Dataset.load("folder", tmp_path, drop_classes=["b"])
    assert loaded.class_names == ("a", "c")
    assert loaded.table["label"].tolist() == ["a", "c", "c"]
    assert loaded.labels.tolist() == [0, 1, 1]
    dropped = Dataset.load("folder", tmp_path).drop_classes(["b"])
    assert dropped.source == loaded.source
    source = dropped.source
    assert source is not None
    again = Dataset.load(source["name"], source["root"], **source["options"])
    assert again.fingerprint == dropped.fingerprint
    with pytest.raises(UnknownNameError, match=r"There is no class 'B'\. Did you mean 'b'"):
        Dataset.load("folder", tmp_path, drop_classes="B")
    with pytest.raises(DataError, match="at least two different class names"):
        loaded.drop_classes(["a"])


def test_counts_of_the_whole_are_not_declared_for_a_part() -> None:
    """20.22: a subset keeps the declared numbers that are still its own."""
    images = np.zeros((4, 4, 4, 3), np.uint8)
    info = DatasetInfo("d", "D", "x", "y", declared=(("images", 4), ("train", 2), ("test", 2)))
    whole = Dataset.from_arrays(images, [0, 1, 0, 1], ("a", "b"), info, splits=["train", "train", "test", "test"])
    assert whole.subset([0, 1, 2]).info.declared == (("train", 2),)
    assert whole.subset([3, 2, 1, 0]).info.declared == info.declared
