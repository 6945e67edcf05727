"""C-NMC 2019 (ISBI 2019 challenge): leukemic B-lymphoblasts, `all`, against normal precursors, `hem`.

Training files are called `UID_<subject>_<field>_<cell>_<all|hem>.bmp`, preliminary ones `1.bmp` and so on; the original
names of these, so subjects and labels, are in a CSV file. The labels of the final test set were never released.

Some subjects are one patient under two names, or were given each other's cells: docs/explanation/c_nmc_2019.md. The
352 pairs of images of one cell are in `c_nmc_2019_same_cells.csv`, derived from public annotations of the challenge.
"""

import logging
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pandas as pd

from leukemia_dl.datasets.sources.files import FLAGS, find_copy, listed, read_text_csv
from leukemia_dl.datasets.table import DatasetInfo, Table
from leukemia_dl.errors import DataError

CLASS_NAMES = ("hem", "all")
LINKED_SUBJECTS = (("20", "21"), ("51", "75", "78"), ("H2", "H4", "H5", "H6", "H7"), ("H3", "H10"))
NAME = r"UID_(?P<subject>H?\d+)_(?P<field>\d+)_(?P<cell>\d+)_(?P<label>all|hem)\.bmp"
"""Name of a training image in any case: `UID_h3_1_2_HEM.bmp` is of the subject H3 and the class hem."""
INFO = DatasetInfo(
    "c_nmc_2019", "C-NMC 2019", "CC BY 3.0 (as stated in a public dataset note)",
    "Gupta, A., & Gupta, R. (2019). ALL Challenge dataset of ISBI 2019 [Data set]. The Cancer Imaging Archive. "
    "https://doi.org/10.7937/tcia.2019.dc64i46r",
    url="https://doi.org/10.7937/tcia.2019.dc64i46r", class_names=CLASS_NAMES, canvas=450, test_fold=2,
    declared=(("images", 15_114), ("subjects", 101), ("fold 0", 3_527), ("fold 1", 3_581), ("fold 2", 3_553),
              ("preliminary", 1_867), ("final", 2_586)),
)  # fmt: skip
_SIDES = {"c-nmc_test_prelim_phase_data": "preliminary", "c-nmc_test_final_phase_data": "final"}
_OUTER = ("training_data", "c-nmc_training_data", "validation_data", "testing_data", *_SIDES)
_LAYOUT = (
    rf"(?P<copy>(?:[^/]+/)*?)(?P<folders>(?:(?:{'|'.join(_OUTER)})/)*"
    rf"(?:fold_(?P<fold>\d)/(?P<class>all|hem)|(?P<side>{'|'.join(_SIDES)})))/"
    rf"(?:(?P<image>(?(side)[^/]+\.bmp|{NAME}))|[^/]+)"
)
_LABELS = "c-nmc_test_prelim_phase_data_labels.csv"
_WANTED = "the folder C-NMC_Leukemia with training_data/fold_0/all/UID_1_1_1_all.bmp and so on, or TCIA's folders"
_FACTS = ["subject", "field", "cell", "label"]
_log = logging.getLogger(__name__)


def read_c_nmc(root: Path, info: DatasetInfo = INFO, linked: Sequence[Sequence[str]] = LINKED_SUBJECTS) -> Table:
    """Return the table of C-NMC 2019 in the layout of Kaggle or of TCIA, whole or in part.

    `linked` are sets of subjects that share cells: one group each. `sample` is the file's name without suffix for
    training images, `prelim/1` and `final/1` for the others. Images that the CSV does not name have no label.
    """
    place, matches = find_copy(root, _LAYOUT, _OUTER, info.title, _WANTED)
    table = pd.DataFrame([match.groupdict() for match in matches], dtype=object)
    table["path"] = [str(place / match["folders"] / match["image"]) for match in matches]
    table["split"] = table["side"].str.lower().map(_SIDES).fillna("train")
    stems = table["image"].str.slice(stop=-len(".bmp"))
    table["sample"] = table["split"].map({"preliminary": "prelim/", "final": "final/"}).fillna("") + stems
    preliminary = table["split"] == "preliminary"
    originals = _read_labels({place / folders for folders in table["folders"][preliminary]})
    table.loc[preliminary, _FACTS] = originals.reindex(stems[preliminary].str.lower())[_FACTS].to_numpy()
    table["subject"], table["label"] = table["subject"].str.upper(), table["label"].str.lower()
    wrong = table["class"].notna() & (table["class"].str.lower() != table["label"])
    if wrong.any():
        path, folder, label = table.loc[wrong, ["path", "class", "label"]].iloc[0]
        raise DataError(f"{path} says {label!r} in its name but lies in the folder {folder!r}.")
    if missing := int((preliminary & table["label"].isna()).sum()):
        _log.warning("%d preliminary images have no label: no row of a file %s names them", missing, _LABELS)
    table = table.sort_values("split", ascending=False, kind="stable", ignore_index=True)  # training images first
    table["group"] = table["subject"].map({subject: "+".join(members) for members in linked for subject in members})
    with (resources.files(__package__) / "c_nmc_2019_same_cells.csv").open(encoding="ascii") as file:
        pairs = pd.read_csv(file).to_numpy()
    same_cells = {sample.lower(): pair[0] for pair in pairs for sample in pair}
    table["same_cell"] = table["sample"].str.lower().map(same_cells if linked else {})
    return table, CLASS_NAMES, info


def _read_labels(folders: set[Path]) -> pd.DataFrame:
    """Return the facts by the stems of preliminary images, in lower case, of the CSV file in or above their folders."""
    places = sorted(folders | {folder.parent for folder in folders})
    tables = [path for place in places for path in listed(place, ".csv") if path.name.lower() == _LABELS]
    if not tables:
        return pd.DataFrame(columns=_FACTS)
    columns = ["Patient_ID", "new_names", "labels"]
    frame = read_text_csv(tables[0], "the file of the original archive")
    frame = frame.reindex(columns=columns, fill_value="").fillna("")
    new = frame["new_names"].str.lower().str.removesuffix(".bmp")
    facts = frame["Patient_ID"].str.extract(rf"\A{NAME}\Z", FLAGS)
    codes = facts["label"].str.lower().map({name: str(code) for code, name in enumerate(CLASS_NAMES)})
    wrong = ((codes != frame["labels"]) | new.duplicated()).to_numpy()
    if wrong.any():
        row, wanted = int(wrong.argmax()), "such as UID_57_29_1_all.bmp, 1.bmp, 1; all is 1, hem 0; each file once"
        raise DataError(f"{tables[0]}, row {row + 1}: {[*frame.iloc[row]]}. Wanted: {', '.join(columns)} {wanted}.")
    return facts.set_index(new)
