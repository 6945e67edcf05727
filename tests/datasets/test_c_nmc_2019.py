"""C-NMC 2019 in every layout that is around, with subjects, labels and linked sets exactly right."""

import logging
import re
import runpy
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leukemia_dl.datasets import Dataset
from leukemia_dl.datasets.sources.c_nmc_2019 import LINKED_SUBJECTS, NAME
from leukemia_dl.datasets.sources.files import FLAGS
from leukemia_dl.errors import DataError

TRAINING = {0: ["UID_1_1_1_all", "UID_20_1_1_all", "UID_H6_2_1_hem"], 2: ["UID_21_1_10_all", "UID_h3_1_1_hem"]}
LABELS = (
    "Patient_ID,new_names,labels\r\nUID_57_29_1_all.bmp,10.bmp,1\r\n"
    "UID_H40_3_2_hem.bmp,2.bmp,0\r\nUID_57_1_1_all.bmp,3.bmp,1\r\n"
)
PRELIMINARY, FINAL = "C-NMC_test_prelim_phase_data", "C-NMC_test_final_phase_data"


def touch(path: Path, content: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content or path.name, newline="")


def fill(training: Path, preliminary: Path, labels: Path, final: Path) -> None:
    for fold, names in TRAINING.items():
        for name in names:
            touch(training / f"fold_{fold}" / name[-3:] / f"{name}.bmp")
    for name in ("2", "10"):  # 3.bmp is missing, as in a partial copy
        touch(preliminary / f"{name}.bmp")
    touch(labels / f"{PRELIMINARY}_labels.csv", LABELS)
    touch(final / "7.bmp")


def kaggle(root: Path) -> Path:
    top = root / "C-NMC_Leukemia"
    validation = top / "validation_data"
    fill(top / "training_data", validation / PRELIMINARY, validation, top / "testing_data" / FINAL)
    return top


def tcia(root: Path) -> Path:
    fill(root / "C-NMC_training_data", root / PRELIMINARY, root / PRELIMINARY, root / FINAL)
    return root


def twins(root: Path) -> Path:
    twice = [root / name / name for name in ("C-NMC_training_data", PRELIMINARY, FINAL)]
    fill(twice[0], twice[1], twice[1].parent, twice[2])
    return root


LAYOUTS = [kaggle, tcia, twins]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_load_alike(tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    dataset = Dataset.load("c_nmc_2019", root=layout(tmp_path / "data"))
    table = dataset.table.set_index("sample")
    assert dataset.class_names == ("hem", "all")
    assert dataset.info.canvas == 450
    assert list(table.index) == [*TRAINING[0], *TRAINING[2], "prelim/10", "prelim/2", "final/7"]
    row = table.loc["UID_21_1_10_all"]
    assert row[["label", "subject", "field", "cell", "fold", "split"]].tolist() == ["all", "21", "1", "10", 2, "train"]
    assert table.loc["UID_h3_1_1_hem", ["subject", "group"]].tolist() == ["H3", "H3+H10"]
    assert table.loc["UID_20_1_1_all", "group"] == table.loc["UID_21_1_10_all", "group"] == "20+21"
    assert table.loc["UID_1_1_1_all", "group"] == "1"
    # Joined on names, so the second line of the CSV does not become the second file of the listing.
    assert table.loc["prelim/10", ["label", "subject", "split"]].tolist() == ["all", "57", "preliminary"]
    assert table.loc["prelim/2", ["label", "subject"]].tolist() == ["hem", "H40"]
    assert table.loc["final/7", ["label", "subject", "group", "fold"]].isna().all()
    assert table.loc["final/7", "split"] == "final"
    assert all(path.is_absolute() and path.is_file() for path in dataset.paths)
    assert dataset.has_subjects


def test_all_layouts_have_one_fingerprint(tmp_path: Path) -> None:
    datasets = [Dataset.load("c_nmc_2019", root=layout(tmp_path / layout.__name__)) for layout in LAYOUTS]
    assert len({dataset.fingerprint for dataset in datasets}) == 1


@pytest.mark.parametrize(
    ("layout", "root"),
    [
        (kaggle, "."),
        (kaggle, "C-NMC_Leukemia/training_data"),
        (kaggle, f"C-NMC_Leukemia/validation_data/{PRELIMINARY}"),
        (tcia, ".."),
        (tcia, "C-NMC_training_data"),
        (twins, "C-NMC_training_data/C-NMC_training_data"),
    ],
)
def test_root_too_high_or_too_low(tmp_path: Path, layout: Callable[[Path], Path], root: str) -> None:
    layout(tmp_path / "data")
    assert len(Dataset.load("c_nmc_2019", root=(tmp_path / "data" / root).resolve())) == 8


def test_partial_copies_load(tmp_path: Path) -> None:
    top = kaggle(tmp_path)
    shutil.rmtree(top / "validation_data")
    shutil.rmtree(top / "testing_data")
    shutil.rmtree(top / "training_data" / "fold_0" / "hem")
    assert len(Dataset.load("c_nmc_2019", root=top)) == 4
    touch(tmp_path / "only" / "fold_1" / "ALL" / "UID_5_1_1_ALL.BMP")
    only = Dataset.load("c_nmc_2019", root=tmp_path / "only").table
    assert only[["sample", "label", "fold"]].to_numpy().tolist() == [["UID_5_1_1_ALL", "all", 1]]


def test_preliminary_without_labels_is_loaded_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    top = kaggle(tmp_path)
    labels = next(top.rglob("*.csv"))
    labels.write_text(LABELS.replace(",2.bmp,", ",4.bmp,"), newline="")
    with caplog.at_level(logging.WARNING):
        table = Dataset.load("c_nmc_2019", root=top).table.set_index("sample")
    assert table.loc["prelim/2", ["label", "subject"]].isna().all()
    assert table.loc["prelim/10", "label"] == "all"
    assert "1 preliminary images have no label" in caplog.text
    labels.unlink()
    assert Dataset.load("c_nmc_2019", root=top).table["split"].value_counts()["preliminary"] == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",10.bmp,1", ",10.bmp,0", r"row 1: .*'10.bmp', '0'\]. .*all is 1, hem 0"),
        (",10.bmp,1", ",10.bmp", "row 1: .*'10.bmp', ''"),
        ("UID_57_29_1_all.bmp", "57", r"row 1: \['57', .*Wanted: .* such as UID_57_29_1_all.bmp"),
        (",3.bmp", ",2.bmp", "row 3: .*'2.bmp', .*each file once"),
        ("new_names", "names", "Wanted: Patient_ID, new_names, labels such as"),
    ],
)
def test_label_file_is_checked(tmp_path: Path, old: str, new: str, message: str) -> None:
    top = kaggle(tmp_path)
    next(top.rglob("*.csv")).write_text(LABELS.replace(old, new), newline="")
    with pytest.raises(DataError, match=message):
        Dataset.load("c_nmc_2019", root=top)


