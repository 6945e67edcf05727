"""The subjects, fields, cells and folds of a synthetic data set, and the latent values that each cell is drawn from.

Every number in `CLASSES` and below is taken from C-NMC 2019 or calibrated against it: see
`benchmarks/synthetic_calibration.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from leukemia_dl.checks import whole_number
from leukemia_dl.identity import generator

__all__ = ["GENERATOR_VERSION", "LATENTS", "SIGNATURES", "SyntheticCohort", "draw_cohort"]

GENERATOR_VERSION = 1
"""Rises whenever the same settings would give other pixels."""

SIGNATURES = ("hue", "brightness", "grain", "blur")
"""Latent values that depend on the subject and not on the class: what a random split can exploit."""

LATENTS = ("log_area", "texture", *SIGNATURES)
"""All latent values. `log_area` is the natural logarithm of pixels; the others are in standard deviations."""

ALL_IMAGES = 0.682
ALL_SUBJECTS = 0.64
PRELIMINARY_SUBJECTS = 28 / 73
PRELIMINARY_ALL_IMAGES = 0.653
FINAL_SUBJECTS = 17 / 73
HELD_OUT_ALL_SUBJECTS = 0.46
FOLDS = 3
FEWEST_CELLS = 2
MOST_IMAGES = 100_000
COUNT_LOG_SD = 0.95
LARGEST_SHARE = 0.2
CELLS_PER_FIELD = 4

AREA_SHIFT = 14_000.0
AREA_LIMITS = (9_000.0, 70_000.0)
TEXTURE_ICC = 0.38
SIGNATURE_ICC = 0.37


# Per class: `area`, mean area of its unambiguous cells in pixels (with the ambiguous ones, and the 1.5% that sticks to
# cells, the class has C-NMC's mean); `subject_sd`, standard deviation of the subjects' mean areas; `cell_sd`, that of
# areas inside a subject; `texture`, mean coarseness of its unambiguous chromatin, whose standard deviation is 1;
# `ambiguous`, share of cells that have the size of the other class and a texture between the two.
CLASSES = {
    "hem": {"area": 22_650.0, "subject_sd": 3_880.0, "cell_sd": 2_910.0, "texture": 1.4, "ambiguous": 0.25},
    "all": {"area": 36_800.0, "subject_sd": 3_590.0, "cell_sd": 4_920.0, "texture": -1.4, "ambiguous": 0.08},
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
        lowest = {"subjects": 12, "images": 0, "preliminary_images": 12, "final_images": 2, "seed": 0}
        for name, low in lowest.items():
            low = 3 * self.subjects if name == "images" else low  # three a subject
            high = MOST_IMAGES if name.endswith("images") else None
            object.__setattr__(self, name, whole_number(name, getattr(self, name), low, high))


def draw_cohort(settings: SyntheticCohort) -> pd.DataFrame:
    """Draw all cells of a data set with these `settings`, without their pixels.

    Returns:
        One row per image, in the order in which it is written, with the columns
        `sample` (`UID_<subject>_<field>_<cell>_<label>`), `side` (train, preliminary, final), `fold` (Int64, 0 to 2,
        NA outside training), `number` (Int64, the file number outside training, else NA), `subject`, `field`, `cell`,
        `label` (all or hem; never written for the final side), `ambiguous` (bool) and the float columns `LATENTS`.
    """
    rng = generator(settings.seed, "synthetic", "subjects")
    subjects = _draw_subjects(settings, rng)
    subjects["fold"] = _assign_folds(subjects)
    cells = subjects.loc[subjects.index.repeat(subjects["count"])].reset_index(drop=True)
    cells["field"], cells["cell"] = _number_cells(subjects["count"].to_numpy(), rng)
    places = zip(cells["subject"], cells["field"], cells["cell"], cells["label"], strict=True)
    cells["sample"] = [f"UID_{subject}_{field}_{cell}_{label}" for subject, field, cell, label in places]
    cells["number"] = _number_files(cells["side"], rng)
    cells = _draw_latents(cells, generator(settings.seed, "synthetic", "latents"))
    columns = ["sample", "side", "fold", "number", "subject", "field", "cell", "label", "ambiguous", *LATENTS]
    return cells[columns]


def _draw_subjects(settings: SyntheticCohort, rng: np.random.Generator) -> pd.DataFrame:
    """Return one row per subject: side, subject, label, count."""
    sides = [
        ("train", settings.subjects, settings.images, ALL_SUBJECTS, ALL_IMAGES, 2 * FOLDS),
        ("preliminary", *_held_out(settings.subjects, PRELIMINARY_SUBJECTS, settings.preliminary_images), 2),
        ("final", *_held_out(settings.subjects, FINAL_SUBJECTS, settings.final_images), 1),
    ]
    named = {"all": 0, "hem": 0}
    rows: list[dict[str, Any]] = []
    for side, subjects, images, all_subjects, all_images, fewest in sides:
        hem = max(fewest, round(subjects * (1 - all_subjects)))
        hem_images = max(FEWEST_CELLS * hem if images > 2 else 1, round(images * (1 - all_images)))
        for label, members, count in (("all", subjects - hem, images - hem_images), ("hem", hem, hem_images)):
            for cells in _unequal_counts(members, count, rng):
                named[label] += 1
                name = f"H{named[label]}" if label == "hem" else str(named[label])
                rows.append({"side": side, "subject": name, "label": label, "count": cells})
    return pd.DataFrame(rows)


def _held_out(subjects: int, share: float, images: int) -> tuple[int, int, float, float]:
    members = max(2, min(round(subjects * share), images // 3))
    return members, images, HELD_OUT_ALL_SUBJECTS, PRELIMINARY_ALL_IMAGES


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
    folds = np.full(len(subjects), -1)
    train = (subjects["side"] == "train").to_numpy()
    counts = subjects["count"].to_numpy()
    for label in CLASSES:
        members = np.flatnonzero(train & (subjects["label"] == label).to_numpy())
        room = -(-len(members) // FOLDS)
        images, taken = np.zeros(FOLDS), np.zeros(FOLDS, dtype=int)
        for member in members[np.argsort(-counts[members], kind="stable")]:
            fold = int(np.argmin(np.where(taken < room, images, np.inf)))
            folds[member] = fold
            images[fold] += counts[member]
            taken[fold] += 1
    return pd.Series(folds, index=subjects.index, dtype="Int64").mask(~train)


def _number_cells(counts: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return field and cell numbers, from 1, for the cells of all subjects in turn."""
    fields, cells = [], []
    for count in counts:
        starts_field = rng.random(count) < 1 / CELLS_PER_FIELD
        starts_field[0] = True
        numbers = np.cumsum(starts_field)
        fields.append(numbers)
        cells.append(np.arange(count) - np.flatnonzero(starts_field)[numbers - 1] + 1)
    return np.concatenate(fields), np.concatenate(cells)


def _number_files(side: pd.Series, rng: np.random.Generator) -> pd.Series:
    """Return file numbers in random order, so that they do not depend on the class; NA for training."""
    numbers = pd.Series(pd.NA, index=side.index, dtype="Int64")
    for name in ("preliminary", "final"):
        rows = side.index[side == name]
        numbers.loc[rows] = rng.permutation(len(rows)) + 1
    return numbers


def _draw_latents(cells: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Add `ambiguous` and the columns `LATENTS`."""
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
