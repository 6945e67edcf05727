"""How often do intervals hold the truth, and how often do tests find a difference where there is none?

    python benchmarks/interval_coverage.py [--runs 2000] [--only edge] [--json FILE]

Predictions are simulated with cells clustered as in C-NMC 2019: its real numbers of images per group (all 65 groups,
and the 28 of fold 2), one class per group, and an effect of the group on every score. The intraclass correlation is
that of being right (the size of the cell alone has .16 to .27 there); the correlation of the scores that gives it is
solved for. Two classifiers of equal truth share half of the group effect's variance and half of the rest.

- ordinary: sensitivity .85, specificity .70, four intraclass correlations, and heavy tails (Student's t with 3 degrees
  of freedom).
- edge: recalls of .99; outlying groups, wrong as wholes (10 % of 28, 5 % of 65) among recalls of .95; 20 groups of each
  class whose log-normal sizes go with the outcome.
- folds: ridge classifiers on 40 simulated patients, cross-validated; the truth is the learning procedure's.
- ranks: five nets, one better by the difference that the comparison of another sample says it would detect.

What is called "ours" is computed by the functions of leukemia_dl.evaluation; the ways beside it are here.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq
from scipy.special import expit, logit, ndtr, ndtri

from leukemia_dl.evaluation import compare, leaderboard
from leukemia_dl.evaluation.evaluate import Estimates
from leukemia_dl.evaluation.intervals import interval, resampling_of
from leukemia_dl.evaluation.metrics import Run, metric
from leukemia_dl.evaluation.predictions import Model

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
    40: ((100,) * 20, (100,) * 20),
}  # fmt: skip
METRICS = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "auroc")
REPLICATES = 1_000


@dataclass(frozen=True)
class Setting:
    groups: int
    correlation: float
    recalls: tuple[float, float] = (0.70, 0.85)  # specificity, sensitivity
    heavy: bool = False
    outliers: float = 0.0  # share of groups that are wrong as wholes
    spread: float = 0.0  # standard deviation of the logarithm of a group's size

    def __str__(self) -> str:
        text = f"{self.groups} groups, {self.correlation:.1f}".replace("0.", ".") + (", heavy tails" * self.heavy)
        text += f", recalls {self.recalls[0]:.2f}".replace("0.", ".") * (self.recalls[0] == self.recalls[1])
        return text + f", {self.outliers:.0%} outliers" * (self.outliers > 0) + ", log-normal" * (self.spread > 0)


class World:
    """Data with a known truth."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        positives, negatives = GROUPS[setting.groups]
        self.fixed = np.array([*positives, *negatives])
        self.of_group = np.array([1] * len(positives) + [0] * len(negatives))
        middle = float(np.mean(setting.recalls))
        self.rho = brentq(lambda rho: correctness_icc(rho, middle) - setting.correlation, 1e-3, 0.995)
        self.levels, random = ndtri(np.array(setting.recalls)), np.random.default_rng(0)
        effects = self.effects(random, 1_000_000)
        weights = np.exp(self.log_sizes(effects, random))
        sign = np.where(random.random(len(effects)) < setting.outliers, -1, 1)
        scale, rest = np.sqrt(self.rho), np.sqrt(1 - self.rho)
        # With heavy tails the same levels give other recalls: they are what is true.
        means = [sign * (level + scale * effects) for level in self.levels]
        recalls = [float(np.average(ndtr(mean / rest), weights=weights)) for mean in means]
        half = len(effects) // 2
        apart = ndtr((means[0][:half] + means[1][half : 2 * half]) / (rest * np.sqrt(2)))
        counts = self.of_group if setting.spread else np.repeat(self.of_group, self.fixed)
        share = float(counts.mean())
        self.truth = {
            "accuracy": (1 - share) * recalls[0] + share * recalls[1],
            "balanced_accuracy": float(np.mean(recalls)),
            "sensitivity": recalls[1],
            "specificity": recalls[0],
            "auroc": float(np.average(apart, weights=weights[:half] * weights[half : 2 * half])),
        }

    def effects(self, random: np.random.Generator, count: int) -> np.ndarray:
        return random.standard_t(3, count) / np.sqrt(3) if self.setting.heavy else random.standard_normal(count)

    def log_sizes(self, effects: np.ndarray, random: np.random.Generator, by: float = 0.5) -> np.ndarray:
        """Return logarithms of relative sizes, which correlate with the effects."""
        own = np.sqrt(1 - by**2) * random.standard_normal(len(effects)) if self.setting.spread else 0.0
        return self.setting.spread * (by * effects + own)

    def draw(self, random: np.random.Generator, shared: float = 0.5) -> Data:
        """Draw the predictions of two classifiers, equally good."""
        setting, groups = self.setting, len(self.fixed)
        common, effects = self.effects(random, groups), []
        for _ in range(2):
            own = self.effects(random, groups)
            # With heavy tails a sum of two has lighter ones: one of them, drawn per group, keeps them.
            mixed = np.sqrt(shared) * common + np.sqrt(1 - shared) * own
            effects.append(np.where(random.random(groups) < shared, common, own) if setting.heavy else mixed)
        # Of which the effect of each classifier has a half: their sizes correlate with it by one half too.
        relative = np.exp(self.log_sizes(common, random, by=np.sqrt(0.5)))
        sizes = np.maximum(np.round(self.fixed * relative).astype(int), 1)
        group = np.repeat(np.arange(groups), sizes)
        labels, noise, scores = self.of_group[group], random.standard_normal(len(group)), []
        for effect in effects:
            own = np.sqrt(shared) * noise + np.sqrt(1 - shared) * random.standard_normal(len(group))
            sign = np.where(random.random(groups) < setting.outliers, -1, 1)[group]
            right = self.levels[labels] + np.sqrt(self.rho) * effect[group] + np.sqrt(1 - self.rho) * own
            scores.append((2 * labels - 1) * sign * right)
        return Data(self.of_group, sizes, group, labels, scores)


