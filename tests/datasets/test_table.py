"""One rule for the names of classes and patients."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from leukemia_dl.datasets import Dataset
from leukemia_dl.datasets.table import one_spelling
from leukemia_dl.identity import name_key


def data_set(labels: list[object], subjects: list[object], tmp_path: Path, write_image: Callable[..., Path]) -> Dataset:
    paths = [str(write_image(tmp_path / f"{number}.png", number)) for number in range(len(labels))]
    return Dataset.from_dataframe(pd.DataFrame({"path": paths, "label": labels, "subject": subjects}))


@pytest.mark.parametrize(
    ("one", "two"),
    [("ALL", "all"), ("0", "0.0"), ("12", "12.00"), ("pre B", " pre  b "), ("caf\u00e9", "cafe\u0301")],
)
def test_spellings_of_one_name_have_one_key(one: str, two: str) -> None:
    """20.19: case, spaces, a trailing .0 and the form of accents do not make another name."""
    assert name_key(one) == name_key(two)


@pytest.mark.parametrize(("one", "two"), [("007", "7"), ("1", "1.5"), ("a.0", "a"), ("H3", "H 3"), ("", "0")])
def test_other_names_have_other_keys(one: str, two: str) -> None:
    """20.19: only what the rule names is merged."""
    assert name_key(one) != name_key(two)


def test_classes_have_one_spelling_the_most_frequent(
    tmp_path: Path, write_image: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """20.19: ALL, All and all are one class, and a warning says so."""
    dataset = data_set(["All", "ALL", "hem", "ALL", "all"], [None] * 5, tmp_path, write_image)
    assert dataset.class_names == ("ALL", "hem")
    assert dataset.labels.tolist() == [0, 0, 1, 0, 0]
    assert (
        "Classes with several spellings (in case, spaces or a trailing .0): 1, such as 'ALL', 'All', 'all', "
        "which are taken for 'ALL'" in caplog.text
    )


def test_class_names_choose_the_spelling_or_keep_two_apart() -> None:
    """20.19: what the user names is kept."""
    labels = pd.Series(["ALL", "all", "All"], dtype=object)
    assert one_spelling(labels, "classes", ("all", "hem")).tolist() == ["all"] * 3
    assert one_spelling(labels, "classes", ("all", "ALL", "All")).tolist() == labels.tolist()


def test_folders_whose_names_differ_in_case_are_one_class(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    """20.19: the same rule for the names of folders, also on two sides."""
    for name in ("train/ALL/1.png", "train/hem/1.png", "test/all/1.png", "test/hem/1.png"):
        write_image(tmp_path / name)
    dataset = Dataset.from_folder(tmp_path, class_names=["hem", "all"])
    assert dataset.table.groupby(["split", "label"]).size().tolist() == [1, 1, 1, 1]


def test_a_patient_has_one_name(
    tmp_path: Path, write_image: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """20.19: 12 and 12.0, p3 and P3 are one patient; otherwise their images would be on two sides."""
    table = data_set(["a", "b"] * 3, ["12", "12.0", "p3", "P3", "007", "7"], tmp_path, write_image).table
    assert table["subject"].tolist() == table["group"].tolist() == ["12", "12", "P3", "P3", "007", "7"]
    assert "Patients with several spellings (in case, spaces or a trailing .0): 2" in caplog.text


def test_parts_with_other_spellings_of_a_patient_come_together() -> None:
    """20.19: the rule holds for arrays and where two data sets are joined."""
    images = np.zeros((2, 4, 4, 3), np.uint8)
    one, two = (
        Dataset.from_arrays(images, [0, 1], ("a", "b"), samples=[f"{name}{i}" for i in range(2)], subjects=[name, "x"])
        for name in ("12.0", "12")
    )
    assert one.table["subject"].tolist() == ["12", "x"]
    assert one.merge(two).table["subject"].nunique() == 2


def test_words_for_unknown_are_no_patient(
    tmp_path: Path, write_image: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """20.19: NULL, n/a, none, unknown, -, ? are not known, with a warning; an empty cell says nothing new."""
    words = ["NULL", "n/a", "none", "Unknown", " - ", "?", "", None, "p1"]
    with caplog.at_level(logging.WARNING):
        dataset = data_set(["a", "b"] * 4 + ["a"], words, tmp_path, write_image)
    assert dataset.table["subject"].isna().tolist() == [True] * 8 + [False]
    assert not dataset.has_subjects
    assert (
        "6 images name their patient ' - ', '?', 'NULL', 'Unknown', 'n/a', 'none': taken for not known" in caplog.text
    )
    caplog.clear()
    dataset.subset(range(9))
    assert not caplog.text


def test_a_group_that_is_unknown_is_that_of_the_known_patient(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    """20.19: "-" in the column group made patients unknown that the column subject names."""
    paths = [str(write_image(tmp_path / f"{row}.png", row)) for row in range(4)]
    table = pd.DataFrame(
        {"path": paths, "label": ["a", "b"] * 2, "subject": ["p1", "p1", "p2", "p3"], "group": ["-", "NA", "", "g"]}
    )
    dataset = Dataset.from_dataframe(table)
    assert dataset.table["group"].tolist() == ["p1", "p1", "p2", "g"]
    assert dataset.has_subjects
