"""A CSV file of paths and labels; whatever is wrong with it is said with the row's number."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from leukemia_dl.datasets import Dataset
from leukemia_dl.errors import DataError, SettingsError


@pytest.fixture
def folder(tmp_path: Path, write_image: Callable[..., Path]) -> Path:
    for number in range(4):
        write_image(tmp_path / "images" / f"{number}.png", number)
    return tmp_path


def save(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "table.csv"
    path.write_bytes(text.encode(encoding))
    return path


GOOD = "path,label,subject,fold,split\nimages/0.png,hem,007,0,train\nimages/1.png,all,8,1,test\n"


def test_everything_that_may_be_in_it(folder: Path) -> None:
    dataset = Dataset.from_csv(save(folder, GOOD))
    table = dataset.table
    assert dataset.class_names == ("all", "hem")
    assert table["sample"].tolist() == ["images/0.png", "images/1.png"]
    assert table["subject"].tolist() == table["group"].tolist() == ["007", "8"]
    assert table["fold"].tolist() == [0, 1]
    assert table["split"].tolist() == ["train", "test"]
    assert dataset.paths[0] == folder / "images" / "0.png"


def test_class_names_give_the_order(folder: Path) -> None:
    dataset = Dataset.load("csv", path=save(folder, GOOD), class_names="hem,all")
    assert dataset.class_names == ("hem", "all")
    assert dataset.labels.tolist() == [0, 1]


def test_a_canvas_keeps_the_scale(folder: Path) -> None:
    path = save(folder, GOOD)
    assert Dataset.from_csv(path).info.canvas is None
    assert Dataset.from_csv(path, canvas=450).info.canvas == 450
    loaded = Dataset.load("csv", path=path, canvas=450)
    assert loaded.info.canvas == 450
    assert loaded.source["options"] == {"canvas": 450}
    numpy = Dataset.load("csv", path=path, canvas=np.int64(450))
    assert type(numpy.source["options"]["canvas"]) is type(numpy.info.canvas) is int
    assert loaded.fingerprint == Dataset.from_csv(path).fingerprint


def test_byte_order_mark_crlf_spaces_quotes_and_further_columns(folder: Path) -> None:
    text = 'Path, Label ,Subject,comment\r\nimages/0.png, hem,"a, b",x\r\nimages/1.png,all ,,\r\n'
    table = Dataset.from_csv(save(folder, text, "utf-8-sig")).table
    assert table["label"].tolist() == ["hem", "all"]
    assert table["subject"].isna().tolist() == [False, True]
    assert table["subject"][0] == "a, b"


def test_na_is_no_patient(folder: Path) -> None:
    text = "path,label,subject,group\nimages/0.png,hem,NA,nan\nimages/1.png,NA,7,\n"
    table = Dataset.from_csv(save(folder, text)).table
    assert table["subject"].isna().tolist() == [True, False]
    assert table["group"].isna().tolist() == [True, False]
    assert table["label"].tolist() == ["hem", "NA"]  # a class may be called so


@pytest.mark.parametrize("name", ["patient", "Patient_ID"])
def test_a_column_of_patients_must_be_called_subject(folder: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    text = f"path,label,{name},comment\nimages/0.png,hem,p1,x\nimages/1.png,all,p2,x\n"
    assert not Dataset.from_csv(save(folder, text)).has_subjects
    assert f"columns that are not used: comment, {name.lower()}" in caplog.text
    assert f"Rename {name.lower()} to subject, otherwise no patient is known" in caplog.text
    caplog.clear()
    assert Dataset.from_csv(save(folder, text.replace(",comment", ",subject"))).has_subjects
    assert "Rename" not in caplog.text


def test_a_csv_file_is_loaded_by_its_path_and_remembered(folder: Path) -> None:
    path = save(folder / "images", "path,label\nimages/0.png,hem\nimages/1.png,all\n")
    loaded = Dataset.load("csv", path=path, images_root=str(folder))
    assert loaded.source == {"name": "csv", "root": str(path), "options": {"images_root": str(folder)}}
    again = Dataset.load(loaded.source["name"], loaded.source["root"], **loaded.source["options"])
    assert again.fingerprint == loaded.fingerprint == Dataset.from_csv(path, images_root=folder).fingerprint


def test_rows_of_system_files_are_left_out(
    folder: Path, write_image: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """20.18: a table that a script made of all files names thumbnails and copies too."""
    names = ["images/0.png", "images/1.png", "images/@eaDir/2.png", "images/._0.png", ".ipynb_checkpoints/3.png"]
    for number, name in enumerate(names):
        write_image(folder / name, number)
    rows = [f"{name},{'ab'[number % 2]}" for number, name in enumerate(names)]
    dataset = Dataset.from_csv(save(folder, "\n".join(["path,label", *rows])))
    assert dataset.table["sample"].tolist() == names[:2]
    assert "left out 3 rows of hidden or system files, such as 'images/@eaDir/2.png'" in caplog.text


def test_root_and_absolute_paths_give_the_same_ids(folder: Path) -> None:
    inner = folder / "tables"
    inner.mkdir()
    texts = {
        "relative": "path,label\n0.png,a\n1.png,b\n",
        "absolute": f"path,label\n{folder}/images/0.png,a\n{folder}/images/1.png,b\n",
    }
    ids = [
        Dataset.from_csv(save(inner, text), images_root=folder / "images").table["sample"].tolist()
        for text in texts.values()
    ]
    ids.append(Dataset.from_csv(save(inner, texts["absolute"])).table["sample"].tolist())
    ids.append(
        Dataset.from_csv(save(inner, "path,label\n../images/0.png,a\n../images/1.png,b\n")).table["sample"].tolist()
    )
    assert ids == [["0.png", "1.png"]] * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as CSV in UTF-8: No columns .*Wanted: a CSV file in UTF-8"),
        ("path,label\n", "has no rows"),
        ("file,label\n0.png,a\n", "needs the columns path and label, once each. Found: file, label"),
        ("path;label\nimages/0.png;a\n", "Found: path;label"),
        ("path,label,Label\nimages/0.png,a,b\n", "needs the columns path and label, once each"),
        (
            "path,label\nimages/0.png,a\nimages/9.png,b\n",
            r"names 'images/9.png' in row 2, which is no file that can be read\. .* images_root=",
        ),
        ("path,label\nimages/0.png,a\nimages,b\n", "'images' in row 2, which is no file that can be read"),
        ("path,label\nimages/0.png,a\n,b\n", "has no path in row 2"),
        ("path,label\nimages/0.png,a\nimages/1.png,\n", "has no label in row 2"),
        ("path,label\nimages/0.png,a\nimages/./0.png,b\n", r"names the file 'images/./0.png' twice, in rows 1 and 2"),
        ("path,label\nimages/0.png,a\nimages/1.png,a\n", "has one class only, 'a'"),
        ("path,label,fold\nimages/0.png,a,x\nimages/1.png,b,0\n", "Folds are whole numbers"),
        ("path,label,split\nimages/0.png,a,x\nimages/1.png,b,\n", "unknown split 'x'. Allowed: train, val"),
        ('path,label\n"images/0.png,a\n', "cannot be read as CSV"),
        ("path,label\nimages/0.png,a,x\nimages/1.png,b\n", "cannot be read as CSV"),
    ],
)
def test_bad_tables(folder: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Dataset.from_csv(save(folder, text))
    assert "Traceback" not in str(caught.value)


def test_unknown_label(folder: Path) -> None:
    path = save(folder, "path,label\nimages/0.png,hem\nimages/1.png,pro\n")
    with pytest.raises(
        DataError, match=r"table.csv has the unknown label 'pro' in row 2. Allowed by class_names: hem, all"
    ):
        Dataset.from_csv(path, class_names=["hem", "all"])


def test_other_encodings(folder: Path) -> None:
    with pytest.raises(DataError, match=r"table\.csv cannot be read as CSV in UTF-8: .*codec can't decode"):
        Dataset.from_csv(save(folder, "path,label\nimages/0.png,caf\xe9\n", "latin-1"))


def test_no_file_a_folder_no_root(folder: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv cannot be read as CSV in UTF-8: it is no file"):
        Dataset.from_csv(folder / "gone.csv")
    with pytest.raises(DataError, match=r"it is no file; a folder per class is loaded by Dataset\.from_folder"):
        Dataset.from_csv(folder)
    with pytest.raises(SettingsError, match=r"'csv' is on your disk: pass path=\.\.\., command line: --root PATH"):
        Dataset.load("csv")