@dataclass(frozen=True)
class Data:
    of_group: np.ndarray
    sizes: np.ndarray
    group: np.ndarray
    labels: np.ndarray
    scores: list[np.ndarray]  # above 0 an image is called positive

    def models(self) -> list[Model]:
        found = []
        for scores in self.scores:
            p = expit(scores)
            probabilities = np.stack([1 - p, p], axis=1)
            predicted, fold = (scores > 0).astype(np.int64), np.zeros(len(p), np.int64)
            run = Run(self.labels, probabilities, predicted, self.group, fold, np.arange(len(p)))
            found.append(Model("simulated", "backbone", (run,), tuple(range(len(self.sizes))), "group"))
        return found


def correctness_icc(rho: float, p: float) -> float:
    """Return the intraclass correlation of being right for scores of correlation rho, at a recall p."""
    level = ndtri(p)
    both = stats.multivariate_normal(cov=[[1, rho], [rho, 1]]).cdf([level, level])
    return float((both - p * p) / (p * (1 - p)))


class Tally:
    """Sums of what is asked of each run: in how many an interval holds the truth, and widths."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)

    def interval(self, name: str, low: float, high: float, truth: float) -> None:
        if np.isfinite([low, high]).all():
            self.add(f"coverage {name}", low <= truth <= high)
            self.add(f"width {name}", high - low)
        self.add(f"not estimable {name}", not np.isfinite([low, high]).all())

    def add(self, name: str, value: float) -> None:
        self.sums[name] += float(value)
        self.counts[name] += 1

    def __add__(self, other: Tally) -> Tally:
        for name, value in other.sums.items():
            self.sums[name] += value
            self.counts[name] += other.counts[name]
        return self

    def means(self) -> dict[str, float]:
        return {name: value / self.counts[name] for name, value in self.sums.items()}


def one_run(world: World, random: np.random.Generator, tally: Tally) -> None:
    data = world.draw(random)
    models = data.models()
    own = resampling_of(models[:1])
    estimates = Estimates(models[0], own, METRICS)
    for name in METRICS:
        value = estimates.value(name)
        low, high, _ = interval(metric(name), value, estimates.left_out[name], own, 0.95)
        tally.interval(f"{name}: ours", low, high, world.truth[name])
    both = resampling_of(models)
    pair = [Estimates(model, both, METRICS) for model in models]
    for name in METRICS:
        spread = both.spread(pair[0].left_out[name] - pair[1].left_out[name], metric(name))
        difference = abs(pair[0].value(name) - pair[1].value(name))
        if spread.variance > 0:
            p = 2 * stats.t.sf(difference / spread.variance**0.5, spread.df)
            tally.add(f"false alarms {name}: ours", p < 0.05)
    image_level(world, data, tally)
    bootstraps(world, data, estimates, tally, random)
    clustered(world, data, tally)


def mcnemar_test(first: np.ndarray, second: np.ndarray) -> float:
    """Return the two-sided p of McNemar's exact test (1947), from where two predictors are right (n,)."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    return float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0


