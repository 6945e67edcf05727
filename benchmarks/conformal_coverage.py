"""How often do sets of possible classes hold the right one, for new patients?

    python benchmarks/conformal_coverage.py [--cohorts 200] [--json FILE]

Of each simulated cohort, the limit is chosen on 65 patients, with the numbers of images per group of C-NMC 2019, and
the sets are tested on 65 others. A patient's cells share an effect on their scores; in the setting "sizes" a patient
of whom there are many images is an easier one, in "outliers" one patient in twenty is wrong as a whole.

- patients: `evaluation.conformal_sets`, whose guarantee is about patients.
- images: the same with every image taken as a patient, as split conformal prediction is mostly used.

"coverage" is the mean over new patients of the share of their images whose set holds the right class. "bad" is the
share of cohorts in which this is more than 5 points below the wanted coverage.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from interval_coverage import GROUPS
from scipy.special import expit

from leukemia_dl import evaluation
from leukemia_dl.evaluation.calibration import conformal_limit

SIZES = np.array([size for sizes in GROUPS[65] for size in sizes])
SETTINGS = ("equal", "sizes", "outliers")
COVERAGES = (0.8, 0.9, 0.95)


def patients(random: np.random.Generator, setting: str) -> pd.DataFrame:
    """Return the predictions of 65 new patients, a tenth of the images of each at least."""
    sizes = np.maximum(random.permutation(SIZES) // 10, 1)
    effect = random.normal(0, 1.2, len(sizes))
    if setting == "sizes":
        effect = np.sort(effect)[np.argsort(np.argsort(sizes + random.uniform(0, 0.5, len(sizes))))]
    if setting == "outliers":
        effect -= 6 * (random.random(len(sizes)) < 0.05)
    label, group = random.integers(0, 2, len(sizes)), np.repeat(np.arange(len(sizes)), sizes)
    right = expit(1.2 + effect[group] + random.normal(0, 1.2, len(group)))
    positive = np.where(label[group] == 1, right, 1 - right)
    frame = pd.DataFrame({"probability_hem": 1 - positive, "probability_all": positive})
    return frame.assign(label=np.where(label[group] == 1, "all", "hem"), group=[f"p{one}" for one in group])


def cohort(random: np.random.Generator, setting: str) -> pd.DataFrame:
    """Return predictions of the sides val and test, of 65 patients each."""
    sides = [patients(random, setting).assign(side=side) for side in ("val", "test")]
    frame = pd.concat(sides, ignore_index=True)
    return frame.assign(sample=frame.index.astype(str), group=frame["side"] + frame["group"])


def covered_by_images(frame: pd.DataFrame, coverage: float) -> float:
    """Return the coverage of new patients by a limit that takes images as exchangeable."""
    own = frame["probability_all"].where(frame["label"] == "all", frame["probability_hem"])
    limit, _ = conformal_limit(own[frame["side"] == "val"].to_numpy(), None, coverage)
    test = frame["side"] == "test"
    return float((own[test] >= limit).groupby(frame.loc[test, "group"]).mean().mean())


def measure(
    cohorts: int, settings: tuple[str, ...] = SETTINGS, coverages: tuple[float, ...] = COVERAGES
) -> pd.DataFrame:
    """Return a row per setting, coverage and way."""
    rows = []
    for setting in settings:
        for coverage in coverages:
            found = {"patients": [], "images": []}
            for number in range(cohorts):
                frame = cohort(np.random.default_rng([number, SETTINGS.index(setting)]), setting)
                table = evaluation.conformal_sets(frame, coverage)
                found["patients"].append((table["value"].item(), table["single"].item()))
                found["images"].append((covered_by_images(frame, coverage), np.nan))
            for way, values in found.items():
                mean, single = np.array(values).T
                row = {"setting": setting, "wanted": coverage, "way": way, "coverage": mean.mean()}
                row |= {"bad": (mean < coverage - 0.05).mean(), "single": single.mean(), "cohorts": cohorts}
                rows.append(row)
                print({name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cohorts", type=int, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    table = measure(arguments.cohorts)
    if arguments.json:
        arguments.json.write_text(json.dumps(table.round(4).to_dict("records"), indent=1) + "\n")
