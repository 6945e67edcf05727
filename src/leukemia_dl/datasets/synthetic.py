"""Synthetic cells in C-NMC 2019's Kaggle layout: subjects, fields, folds and latent values of each cell, and the files.

The numbers are taken from C-NMC 2019 or calibrated against it: see `benchmarks/synthetic_calibration.py`.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from leukemia_dl.atomic import new_folder
from leukemia_dl.checks import whole_number
from leukemia_dl.datasets.synthetic_cells import draw_cell
from leukemia_dl.errors import DataError
from leukemia_dl.identity import generator
from leukemia_dl.progress import parallel_map

__all__ = ["SyntheticCohort", "draw_cell", "draw_cohort", "write_dataset"]

GENERATOR_VERSION = 1
"""Rises whenever the same settings would give other pixels."""
SIGNATURES = ("hue", "brightness", "grain", "blur")
"""Latent values that depend on the subject and not on the class: what a random split can exploit."""
LATENTS = ("log_area", "texture", *SIGNATURES)
"""All latent values. `log_area` is the natural logarithm of pixels; the others are in standard deviations."""

FOLDS, FEWEST_CELLS, CELLS_PER_FIELD = 3, 2, 4
COUNT_LOG_SD, LARGEST_SHARE = 0.95, 0.2
AREA_SHIFT, AREA_LIMITS = 14_000.0, (9_000.0, 70_000.0)
TEXTURE_ICC, SIGNATURE_ICC = 0.38, 0.37
# Per class: `area`, mean area of its unambiguous cells in pixels (with the ambiguous ones, and the 1.5% that sticks to
# cells, the class has C-NMC's mean); `subject_sd`, standard deviation of the subjects' mean areas; `cell_sd`, that of
# areas inside a subject; `texture`, mean coarseness of its unambiguous chromatin, whose standard deviation is 1;
# `ambiguous`, share of cells that have the size of the other class and a texture between the two.
CLASSES = {
    "hem": {"area": 22_650.0, "subject_sd": 3_880.0, "cell_sd": 2_910.0, "texture": 1.4, "ambiguous": 0.25},
    "all": {"area": 36_800.0, "subject_sd": 3_590.0, "cell_sd": 4_920.0, "texture": -1.4, "ambiguous": 0.08},
}
_NOTE, _TOP = "synthetic.json", Path("C-NMC_Leukemia")
_NOTICE = (
    "The cells in this folder are synthetic: drawn by leukemia_dl, not photographed. "
    "No result on them says anything about patients, and every result must be labelled synthetic."
)
_FOLDERS = {
    "train": "training_data",
    "preliminary": "validation_data/C-NMC_test_prelim_phase_data",
    "final": "testing_data/C-NMC_test_final_phase_data",
}


@dataclass(frozen=True)
class SyntheticCohort:
    """Settings of a synthetic data set.

    Attributes:
        subjects: Subjects in the three training folds together, at least 12.
        images: Training images, at least three times `subjects`, at most 100,000.
        preliminary_images: Images of the preliminary test set, 12 to 100,000; they show further subjects.
        final_images: Images of the unlabelled final test set, 2 to 100,000; further subjects again.
        seed: Seed of everything that is drawn.
    """

    subjects: int = 73
    images: int = 360
    preliminary_images: int = 60
    final_images: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        subjects = whole_number("subjects", self.subjects, 12)
        lowest = {"subjects": 12, "images": 3 * subjects, "preliminary_images": 12, "final_images": 2, "seed": 0}
        for name, low in lowest.items():
            high = 100_000 if name.endswith("images") else None
            object.__setattr__(self, name, whole_number(name, getattr(self, name), low, high))


def draw_cohort(settings: SyntheticCohort) -> pd.DataFrame:
    """Draw all cells of a data set with these `settings`, without their pixels.

    Returns:
        One row per image, in the order in which it is written: `sample, side, fold` (Int64, NA outside training),
        `number` (Int64, of the file outside training), `subject, field, cell, label, ambiguous`, and `LATENTS`.
    """
    rng = generator(settings.seed, "synthetic", "subjects")
    subjects = _draw_subjects(settings, rng)
    subjects["fold"] = _assign_folds(subjects)
    cells = subjects.loc[subjects.index.repeat(subjects["count"])].reset_index(drop=True)
    cells["field"], cells["cell"] = _number_cells(subjects["count"].to_numpy(), rng)
    places = zip(cells["subject"], cells["field"], cells["cell"], cells["label"], strict=True)
    cells["sample"] = [f"UID_{subject}_{field}_{cell}_{label}" for subject, field, cell, label in places]
    cells["number"] = pd.Series(pd.NA, index=cells.index, dtype="Int64")
    for side in ("preliminary", "final"):  # in random order, so that numbers do not depend on the class
        rows = cells.index[cells["side"] == side]
        cells.loc[rows, "number"] = rng.permutation(len(rows)) + 1
    cells = _draw_latents(cells, generator(settings.seed, "synthetic", "latents"))
    columns = ["sample", "side", "fold", "number", "subject", "field", "cell", "label", "ambiguous", *LATENTS]
    return cells[columns]


def write_dataset(
    root: Path, settings: SyntheticCohort, workers: int | None = None, show_progress: bool = True
) -> Path:
    """Write the data set of `settings` under `root`, whole or not at all, or find it there; return `root`.

    Folder `root` is absent, empty, or written by a call with equal settings; if it holds something else, or cannot be
    written, DataError. So many threads draw as there are `workers`, None for one per processor; `show_progress` is on
    standard error.
    """
    root, cohort = Path(root), draw_cohort(settings)
    wanted = {"generator_version": GENERATOR_VERSION, "settings": asdict(settings), "files": len(cohort)}
    note = (json.dumps({"notice": _NOTICE, **wanted}, indent=2) + "\n").encode()
    try:
        if root.is_file() or (root.is_dir() and any(root.iterdir())):
            written = (root / _NOTE).read_bytes() if (root / _NOTE).is_file() else b""
            if written != note or sum(1 for _ in (root / _TOP).rglob("*.bmp")) != len(cohort):
                hint = "Pass another folder, or delete this one if nothing in it is needed"
                raise DataError(f"{str(root)!r} does not hold this synthetic data set, whole: {wanted}. {hint}.")
            return root
        with new_folder(root) as folder:
            _write_files(folder, cohort, settings.seed, workers, show_progress)
            (folder / _NOTE).write_bytes(note)
    except OSError as error:
        needed = f"a writable folder and about {len(cohort) * 450**2 * 3 // 10**6:,} MB"
        raise DataError(f"Synthetic cells cannot be written to {str(root)!r}: {error}. Needed: {needed}.") from error
    return root


def _write_files(root: Path, cohort: pd.DataFrame, seed: int, workers: int | None, show: bool) -> None:
    rows: list[dict[Any, Any]] = cohort.to_dict("records")
    for row in rows:
        training = f"fold_{row['fold']}/{row['label']}/{row['sample']}.bmp"
        name = training if row["side"] == "train" else f"{row['number']}.bmp"
        row["path"] = root / _TOP / _FOLDERS[row["side"]] / name

    def write(row: dict[str, Any]) -> None:
        row["path"].parent.mkdir(parents=True, exist_ok=True)
        size = 600 if row["side"] == "final" else 450
        Image.fromarray(draw_cell(row, seed, size)).save(row["path"], format="BMP")

    parallel_map(write, rows, "Drawing synthetic cells", workers, show)
    table = cohort[cohort["side"] == "preliminary"].sort_values("number")
    names, labels = table["number"].astype(str) + ".bmp", (table["label"] == "all").astype(int)
    table = pd.DataFrame({"Patient_ID": table["sample"] + ".bmp", "new_names": names, "labels": labels})
    table.to_csv(root / _TOP / f"{_FOLDERS['preliminary']}_labels.csv", index=False, lineterminator="\r\n")


def _draw_subjects(settings: SyntheticCohort, rng: np.random.Generator) -> pd.DataFrame:
    # Subjects and images of a side, the shares of class `all` among them, and the fewest subjects of class `hem`.
    sides = {
        "train": (settings.subjects, settings.images, 0.64, 0.682, 2 * FOLDS),
        "preliminary": (settings.subjects * (28 / 73), settings.preliminary_images, 0.46, 0.653, 2),
        "final": (settings.subjects * (17 / 73), settings.final_images, 0.46, 0.653, 1),
    }
    named = {"all": 0, "hem": 0}
    rows: list[dict[str, Any]] = []
    for side, (members, images, all_subjects, all_images, fewest) in sides.items():
        subjects = settings.subjects if side == "train" else max(2, min(round(members), images // 3))
        hem = max(fewest, round(subjects * (1 - all_subjects)))
        hem_images = max(FEWEST_CELLS * hem if images > 2 else 1, round(images * (1 - all_images)))
        for label, number, count in (("all", subjects - hem, images - hem_images), ("hem", hem, hem_images)):
            for cells in _unequal_counts(number, count, rng):
                named[label] += 1
                name = f"H{named[label]}" if label == "hem" else str(named[label])
                rows.append({"side": side, "subject": name, "label": label, "count": cells})
    return pd.DataFrame(rows)


def _unequal_counts(members: int, total: int, rng: np.random.Generator) -> list[int]:
    """Share `total` cells among subjects as unequally as C-NMC does (9 to 757 cells), at least `FEWEST_CELLS` each."""
    fewest = min(FEWEST_CELLS, total // members)
    weights = np.exp(COUNT_LOG_SD * rng.standard_normal(members))
    weights = np.minimum(weights, LARGEST_SHARE * weights.sum())
    exact = (total - fewest * members) * weights / weights.sum()
    counts = np.floor(exact).astype(int)
    left = total - fewest * members - int(counts.sum())
    counts[np.argsort(counts - exact)[:left]] += 1
    return [int(count) + fewest for count in counts]


def _assign_folds(subjects: pd.DataFrame) -> pd.Series:
    """Deal the training subjects of each class into folds of equal subject and nearly equal image counts."""
    folds, counts = np.full(len(subjects), -1), subjects["count"].to_numpy()
    train = (subjects["side"] == "train").to_numpy()
    for label in CLASSES:
        members = np.flatnonzero(train & (subjects["label"] == label).to_numpy())
        images, taken = np.zeros(FOLDS), np.zeros(FOLDS, dtype=int)
        for member in members[np.argsort(-counts[members], kind="stable")]:
            fold = int(np.argmin(np.where(taken < -(-len(members) // FOLDS), images, np.inf)))
            folds[member] = fold
            images[fold] += counts[member]
            taken[fold] += 1
    return pd.Series(folds, index=subjects.index, dtype="Int64").mask(~train)


def _number_cells(counts: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    fields, cells = [], []
    for count in counts:
        starts_field = rng.random(count) < 1 / CELLS_PER_FIELD
        starts_field[0] = True
        fields.append(np.cumsum(starts_field))
        cells.append(np.arange(count) - np.flatnonzero(starts_field)[fields[-1] - 1] + 1)
    return np.concatenate(fields), np.concatenate(cells)


def _draw_latents(cells: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    subject, _ = pd.factorize(cells["subject"])
    number = int(subject.max()) + 1

    def of_class(name: str) -> np.ndarray:
        return np.array([CLASSES[label][name] for label in cells["label"]])

    def two_levels(subject_sd: Any, cell_sd: Any) -> np.ndarray:
        subject_effects = rng.standard_normal(number)[subject]
        return np.asarray(subject_sd * subject_effects + cell_sd * rng.standard_normal(len(cells)))

    ambiguous = rng.random(len(cells)) < of_class("ambiguous")
    towards_other = np.where(cells["label"] == "hem", 1.0, -1.0) * ambiguous
    area = of_class("area") + AREA_SHIFT * towards_other + two_levels(of_class("subject_sd"), of_class("cell_sd"))
    texture = of_class("texture") * ~ambiguous + two_levels(TEXTURE_ICC**0.5, (1 - TEXTURE_ICC) ** 0.5)
    latents = {"ambiguous": ambiguous, "log_area": np.log(np.clip(area, *AREA_LIMITS)), "texture": texture}
    for name in SIGNATURES:
        latents[name] = two_levels(SIGNATURE_ICC**0.5, (1 - SIGNATURE_ICC) ** 0.5)
    return cells.assign(**latents)
