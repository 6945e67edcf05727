"""Write a synthetic data set in C-NMC 2019's Kaggle layout, whole or not at all."""

from __future__ import annotations

import json
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
    """Write the data set under `root`, whole or not at all, or find it there.

    Args:
        root: Folder that will hold `C-NMC_Leukemia/` and `synthetic.json`; absent, empty, or written by an
            earlier call with equal settings, which is then used as it is.
        settings: Settings of the data set.
        workers: Threads that draw; None for one per processor.
        show_progress: Whether to show progress on standard error.

    Returns:
        `root`.

    Raises:
        DataError: If `root` holds something else, or cannot be written.
    """
    root = Path(root)
    cohort = draw_cohort(settings)
    wanted = {"generator_version": GENERATOR_VERSION, "settings": asdict(settings)}
    note = {"notice": NOTICE, **wanted, "files": len(cohort)}
    try:
        if not _is_there(root, wanted, len(cohort)):
            with new_folder(root) as folder:
                _write_files(folder, cohort, settings.seed, workers, show_progress)
                (folder / NOTE_NAME).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        megabytes = len(cohort) * FRAME**2 * 3 // 10**6
        raise DataError(
            f"The synthetic data set cannot be written to {str(root)!r}: {error}. "
            f"It needs a writable folder and about {megabytes:,} MB. Pass another folder or make room."
        ) from error
    return root


def _is_there(root: Path, wanted: dict[str, Any], count: int) -> bool:
    """Return whether `root` already holds the wanted data set; raise DataError if it holds anything else."""
    if not root.exists():
        return False
    if not root.is_dir():
        raise DataError(f"{str(root)!r} is a file, but the synthetic data set needs a folder. Pass another path.")
    if not any(root.iterdir()):
        return False
    try:
        if not (root / NOTE_NAME).is_file():  # a pipe would be waited for
            raise FileNotFoundError
        found = json.loads((root / NOTE_NAME).read_text(encoding="utf-8"))
        held: Any = {key: found[key] for key in wanted}
    except FileNotFoundError:
        held = "it is not empty and was not written by this generator"
    except (ValueError, TypeError, KeyError):
        held = f"its {NOTE_NAME} cannot be read"
    files = sum(1 for _ in (root / TOP).rglob("*.bmp"))
    if held == wanted and files != count:
        held = f"{files:,} images instead of {count:,}: something was deleted or added"
    if held != wanted:
        raise DataError(
            f"{str(root)!r} does not hold this synthetic data set: {held}. Asked for: {wanted}. "
            "Pass another folder, or delete this one if nothing in it is needed."
        )
    return True


def _write_files(root: Path, cohort: pd.DataFrame, seed: int, workers: int | None, show: bool) -> None:
    """Write all images and the label table of the preliminary set under `root`."""
    rows = [{str(name): value for name, value in row.items()} for row in cohort.to_dict("records")]
    for row in rows:
        folder = PRELIMINARY if row["side"] == "preliminary" else FINAL
        row["path"] = root / folder / f"{row['number']}.bmp"
        if row["side"] == "train":
            row["path"] = root / TOP / "training_data" / f"fold_{row['fold']}" / row["label"] / f"{row['sample']}.bmp"
    for folder in {row["path"].parent for row in rows}:
        folder.mkdir(parents=True, exist_ok=True)

    def write(row: dict[str, Any]) -> None:
        size = FINAL_FRAME if row["side"] == "final" else FRAME
        Image.fromarray(draw_cell(row, seed, size)).save(row["path"], format="BMP")

    parallel_map(write, rows, "Drawing synthetic cells", workers, show)
    preliminary = sorted((row for row in rows if row["side"] == "preliminary"), key=lambda row: int(row["number"]))
    lines = ["Patient_ID,new_names,labels"]
    lines += [f"{row['sample']}.bmp,{row['path'].name},{int(row['label'] == 'all')}" for row in preliminary]
    table = "".join(line + "\r\n" for line in lines)
    (root / PRELIMINARY.with_name(PRELIMINARY.name + "_labels.csv")).write_bytes(table.encode("ascii"))
