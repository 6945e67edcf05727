"""How often do intervals hold the truth, and how often do tests find a difference where there is none?

    python benchmarks/interval_coverage.py [--runs 4000] [--only 28]

Predictions are simulated with cells clustered as in C-NMC 2019: its real numbers of images per group (all 65 groups,
and the 28 of fold 2), one class per group, and an effect of the group on every score. The intraclass correlation is
that of being right (the size of the cell alone has .16 to .27 there); the correlation of the scores that gives it is
solved for. True sensitivity is .85, specificity .70. Two classifiers of equal truth share half of the group effect's
variance and half of the rest. What is called "ours" is computed by the functions of leukemia_dl.evaluation; the ways
beside it are here.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.special import expit, logit, ndtr, ndtri

from leukemia_dl.evaluation.comparisons import delong_variance, mcnemar_test
from leukemia_dl.evaluation.evaluate import Estimates
from leukemia_dl.evaluation.intervals import bounds, resampling_of
from leukemia_dl.evaluation.metrics import Run, metric
from leukemia_dl.evaluation.predictions import Model

FLIPS, SIGNS_AT_ONCE = 20_000, 5_000_000
# Images per group: ALL, HEM; counted from the names of the training images, linked subjects being one group.
GROUPS = {
    65: (
        (9, 11, 14, 19, 31, 35, 53, 58, 73, 74, 74, 84, 89, 92, 92, 97, 99, 103, 111, 112, 113, 142, 145, 146, 155, 156,
         161, 178, 178, 181, 190, 197, 197, 201, 212, 246, 250, 253, 267, 268, 278, 352, 402, 1074),
        (20, 29, 30, 32, 46, 47, 50, 69, 100, 108, 119, 137, 140, 162, 185, 185, 327, 373, 385, 404, 441),
    ),
    28: (
        (14, 31, 35, 74, 80, 89, 111, 161, 178, 178, 197, 197, 250, 267, 278, 317),
        (20, 29, 30, 32, 36, 46, 50, 100, 137, 140, 149, 327),
    ),
}  # fmt: skip
RECALLS = (0.70, 0.85)
METRICS = ("accuracy", "balanced_accuracy", "auroc")
REPLICATES = 1_000


@dataclass(frozen=True)
class Setting:
    groups: int
    correlation: float
    heavy: bool = False

    def __str__(self) -> str:
        return f"{self.groups} groups, {self.correlation:.1f}".replace("0.", ".") + (", heavy tails" * self.heavy)


class World:
    """Data with a known truth."""

    def __init__(self, setting: Setting) -> None:
        positives, negatives = GROUPS[setting.groups]
        self.sizes = np.array([*positives, *negatives])
        self.of_group = np.array([1] * len(positives) + [0] * len(negatives))
        self.group = np.repeat(np.arange(len(self.sizes)), self.sizes)
        self.labels = self.of_group[self.group]
        self.heavy = setting.heavy
        self.rho = brentq(lambda rho: correctness_icc(rho) - setting.correlation, 1e-3, 0.99)
        effects = self.effects(np.random.default_rng(0), 2_000_000)
        scale, rest = np.sqrt(self.rho), np.sqrt(1 - self.rho)
        # With heavy tails the same levels give other recalls: they are what is true.
        self.levels = ndtri(np.array(RECALLS))
        recalls = [float(ndtr((level + scale * effects) / rest).mean()) for level in self.levels]
        half = len(effects) // 2
        between = self.levels.sum() + scale * (effects[:half] - effects[half:])
        shares = np.bincount(self.labels) / len(self.labels)
        self.truth = {
            "accuracy": float(shares @ recalls),
            "balanced_accuracy": float(np.mean(recalls)),
            "auroc": float(ndtr(between / (rest * np.sqrt(2))).mean()),
        }

    def effects(self, random: np.random.Generator, count: int) -> np.ndarray:
        return random.standard_t(3, count) / np.sqrt(3) if self.heavy else random.standard_normal(count)

    def scores(self, random: np.random.Generator, shared: float = 0.5) -> list[np.ndarray]:
        """Return the scores of two classifiers, equally good; above 0 an image is called positive."""
        groups, n = len(self.sizes), len(self.labels)
        common, noise = self.effects(random, groups), random.standard_normal(n)
        found = []
        for _ in range(2):
            effect = np.sqrt(shared) * common + np.sqrt(1 - shared) * self.effects(random, groups)
            if self.heavy:
                # A sum of two has lighter tails: one of them, drawn per classifier, keeps them and the correlation.
                effect = np.where(random.random(groups) < shared, common, self.effects(random, groups))
            own = np.sqrt(shared) * noise + np.sqrt(1 - shared) * random.standard_normal(n)
            sign = 2 * self.labels - 1
            level = self.levels[self.labels]
            found.append(sign * level + np.sqrt(self.rho) * effect[self.group] + np.sqrt(1 - self.rho) * own)
        return found

    def model(self, scores: np.ndarray) -> Model:
        p = expit(scores)
        probabilities = np.stack([1 - p, p], axis=1)
        fold = np.zeros(len(p), np.int64)
        run = Run(self.labels, probabilities, probabilities.argmax(axis=1), self.group, fold, np.arange(len(p)))
        return Model("simulated", "backbone", (run,), tuple(range(len(self.sizes))), "group")


def correctness_icc(rho: float) -> float:
    """Return the intraclass correlation of being right for scores of correlation rho, at the mean recall."""
    p = float(np.mean(RECALLS))
    level = ndtri(p)
    both = stats.multivariate_normal(cov=[[1, rho], [rho, 1]]).cdf([level, level])
    return float((both - p * p) / (p * (1 - p)))


def one_run(world: World, random: np.random.Generator) -> dict[str, bool]:
    """Return, per way, whether its interval holds the truth, or its test finds a difference."""
    first, second = world.scores(random)
    models = [world.model(first), world.model(second)]
    resampling = resampling_of(models)
    estimates = [Estimates(model, resampling, METRICS) for model in models]
    fewest = min(resampling.groups_per_class)
    found: dict[str, bool] = {}
    for name in METRICS:
        value, left_out = estimates[0].value(name), estimates[0].left_out[name]
        low, high = bounds(metric(name), value, resampling.spread(left_out), 0.95, fewest)
        found[f"{name}: ours"] = low <= world.truth[name] <= high
        difference = value - estimates[1].value(name)
        spread = resampling.spread(left_out - estimates[1].left_out[name])
        p = 2 * stats.t.sf(abs(difference) / spread.variance**0.5, spread.df)
        found[f"{name}: test, ours"] = bool(p < 0.05)
    found |= image_level(world, first, second)
    gains = [np.bincount(world.group, (score > 0) == world.labels) for score in (first, second)]
    found["accuracy: test, sign flips"] = sign_flip_test(gains[0] - gains[1]) < 0.05
    return found | bootstraps(world, first, estimates[0], random)


def sign_flip_test(differences: np.ndarray, seed: int = 0) -> float:
    """Return the two-sided p of a sum of differences of groups (groups,) under random signs.

    Exact for up to 14 groups, otherwise from 20,000 draws, with one added (Phipson and Smyth 2010). It asks whether
    swapping the two backbones within whole groups could make a sum as large.
    """
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    observed = abs(float(differences.sum())) * (1 - 1e-12)
    if len(differences) <= 14:
        signs = 1 - 2 * ((np.arange(2 ** len(differences))[:, None] >> np.arange(len(differences))) & 1)
        return float((np.abs(signs @ differences) >= observed).mean())
    random, found = np.random.default_rng(seed), 0
    at_once = max(SIGNS_AT_ONCE // len(differences), 1)
    for first in range(0, FLIPS, at_once):
        signs = random.integers(0, 2, (min(at_once, FLIPS - first), len(differences)), dtype=np.int8) * 2 - 1
        found += int((np.abs(signs @ differences) >= observed).sum())
    return (1 + found) / (1 + FLIPS)


def image_level(world: World, first: np.ndarray, second: np.ndarray) -> dict[str, bool]:
    right = [(score > 0) == world.labels for score in (first, second)]
    found = {"accuracy: test, McNemar": mcnemar_test(*right) < 0.05}
    n = np.bincount(world.labels)
    recalls = np.bincount(world.labels, right[0]) / n
    shares = {"accuracy": n / n.sum(), "balanced_accuracy": np.array([0.5, 0.5])}
    for name, share in shares.items():
        error = np.sqrt((share**2 * recalls * (1 - recalls) / n).sum())
        found[f"{name}: image level"] = bool(abs(share @ recalls - world.truth[name]) <= 1.96 * error)
    areas, covariance = delong_variance(world.labels, first, second)
    error = np.sqrt(covariance[0, 0]) / (areas[0] * (1 - areas[0]))
    found["auroc: image level"] = bool(abs(logit(areas[0]) - logit(world.truth["auroc"])) <= 1.96 * error)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    found["auroc: test, DeLong"] = bool(abs(areas[0] - areas[1]) > 1.96 * np.sqrt(variance))
    return found


def bootstraps(world: World, scores: np.ndarray, estimates: Estimates, random: np.random.Generator) -> dict[str, bool]:
    """Return whether percentile and BCa intervals of groups, drawn within classes, hold the truth."""
    weights = np.zeros((REPLICATES, len(world.sizes)))
    for code in (0, 1):
        inside = np.flatnonzero(world.of_group == code)
        weights[:, inside] = random.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), REPLICATES)
    right = np.bincount(world.group, (scores > 0) == world.labels)
    per_class = [np.where(world.of_group == code, 1.0, 0.0) for code in (0, 1)]
    recalls = [(weights @ (right * own)) / (weights @ (world.sizes * own)) for own in per_class]
    share = world.labels.mean()
    wins = win_matrix(world, scores)
    pairs = (weights @ (world.sizes * per_class[1])) * (weights @ (world.sizes * per_class[0]))
    drawn = {
        "accuracy": (1 - share) * recalls[0] + share * recalls[1],
        "balanced_accuracy": (recalls[0] + recalls[1]) / 2,
        "auroc": ((weights @ wins) * weights).sum(axis=1) / pairs,
    }
    found = {}
    for name, sample in drawn.items():
        low, high = np.quantile(sample, [0.025, 0.975])
        found[f"{name}: percentile"] = bool(low <= world.truth[name] <= high)
        value, left_out = estimates.value(name), estimates.left_out[name]
        around = left_out.mean() - left_out
        bent = (around**3).sum() / (6 * (around**2).sum() ** 1.5)
        shift = ndtri(np.clip((sample < value).mean(), 1 / REPLICATES, 1 - 1 / REPLICATES))
        ends = shift + ndtri(np.array([0.025, 0.975]))
        low, high = np.quantile(sample, ndtr(shift + ends / (1 - bent * ends)))
        found[f"{name}: BCa"] = bool(low <= world.truth[name] <= high)
    return found


def win_matrix(world: World, scores: np.ndarray) -> np.ndarray:
    """Return how many pairs the positives of each group (row) win over the negatives of each group (column)."""
    count = len(world.sizes)
    positive = world.labels == 1
    matrix = np.zeros((count, count))
    for group in np.flatnonzero(world.of_group == 0):
        below = np.searchsorted(np.sort(scores[world.group == group]), scores[positive])
        matrix[:, group] = np.bincount(world.group[positive], below, count)
    return matrix


def simulate(setting: Setting, seed: int, runs: int) -> dict[str, int]:
    world, random = World(setting), np.random.default_rng([seed, setting.groups, int(10 * setting.correlation)])
    totals: dict[str, int] = {}
    for _ in range(runs):
        for name, yes in one_run(world, random).items():
            totals[name] = totals.get(name, 0) + int(yes)
    return totals


def settings_of(groups: int) -> list[Setting]:
    return [*(Setting(groups, rho) for rho in (0.1, 0.2, 0.3, 0.4)), Setting(groups, 0.2, heavy=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4_000)
    parser.add_argument("--only", type=int, choices=sorted(GROUPS), help="groups; both by default")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    chosen = [s for groups in ([options.only] if options.only else sorted(GROUPS)) for s in settings_of(groups)]
    shares: dict[str, dict[str, float]] = {}
    with ProcessPoolExecutor(options.workers) as pool:
        for setting in chosen:
            started = time.perf_counter()
            each = [options.runs // options.workers] * options.workers
            parts = list(pool.map(simulate, [setting] * len(each), range(len(each)), each))
            shares[str(setting)] = {name: sum(part[name] for part in parts) / sum(each) for name in parts[0]}
            print(f"{setting}: {sum(each):,} runs, {time.perf_counter() - started:.0f} s", flush=True)
    for title, test in (("Coverage of 95 % intervals", False), ("False alarms at 5 %", True)):
        print(f"\n{title}\n\n| | " + " | ".join(shares) + " |\n|---" * 1 + "|---" * len(shares) + "|")
        names = [name for name in next(iter(shares.values())) if ("test" in name) == test]
        for name in sorted(names, key=lambda name: METRICS.index(name.split(":")[0])):
            row = [f"{found[name]:.3f}".removeprefix("0") for found in shares.values()]
            print(f"| {name.replace('test, ', '')} | " + " | ".join(row) + " |")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"runs": options.runs, "shares": shares}, indent=1) + "\n")


if __name__ == "__main__":
    main()