def test_label_file_in_another_encoding(tmp_path: Path) -> None:
    top = kaggle(tmp_path)
    next(top.rglob("*.csv")).write_bytes(b"\xff\xfe" + LABELS.encode("utf-16-le"))
    with pytest.raises(DataError, match="cannot be read as CSV"):
        Dataset.load("c_nmc_2019", root=top)


def test_name_against_folder(tmp_path: Path) -> None:
    top = kaggle(tmp_path)
    touch(top / "training_data" / "fold_0" / "hem" / "UID_9_1_1_all.bmp")
    with pytest.raises(DataError, match=r"UID_9_1_1_all\.bmp says 'all' in its name but lies in the folder 'hem'"):
        Dataset.load("c_nmc_2019", root=top)


def test_strange_files_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    top = kaggle(tmp_path)
    for name in ("notes.txt", "._UID_1_1_1_all.bmp", "cell.bmp", "UID_1_1_all.bmp"):
        touch(top / "training_data" / "fold_0" / "all" / name)
    with caplog.at_level(logging.WARNING):
        assert len(Dataset.load("c_nmc_2019", root=top)) == 8
    assert "left out 2 files" in caplog.text


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone/deeper does not exist \(the nearest folder that exists is "):
        Dataset.load("c_nmc_2019", root=tmp_path / "gone" / "deeper")
    with zipfile.ZipFile(tmp_path / "C-NMC.zip", "w") as archive:
        archive.writestr("x", b"x")
    with pytest.raises(DataError, match=r"C-NMC\.zip is an archive: unpack it first"):
        Dataset.load("c_nmc_2019", root=tmp_path / "C-NMC.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"does not look like C-NMC 2019. Wanted: the folder C-NMC_Leukemia.*nothing"):
        Dataset.load("c_nmc_2019", root=tmp_path / "empty")
    touch(tmp_path / "other" / "cats" / "1.bmp")
    with pytest.raises(DataError, match="Found in it: cats"):
        Dataset.load("c_nmc_2019", root=tmp_path / "other")
    (tmp_path / "hollow" / "fold_0" / "all").mkdir(parents=True)
    with pytest.raises(DataError, match="Found in it: fold_0"):
        Dataset.load("c_nmc_2019", root=tmp_path / "hollow")


def test_two_copies_are_a_question(tmp_path: Path) -> None:
    tcia(tmp_path / "data" / "one")
    kaggle(tmp_path / "data")
    with pytest.raises(DataError, match="several copies of C-NMC"):
        Dataset.load("c_nmc_2019", root=tmp_path / "data")


@given(
    subject=st.integers(0, 999).map(str) | st.integers(0, 99).map("H{}".format),
    field=st.integers(0, 999),
    cell=st.integers(0, 99),
    label=st.sampled_from(["all", "hem"]),
    lower=st.booleans(),
)
def test_names_round_trip(subject: str, field: int, cell: int, label: str, lower: bool) -> None:
    name = f"UID_{subject}_{field}_{cell}_{label}.bmp"
    found = re.fullmatch(NAME, name.lower() if lower else name, FLAGS)
    assert found is not None
    assert found.groups() == tuple(part.lower() if lower else part for part in (subject, str(field), str(cell), label))


OTHER_NAMES = [
    "1.bmp",
    "UID_1_1_all.bmp",
    "UID_X1_1_1_all.bmp",
    "UID_1_1_1_cll.bmp",
    "UID_1_1_1_all.bmp\n",
    "UID_1_1_1_all.png",
    "UID_\u0661_1_1_all.bmp",
]


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_other_names_are_none(name: str) -> None:
    assert re.fullmatch(NAME, name, FLAGS) is None


def test_real_sample(c_nmc_sample: Path) -> None:
    dataset = Dataset.load("c_nmc_2019", root=c_nmc_sample)
    summary = dataset.summary()
    assert summary["images"].to_dict() == {
        ("final", "-"): 4, ("preliminary", "-"): 2, ("train", "0"): 21, ("train", "1"): 13, ("train", "2"): 20
    }  # fmt: skip
    assert summary["unlabelled"].sum() == 4
    groups = dataset.table.groupby("group")["subject"].agg(lambda names: tuple(sorted(set(names))))
    assert {names for names in groups if len(names) > 1} == {("H2", "H4", "H6"), ("H10", "H3")}
    assert len(Dataset.load("c_nmc_2019", root=c_nmc_sample.parent)) == len(dataset) == 60


def test_all_15114_names(c_nmc_tree: Path) -> None:
    dataset = Dataset.load("c_nmc_2019", root=c_nmc_tree)
    declared = dict(dataset.info.declared)
    summary = dataset.summary()
    assert len(dataset) == declared["images"]
    for fold, (hem, leukemic, subjects) in {0: (1130, 2397, 28), 1: (1163, 2418, 14), 2: (1096, 2457, 31)}.items():
        row = summary.loc[("train", str(fold))]
        assert row[["hem", "all", "subjects"]].tolist() == [hem, leukemic, subjects]
        assert row["images"] == declared[f"fold {fold}"]
    assert summary.loc[("preliminary", "-"), ["hem", "all", "subjects"]].tolist() == [648, 1219, 28]
    assert summary.loc[("final", "-"), ["images", "unlabelled"]].tolist() == [2586, 2586]
    table = dataset.table
    assert table["subject"].nunique() == declared["subjects"]
    training = table[table["split"] == "train"]
    per_class = training.groupby("label")[["subject", "group"]].nunique()
    assert per_class.loc["all"].tolist() == [47, 44]
    assert per_class.loc["hem"].tolist() == [26, 21]


def test_same_cells_are_those_of_the_boxes(c_nmc_tree: Path, c_nmc_manifest: Path) -> None:
    table = Dataset.load("c_nmc_2019", root=c_nmc_tree).table
    boxes = pd.read_csv(c_nmc_manifest / "bounding_boxes.csv")
    boxes["sample"] = boxes["file_name"].str.removesuffix(".bmp")
    rows = table.merge(boxes, on="sample", validate="one_to_one")
    assert len(rows) == 10_661
    linked = {subject for members in LINKED_SUBJECTS for subject in members}
    rows = rows[rows["subject"].isin(linked)]
    sets = rows.groupby(["group", "label", "x", "y", "width", "height"])["sample"].agg(frozenset)
    expected = {pair for pair in sets if len(pair) > 1}
    assert len(expected) == 352
    found = table.dropna(subset="same_cell").groupby("same_cell")["sample"].agg(frozenset)
    assert set(found) == expected


def test_linked_sets_hold_every_identical_pair(c_nmc_tree: Path, c_nmc_manifest: Path) -> None:
    pairs = pd.read_csv(c_nmc_manifest / "byte_identical.tsv", sep="\t", header=None, names=["one", "other"])
    groups = {subject: members for members in LINKED_SUBJECTS for subject in members}
    names = pairs.map(lambda path: re.fullmatch(NAME, Path(path).name, FLAGS)).dropna()
    assert len(names) == 104  # the other two pairs are in the final test set
    for one, other in names.itertuples(index=False):
        first, second = one["subject"].upper(), other["subject"].upper()
        assert first == second or groups[first] == groups[second]
        assert one["label"].lower() == other["label"].lower()


LINKED = {
    ("51", "78"): 86, ("20", "21"): 71, ("51", "75"): 59, ("H10", "H3"): 27,
    ("H2", "H5"): 17, ("H2", "H6"): 10, ("H2", "H7"): 9, ("H2", "H4"): 7,
}  # fmt: skip


def test_the_boxes_show_which_subjects_are_linked(c_nmc_manifest: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "linked_subjects.py"
    linked_by_boxes = runpy.run_path(str(script))["linked_by_boxes"]
    boxes = pd.read_csv(c_nmc_manifest / "bounding_boxes.csv")
    found = linked_by_boxes(boxes)
    assert dict(zip(zip(found["subject"], found["other"], strict=True), found["shared"], strict=True)) == LINKED
    assert list(found["shared"]) == sorted(LINKED.values(), reverse=True)
    chance = linked_by_boxes(boxes, at_least=1)
    assert set(chance["shared"][len(LINKED) :]) == {1}, "any other two share one box at most"