def delong_variance(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the AUROCs (2,) of two scores (n,) and their covariance (2, 2), by DeLong et al. 1988."""
    positive = labels == 1
    m, n = int(positive.sum()), int((~positive).sum())
    of_positives, of_negatives = np.empty((2, m)), np.empty((2, n))
    for row, scores in enumerate((first, second)):
        ranks = stats.rankdata(scores)
        of_positives[row] = (ranks[positive] - stats.rankdata(scores[positive])) / n
        of_negatives[row] = 1 - (ranks[~positive] - stats.rankdata(scores[~positive])) / m
    return of_positives.mean(axis=1), np.cov(of_positives) / m + np.cov(of_negatives) / n


def image_level(world: World, data: Data, tally: Tally) -> None:
    """Take images as independent, as is usual: McNemar's test, DeLong's interval and test."""
    right = [(score > 0) == data.labels for score in data.scores]
    tally.add("false alarms accuracy: McNemar, images", mcnemar_test(*right) < 0.05)
    areas, covariance = delong_variance(data.labels, *data.scores)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    tally.add("false alarms auroc: DeLong, images", abs(areas[0] - areas[1]) > 1.96 * np.sqrt(variance))
    if areas[0] < 1:
        reach = 1.96 * np.sqrt(covariance[0, 0]) / (areas[0] * (1 - areas[0]))
        ends = expit(logit(areas[0]) + np.array([-reach, reach]))
        tally.interval("auroc: DeLong, images", *ends, world.truth["auroc"])


def bootstraps(world: World, data: Data, estimates: Estimates, tally: Tally, random: np.random.Generator) -> None:
    """Draw groups within classes: percentile and BCa intervals."""
    weights = np.zeros((REPLICATES, len(data.sizes)))
    for code in (0, 1):
        inside = np.flatnonzero(data.of_group == code)
        weights[:, inside] = random.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), REPLICATES)
    right = np.bincount(data.group, (data.scores[0] > 0) == data.labels)
    per_class = [np.where(data.of_group == code, 1.0, 0.0) for code in (0, 1)]
    recalls = [(weights @ (right * own)) / (weights @ (data.sizes * own)) for own in per_class]
    share, wins = data.labels.mean(), win_matrix(data)
    pairs = (weights @ (data.sizes * per_class[1])) * (weights @ (data.sizes * per_class[0]))
    drawn = {
        "accuracy": (1 - share) * recalls[0] + share * recalls[1],
        "balanced_accuracy": (recalls[0] + recalls[1]) / 2,
        "sensitivity": recalls[1],
        "specificity": recalls[0],
        "auroc": ((weights @ wins) * weights).sum(axis=1) / pairs,
    }
    for name, sample in drawn.items():
        tally.interval(f"{name}: percentile", *np.quantile(sample, [0.025, 0.975]), world.truth[name])
        value, left_out = estimates.value(name), estimates.left_out[name]
        around = left_out.mean() - left_out
        total = (around**2).sum()
        bent = (around**3).sum() / (6 * total**1.5) if total > 0 else 0.0
        shift = ndtri(np.clip((sample < value).mean(), 1 / REPLICATES, 1 - 1 / REPLICATES))
        ends = shift + ndtri(np.array([0.025, 0.975]))
        found = np.quantile(sample, ndtr(shift + ends / (1 - bent * ends)))
        tally.interval(f"{name}: BCa", *found, world.truth[name])


def win_matrix(data: Data) -> np.ndarray:
    """Return how many pairs the positives of each group (row) win over the negatives of each group (column)."""
    count, positive, scores = len(data.sizes), data.labels == 1, data.scores[0]
    matrix = np.zeros((count, count))
    for group in np.flatnonzero(data.of_group == 0):
        below = np.searchsorted(np.sort(scores[data.group == group]), scores[positive])
        matrix[:, group] = np.bincount(data.group[positive], below, count)
    return matrix


def clustered(world: World, data: Data, tally: Tally) -> None:
    """Wilson's interval with the design effect, and Obuchowski's for clustered AUROC (1997)."""
    right = np.bincount(data.group, (data.scores[0] > 0) == data.labels)
    for name, inside in {"sensitivity": data.of_group == 1, "specificity": data.of_group == 0}.items():
        n, hits, groups = data.sizes[inside], right[inside], inside.sum()
        p = hits.sum() / n.sum()
        variance = groups / (groups - 1) * ((hits - p * n) ** 2).sum() / n.sum() ** 2
        effect = variance / max(p * (1 - p) / n.sum(), 1e-300) if 0 < p < 1 else 1.0
        count = max(n.sum() / max(effect, 1e-9), 1.0)
        ends = stats.binomtest(round(p * round(count)), round(count)).proportion_ci(0.95, method="wilson")
        tally.interval(f"{name}: Wilson, design effect", ends.low, ends.high, world.truth[name])
    wins = win_matrix(data)
    m, n = (float(data.sizes[data.of_group == code].sum()) for code in (1, 0))
    area = wins.sum() / (m * n)
    of_positive = (wins.sum(axis=1) / n - data.sizes * area)[data.of_group == 1]
    of_negative = (wins.sum(axis=0) / m - data.sizes * area)[data.of_group == 0]
    parts = [len(x) / ((len(x) - 1) * total**2) * (x**2).sum() for x, total in ((of_positive, m), (of_negative, n))]
    reach = 1.96 * np.sqrt(sum(parts))
    tally.interval("auroc: Obuchowski", area - reach, min(area + reach, 1.0), world.truth["auroc"])


PATIENTS, CELLS, FEATURES = 40, 20, 30


def patients(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, labels and patients of cells: the class and the patient shift the features."""
    of_patient, shift = np.arange(count) % 2, 0.6 * random.standard_normal((count, FEATURES))
    group = np.repeat(np.arange(count), np.maximum(random.poisson(CELLS, count), 3))
    features = shift[group] + random.standard_normal((len(group), FEATURES))
    features[:, :8] += 0.35 * (2 * of_patient[group, None] - 1)
    return features, of_patient[group], group


def ridge(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    table = np.c_[features, np.ones(len(features))]
    gram = table.T @ table
    gram[np.arange(FEATURES), np.arange(FEATURES)] += 50.0
    return np.linalg.solve(gram, table.T @ (2 * labels - 1))


def score_of(weights: np.ndarray, features: np.ndarray) -> np.ndarray:
    return features @ weights[:-1] + weights[-1]


def folds_run(k: int, repeats: int, new: tuple, random: np.random.Generator) -> tuple[list[Model], np.ndarray]:
    """Return two learners' cross-validated predictions, each blind to half of the signs, and their true accuracies."""
    features, labels, group = patients(random, PATIENTS)
    runs: list[list[Run]] = [[], []]
    truth: list[list[float]] = [[], []]
    for _ in range(repeats):
        fold_of = np.zeros(PATIENTS, int)
        for code in (0, 1):
            inside = random.permutation(np.arange(code, PATIENTS, 2))
            fold_of[inside] = (np.arange(len(inside)) + random.integers(k)) % k
        fold = fold_of[group]
        for learner, hidden in enumerate((slice(0, 4), slice(4, 8))):
            seen, others = features.copy(), new[0].copy()
            seen[:, hidden] = others[:, hidden] = 0.0
            scores = np.zeros(len(labels))
            for number in range(k):
                weights = ridge(seen[fold != number], labels[fold != number])
                scores[fold == number] = score_of(weights, seen[fold == number])
                truth[learner].append(((score_of(weights, others) > 0) == new[1]).mean())
            p = expit(scores)
            said, samples = (scores > 0).astype(np.int64), np.arange(len(p))
            runs[learner].append(Run(labels, np.stack([1 - p, p], axis=1), said, group, fold, samples))
    names = tuple(range(PATIENTS))
    models = [Model(f"learner {i}", "backbone", tuple(found), names, "group") for i, found in enumerate(runs)]
    return models, np.mean(truth, axis=1)


def simulate_folds(how: tuple[int, int], seed: int, runs: int) -> Tally:
    k, repeats = how
    tally, random, new = Tally(), np.random.default_rng([seed, k, repeats]), patients(np.random.default_rng(99), 1_500)
    found = [folds_run(k, repeats, new, random) for _ in range(runs)]
    procedure = np.mean([truth for _, truth in found])  # of both learners, which are equally good
    what = metric("accuracy")
    for models, truth in found:
        both = resampling_of(models)
        pair = [Estimates(model, both, ["accuracy"]) for model in models]
        value, left_out = pair[0].value("accuracy"), pair[0].left_out["accuracy"]
        low, high, _ = interval(what, value, left_out, both, 0.95)
        tally.interval("accuracy: ours, of the procedure", low, high, procedure)
        tally.interval("accuracy: ours, of these models", low, high, float(truth[0]))
        spread = both.spread(left_out - pair[1].left_out["accuracy"], what)
        p = 2 * stats.t.sf(abs(value - pair[1].value("accuracy")) / spread.variance**0.5, spread.df)
        tally.add("false alarms accuracy: ours", p < 0.05)
    return tally


def five_nets(random: np.random.Generator, better: float) -> pd.DataFrame:
    """Return the predictions of five nets on 28 groups; the first is better by a difference of accuracies."""
    positives, negatives = GROUPS[28]
    sizes, of_group = np.array([*positives, *negatives]), np.array([1] * len(positives) + [0] * len(negatives))
    rho = brentq(lambda rho: correctness_icc(rho, 0.6) - 0.2, 1e-3, 0.995)
    group = np.repeat(np.arange(len(sizes)), sizes)
    labels, common, noise = of_group[group], random.standard_normal(len(sizes)), random.standard_normal(len(group))
    parts = []
    for number in range(5):
        level = ndtri(0.6 + (better / 2 if number == 0 else -better / 2))  # so that the variance stays what it was
        effect = np.sqrt(0.5) * (common + random.standard_normal(len(sizes)))
        own = np.sqrt(0.5) * (noise + random.standard_normal(len(group)))
        p = expit((2 * labels - 1) * (level + np.sqrt(rho) * effect[group] + np.sqrt(1 - rho) * own))
        part = pd.DataFrame({"backbone": f"net {number}", "sample": np.arange(len(p)), "group": group})
        parts.append(part.assign(label=np.where(labels == 1, "all", "hem"), probability_hem=1 - p, probability_all=p))
    return pd.concat(parts, ignore_index=True)


def simulate_ranks(better: float, seed: int, runs: int) -> Tally:
    tally, random = Tally(), np.random.default_rng([seed, 5])
    for _ in range(runs):
        frame = five_nets(random, better)
        pairs = compare(frame)
        of_best = pairs[pairs["first"] == "net 0"]
        tally.add("detectable", of_best["detectable"].mean())
        tally.add("found", float((of_best["p_holm"] <= 0.05).mean()))
        board = leaderboard(frame).set_index("backbone")
        tally.add("the best net has no rank 1", board.loc["net 0", "rank"] > 1)
        tally.add("a lower value has a better rank", not board["rank"].is_monotonic_increasing)
    return tally


def simulate(setting: Setting, seed: int, runs: int) -> Tally:
    world, tally = World(setting), Tally()
    random = np.random.default_rng([seed, setting.groups, int(100 * setting.correlation)])
    for _ in range(runs):
        one_run(world, random, tally)
    return tally


ORDINARY = [Setting(groups, rho) for groups in (28, 65) for rho in (0.1, 0.2, 0.3, 0.4)]
ORDINARY += [Setting(groups, 0.2, heavy=True) for groups in (28, 65)]
EDGE = [
    Setting(28, 0.2, (0.99, 0.99)),
    Setting(65, 0.2, (0.99, 0.99)),
    Setting(28, 0.1, (0.95, 0.95), outliers=0.1),
    Setting(65, 0.1, (0.95, 0.95), outliers=0.05),
    Setting(40, 0.2, spread=1.0),
]
FOLDS = [(3, 1), (5, 1), (10, 1), (5, 3)]


def print_table(title: str, shares: dict[str, dict[str, float]], prefixes: tuple[str, ...]) -> None:
    """Print a table in Markdown; a cell is the coverage, and the mean width in brackets."""
    print(f"\n{title}\n\n| | " + " | ".join(shares) + " |\n|---" + "|---" * len(shares) + "|")
    names = [name for found in shares.values() for name in found if name.startswith(prefixes[0])]
    for name in dict.fromkeys(names):
        cells = []
        for found in shares.values():
            cell = f"{found[name]:.3f}".removeprefix("0") if name in found else ""
            for prefix in prefixes[1:]:
                other = found.get(name.replace(prefixes[0], prefix, 1))
                cell += f" ({other:.3f})".replace("(0.", "(.") if other is not None and cell else ""
            none = found.get(name.replace(prefixes[0], "not estimable ", 1), 0.0)
            cells.append(cell + f", none in {none:.0%}" * (none > 0))
        print(f"| {name.removeprefix(prefixes[0])} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2_000)
    parser.add_argument("--only", choices=("ordinary", "edge", "folds", "ranks"), help="part; all by default")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    each, result = [max(options.runs // options.workers, 1)] * options.workers, {}

    def run(function: Callable[..., Tally], what: object) -> dict[str, float]:
        started = time.perf_counter()
        tally = sum(pool.map(function, [what] * len(each), range(len(each)), each), Tally())
        print(f"{what}: {sum(each):,} runs, {time.perf_counter() - started:.0f} s", flush=True)
        return tally.means()

    with ProcessPoolExecutor(options.workers) as pool:
        for part, settings in (("ordinary", ORDINARY), ("edge", EDGE)):
            if options.only in (None, part):
                result[part] = {str(setting): run(simulate, setting) for setting in settings}
        if options.only in (None, "folds"):
            result["folds"] = {f"{k} folds" + f", {r} times" * (r > 1): run(simulate_folds, (k, r)) for k, r in FOLDS}
        if options.only in (None, "ranks"):
            none = run(simulate_ranks, 0.0)
            result["ranks"] = {"five equal nets": none, "one better": run(simulate_ranks, none["detectable"])}
    for part, shares in result.items():
        if part == "ranks":
            print_table("Ranks and power", shares, ("",))
            continue
        print_table(f"Coverage of 95 % intervals, {part}; mean width in brackets", shares, ("coverage ", "width "))
        print_table(f"False alarms at 5 %, {part}", shares, ("false alarms ",))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"runs": sum(each), **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
