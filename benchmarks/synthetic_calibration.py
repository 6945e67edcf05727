"""Whether the synthetic cells are as hard, as big and as bound to their subjects as they are meant to be.

    python benchmarks/synthetic_calibration.py --seeds 20 --subjects 73 --images 730

Size, colour and texture are measured on the pixels that were really drawn; the ceiling and the intraclass
correlations of the signatures on the latent values. One row per quantity: its mean over the seeds against its range.
Exit status 1 if a mean is out of range. Every number here is about synthetic cells.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from leukemia_dl.datasets.synthetic import LATENTS, SIGNATURES, SyntheticCohort, draw_cell, draw_cohort, write_dataset

TARGETS = {
    "HEM area, mean (px)": (25_500, 27_600),
    "HEM area, sd (px)": (6_800, 8_700),
    "ALL area, mean (px)": (35_200, 37_300),
    "ALL area, sd (px)": (6_200, 8_100),
    "mean red inside": (63, 75),
    "mean green inside": (24, 34),
    "mean blue inside": (73, 85),
    "size: balanced accuracy": (0.71, 0.77),
    "size: balanced accuracy, balanced weights": (0.71, 0.77),
    "size: AUROC": (0.79, 0.83),
    "colour: balanced accuracy": (0.45, 0.55),
    "colour: AUROC": (0.45, 0.55),
    "texture: AUROC": (0.65, 0.90),
    "texture at 96 px: AUROC": (0.60, 0.90),
    "SVM AUROC, subject split": (0.55, 0.95),
    "SVM AUROC, random split minus subject split": (0.02, 0.08),
    "latent ceiling: AUROC": (0.90, 0.97),
    "latent ceiling: balanced accuracy": (0.80, 0.97),
    "ICC log area": (0.20, 0.30),
    "ICC texture": (0.20, 0.40),
    "ICC hue": (0.30, 0.40),
    "ICC brightness": (0.30, 0.40),
    "ICC grain": (0.30, 0.40),
    "ICC blur": (0.30, 0.40),
}
FEWEST_PER_SECOND = 40
COLOUR = ["mean_red", "mean_green", "mean_blue", "sd_red", "sd_green", "sd_blue"]
TEXTURE = ["gradient", "fine", "coarse"]
SMALL_TEXTURE = ["small_gradient", "small_fine"]


def measure_cell(image: np.ndarray) -> dict[str, float]:
    """Measure one image, uint8 (height, width, 3): size, colour, and texture at full size and at 96 pixels."""
    red, green, blue = (image[..., channel] for channel in range(3))
    mask = (red | green | blue) > 0
    inside = image[mask].astype(np.float32)
    mean, spread = inside.mean(axis=0), inside.std(axis=0)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    values = dict(zip(COLOUR, (float(value) for value in (*mean, *spread)), strict=True))
    values["log_area"] = float(np.log(mask.sum()))
    grey = sum(channel[box].astype(np.float32) for channel in (red, green, blue)) / np.float32(3)
    values |= dict(zip(TEXTURE, _texture(grey, mask[box], 14, (1.0, 2.0, 4.0)), strict=True))
    factor = 96 / 450
    small = ndimage.zoom(ndimage.gaussian_filter(grey, 1.8), factor, order=1)
    small_mask = ndimage.zoom(mask[box].astype(np.float32), factor, order=1) > 0.5
    values |= dict(zip(SMALL_TEXTURE, _texture(small, small_mask, 4, (0.0, 1.5)), strict=True))
    return values


def _texture(grey: np.ndarray, mask: np.ndarray, margin: int, widths: tuple[float, ...]) -> list[float]:
    """Return the log of the gradient energy, and of the variance in each band between `widths`, away from the edge."""
    depth = ndimage.uniform_filter(mask.astype(np.float32), 2 * margin + 1, mode="constant")
    core = depth > 0.999 if (depth > 0.999).sum() > 50 else mask
    down, across = np.gradient(grey)
    values = [np.log((down**2 + across**2)[core].mean() + 1e-6)]
    levels = [grey if width == 0 else ndimage.gaussian_filter(grey, width, truncate=3) for width in widths]
    return values + [np.log((fine - coarse)[core].var() + 1e-6) for fine, coarse in itertools.pairwise(levels)]


def measure_cohort(settings: SyntheticCohort) -> pd.DataFrame:
    """Draw the training side of a cohort and measure it; latent columns get the prefix `latent_`."""
    cohort = draw_cohort(settings)
    cohort = cohort[cohort["side"] == "train"].reset_index(drop=True)
    rows = cohort.to_dict("records")
    with ThreadPoolExecutor(max_workers=2) as pool:
        measured = list(pool.map(lambda row: measure_cell(draw_cell(row, settings.seed)), rows))
    latents = cohort.rename(columns={name: f"latent_{name}" for name in LATENTS})
    return pd.concat([latents, pd.DataFrame(measured)], axis=1)


def intraclass_correlation(values: np.ndarray, groups: np.ndarray, classes: np.ndarray) -> float:
    """Return the one-way ANOVA estimate of ICC(1) of `values` in `groups`, within classes (groups are nested)."""
    frame = pd.DataFrame({"value": values, "group": groups, "class": classes})
    counts = frame.groupby("group")["value"].transform("size")
    group_mean = frame.groupby("group")["value"].transform("mean")
    class_mean = frame.groupby("class")["value"].transform("mean")
    number, members, kinds = len(frame), frame["group"].nunique(), frame["class"].nunique()
    within = ((frame["value"] - group_mean) ** 2).sum() / (number - members)
    between = ((group_mean - class_mean) ** 2).sum() / (members - kinds)
    # counts is per image, so its sum over images is the sum of squared group sizes.
    squares = (counts / frame.groupby("class")["value"].transform("size")).sum()
    size = (number - squares) / (members - kinds)
    variance = (between - within) / size
    return float(variance / (variance + within))


def held_out_scores(
    frame: pd.DataFrame, columns: list[str], model: ClassifierMixin, folds: np.ndarray
) -> tuple[float, float]:
    """Return balanced accuracy and AUROC, each the mean over folds that are held out in turn."""
    features, labels = frame[columns].to_numpy(), (frame["label"] == "all").to_numpy().astype(int)
    scores = []
    for fold in np.unique(folds):
        test = folds == fold
        fitted = make_pipeline(StandardScaler(), model).fit(features[~test], labels[~test])
        balanced = balanced_accuracy_score(labels[test], fitted.predict(features[test]))
        decision = fitted.decision_function(features[test])
        scores.append((balanced, roc_auc_score(labels[test], decision)))
    first, second = np.mean(scores, axis=0)
    return float(first), float(second)


def summarise(frame: pd.DataFrame, seed: int) -> dict[str, float]:
    """Return the quantities of `TARGETS` for one measured cohort."""
    result: dict[str, float] = {}
    for label in ("hem", "all"):
        area = np.exp(frame.loc[frame["label"] == label, "log_area"])
        result[f"{label.upper()} area, mean (px)"] = float(area.mean())
        result[f"{label.upper()} area, sd (px)"] = float(area.std())
    for colour in ("red", "green", "blue"):
        result[f"mean {colour} inside"] = float(frame[f"mean_{colour}"].mean())

    folds = frame["fold"].to_numpy(dtype=int)
    plain = LogisticRegression(max_iter=1000)
    weighted = LogisticRegression(max_iter=1000, class_weight="balanced")
    result["size: balanced accuracy"], result["size: AUROC"] = held_out_scores(frame, ["log_area"], plain, folds)
    result["size: balanced accuracy, balanced weights"], _ = held_out_scores(frame, ["log_area"], weighted, folds)
    scores = held_out_scores(frame, COLOUR, weighted, folds)
    result["colour: balanced accuracy"], result["colour: AUROC"] = scores
    result["texture: AUROC"] = held_out_scores(frame, TEXTURE, weighted, folds)[1]
    result["texture at 96 px: AUROC"] = held_out_scores(frame, SMALL_TEXTURE, weighted, folds)[1]

    machine = SVC(kernel="rbf", class_weight="balanced")
    grouped = held_out_scores(frame, COLOUR + TEXTURE, machine, folds)[1]
    random_folds = np.zeros(len(frame), dtype=int)
    splitter = StratifiedKFold(3, shuffle=True, random_state=seed)
    for number, (_, test) in enumerate(splitter.split(frame, frame["label"])):
        random_folds[test] = number
    leaking = held_out_scores(frame, COLOUR + TEXTURE, machine, random_folds)[1]
    result["SVM AUROC, subject split"] = grouped
    result["SVM AUROC, random split minus subject split"] = leaking - grouped

    latents = [f"latent_{name}" for name in LATENTS]
    scores = held_out_scores(frame, latents, weighted, folds)
    result["latent ceiling: balanced accuracy"], result["latent ceiling: AUROC"] = scores
    subjects, labels = frame["subject"].to_numpy(), frame["label"].to_numpy()
    result["ICC log area"] = intraclass_correlation(frame["log_area"].to_numpy(), subjects, labels)
    for name in ("texture", *SIGNATURES):
        result[f"ICC {name}"] = intraclass_correlation(frame[f"latent_{name}"].to_numpy(), subjects, labels)
    return result


def images_per_second() -> float:
    """Return how many images a second one thread draws and writes."""
    settings = SyntheticCohort(subjects=12, images=120, preliminary_images=12, final_images=2)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_dataset(Path(folder) / "cells", settings, workers=1, show_progress=False)
        return (120 + 12 + 2) / (time.perf_counter() - start)


def main() -> int:
    """Run the calibration and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="first seed; the generator was tuned on 0 to 19")
    parser.add_argument("--subjects", type=int, default=73)
    parser.add_argument("--images", type=int, default=730)
    options = parser.parse_args()

    results = []
    for seed in range(options.first, options.first + options.seeds):
        settings = SyntheticCohort(subjects=options.subjects, images=options.images, seed=seed)
        results.append(summarise(measure_cohort(settings), seed))
        print(f"seed {seed - options.first + 1} of {options.seeds}", end="\r", file=sys.stderr, flush=True)
    table = pd.DataFrame(results)

    seeds = f"seeds {options.first} to {options.first + options.seeds - 1}"
    print(f"Synthetic cells: {seeds}, {options.subjects} subjects, {options.images} images each")
    print(f"{'quantity':<45}{'mean':>9}{'sd':>9}{'min':>9}{'max':>9}   {'range of the mean':<20}")
    failed = 0
    for name, (low, high) in TARGETS.items():
        values = table[name]
        good = low <= values.mean() <= high
        failed += not good
        numbers = (values.mean(), values.std(), values.min(), values.max())
        cells = "".join(f"{value:>9,.0f}" if high > 2 else f"{value:>9.3f}" for value in numbers)
        limits = f"{low:,} to {high:,}"
        print(f"{name:<45}{cells}   {limits:<20}{'PASS' if good else 'FAIL'}")
    rate = images_per_second()
    good = rate >= FEWEST_PER_SECOND
    failed += not good
    limits = f"{FEWEST_PER_SECOND} or more"
    print(
        f"{'images per second, drawn and written':<45}{rate:>9.0f}{'':>27}   {limits:<20}{'PASS' if good else 'FAIL'}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
