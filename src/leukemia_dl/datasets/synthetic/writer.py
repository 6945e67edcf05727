"""Write a synthetic data set in C-NMC 2019's Kaggle layout, whole or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from leukemia_dl.atomic import new_folder
from leukemia_dl.datasets.synthetic.cells import draw_cell
from leukemia_dl.datasets.synthetic.cohort import GENERATOR_VERSION, SyntheticCohort, draw_cohort
from leukemia_dl.errors import DataError
from leukemia_dl.progress import parallel_map

__all__ = ["NOTE_NAME", "write_dataset"]

NOTE_NAME = "synthetic.json"
NOTICE = (
    "The cells in this folder are synthetic: drawn by leukemia_dl, not photographed. "
    "No result on them says anything about patients, and every result must be labelled synthetic."
)
TOP = Path("C-NMC_Leukemia")
PRELIMINARY = TOP / "validation_data" / "C-NMC_test_prelim_phase_data"
FINAL = TOP / "testing_data" / "C-NMC_test_final_phase_data"
FRAME, FINAL_FRAME = 450, 600


def write_dataset(
    root: Path, settings: SyntheticCohort, workers: int | None = None, show_progress: bool = True
) -> Path:
    """Write the data set under `root`, or find it there.

    The files are written into a folder beside `root` that is moved in place at the end: an interrupted call leaves
    nothing behind. They are the same for equal settings, whatever the number of workers.

    Args:
        root: Folder that will hold `C-NMC_Leukemia/` and `synthetic.json`; absent, empty, or written by an
            earlier call with equal settings, which is then used as it is.
        settings: What to draw.
        workers: Threads that draw; by default one per processor, at most 8.
        show_progress: Whether to tell how far it is, on standard error.

    Returns:
        `root`.

    Raises:
        DataError: If `root` holds something else, or cannot be written.
    """
    root = Path(root)
    cohort = draw_cohort(settings)
    try:
        _write_once(root, cohort, settings, workers, show_progress)
    except OSError as error:
        raise DataError(
            f"The synthetic data set cannot be written to {str(root)!r}: {error}. "
            f"It needs a writable folder and about {_megabytes(cohort):,} MB. Pass another folder or make room."
        ) from error
    return root


def _write_once(
    root: Path, cohort: pd.DataFrame, settings: SyntheticCohort, workers: int | None, show_progress: bool
) -> None:
    """Write everything beside `root` and move it there, unless it is there."""
    note = {
        "notice": NOTICE,
        "generator_version": GENERATOR_VERSION,
        "settings": asdict(settings),
        "files": len(cohort),
    }
    if _is_there(root, note):
        return
    with new_folder(root) as folder:
        _write_files(folder, cohort, settings.seed, workers, show_progress)
        (folder / NOTE_NAME).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def _is_there(root: Path, note: dict[str, Any]) -> bool:
    """Return whether `root` already holds what `note` describes; raise if it holds anything else."""
    ways_out = "Pass another folder, or delete this one if nothing in it is needed."
    if not root.exists():
        return False
    if not root.is_dir():
        raise DataError(f"{str(root)!r} is a file, but the synthetic data set needs a folder. Pass another path.")
    if not any(root.iterdir()):
        return False
    note_path = root / NOTE_NAME
    if not note_path.is_file():
        raise DataError(f"{str(root)!r} is not empty and was not written by this generator. {ways_out}")
    try:
        found = json.loads(note_path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or any(found.get(key) != note[key] for key in ("generator_version", "settings")):
        held = found if not isinstance(found, dict) else {k: found.get(k) for k in ("generator_version", "settings")}
        wanted = {key: note[key] for key in ("generator_version", "settings")}
        raise DataError(f"{str(root)!r} holds another synthetic data set: {held}. Asked for: {wanted}. {ways_out}")
    files = sum(1 for _ in (root / TOP).rglob("*.bmp"))
    if files != note["files"]:
        raise DataError(
            f"{str(root)!r} holds {files:,} images of this synthetic data set instead of {note['files']:,}: "
            f"something was deleted or added. {ways_out}"
        )
    return True


def _write_files(root: Path, cohort: pd.DataFrame, seed: int, workers: int | None, show: bool) -> None:
    """Write all images and the label table of the preliminary set under `root`."""
    rows = [{str(name): value for name, value in row.items()} for row in cohort.to_dict("records")]
    for row in rows:
        row["path"] = root / _file(row)
    for folder in sorted({row["path"].parent for row in rows}):
        folder.mkdir(parents=True, exist_ok=True)

    def write(row: dict[str, Any]) -> None:
        size = FINAL_FRAME if row["side"] == "final" else FRAME
        Image.fromarray(draw_cell(row, seed, size)).save(row["path"], format="BMP")

    parallel_map(write, rows, "Drawing synthetic cells", workers or min(os.cpu_count() or 1, 8), show)

    preliminary = sorted((row for row in rows if row["side"] == "preliminary"), key=lambda row: int(row["number"]))
    lines = ["Patient_ID,new_names,labels"]
    lines += [f"{row['sample']}.bmp,{row['path'].name},{int(row['label'] == 'all')}" for row in preliminary]
    table = "".join(line + "\r\n" for line in lines)
    (root / PRELIMINARY.with_name(PRELIMINARY.name + "_labels.csv")).write_bytes(table.encode("ascii"))


def _file(row: dict[str, Any]) -> Path:
    """Return the path of an image below the root."""
    if row["side"] == "train":
        return TOP / "training_data" / f"fold_{row['fold']}" / str(row["label"]) / f"{row['sample']}.bmp"
    return (PRELIMINARY if row["side"] == "preliminary" else FINAL) / f"{row['number']}.bmp"


def _megabytes(cohort: pd.DataFrame) -> int:
    final = int((cohort["side"] == "final").sum())
    return (final * FINAL_FRAME**2 + (len(cohort) - final) * FRAME**2) * 3 // 10**6
