"""Time and memory of intervals for as many predictions as C-NMC 2019 has training images, on one core.

    python benchmarks/evaluation.py [--rounds 5]

Beside them: scikit-learn, called for the same metrics once per left-out group, as one would do otherwise. Linux only.
"""

from __future__ import annotations

import argparse
import os

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])

import resource  # noqa: E402
import statistics  # noqa: E402
import time  # noqa: E402

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import sklearn.metrics as sk  # noqa: E402
from interval_coverage import Setting, World  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402

from leukemia_dl.evaluation import compare, evaluate  # noqa: E402


def frame_of(world: World, backbones: int) -> pd.DataFrame:
    random, parts = np.random.default_rng(0), []
    for number in range(backbones):
        p = world.model(world.scores(random)[0]).runs[0].probabilities
        columns = {"backbone": f"b{number}", "sample": np.arange(len(p)), "group": world.group}
        columns |= {"label": np.where(world.labels == 1, "all", "hem")}
        parts.append(pd.DataFrame(columns | {"probability_hem": p[:, 0], "probability_all": p[:, 1]}))
    return pd.concat(parts, ignore_index=True)


def by_scikit_learn(frame: pd.DataFrame) -> None:
    """Compute what scikit-learn has of our metrics, without each group."""
    group = frame["group"].to_numpy()
    labels, p = frame["label"].eq("all").to_numpy(int), frame["probability_all"].to_numpy()
    odds = np.log(p / (1 - p))
    for left_out in np.unique(group):
        keep = group != left_out
        y, q, guess = labels[keep], p[keep], p[keep] > 0.5
        sk.accuracy_score(y, guess), sk.log_loss(y, q), sk.balanced_accuracy_score(y, guess), sk.f1_score(y, guess)
        sk.f1_score(y, guess, average="weighted"), sk.roc_auc_score(y, q), sk.average_precision_score(y, q)
        sk.recall_score(y, guess), sk.precision_score(y, guess), sk.matthews_corrcoef(y, guess)
        sk.brier_score_loss(y, q), sk.recall_score(y, guess, pos_label=0), sk.precision_score(y, guess, pos_label=0)
        LogisticRegression(C=np.inf).fit(odds[keep, None], y)


def seconds(function, rounds: int) -> float:
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    world = World(Setting(65, 0.2))
    one, five = frame_of(world, 1), frame_of(world, 5)
    evaluate(one.head(3_000))  # imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    jackknife = seconds(lambda: evaluate(one), rounds)
    theirs = seconds(lambda: by_scikit_learn(one), 1)
    print(f"{len(one):,} predictions in {world.of_group.size} groups, one core")
    print(f"every metric with its interval: {jackknife:.2f} s; by scikit-learn, without intervals: {theirs:.1f} s")
    print(f"all pairs of five backbones, one metric: {seconds(lambda: compare(five), rounds):.2f} s")
    print(
        f"bootstrap, 2,000 replicates, every metric: {seconds(lambda: evaluate(one, method='bootstrap'), rounds):.1f} s"
    )
    print(f"memory: {(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:.0f} MiB more than before")
    print(f"        {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB in all")


if __name__ == "__main__":
    main()
