"""Time of intervals for as many predictions as C-NMC 2019 has training images, on one core.

Beside them: scikit-learn, called for the same metrics once per left-out group, as one would do otherwise. Linux only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import pandas as pd
import sklearn.metrics as sk
from harness import Row, compared, in_turn
from interval_coverage import Setting, World
from sklearn.linear_model import LogisticRegression

from leukemia_dl.evaluation import compare, evaluate


def frame_of(world: World, backbones: int) -> pd.DataFrame:
    random, parts = np.random.default_rng(0), []
    for number in range(backbones):
        data = world.draw(random)
        p = data.models()[0].runs[0].probabilities
        columns = {"backbone": f"b{number}", "sample": np.arange(len(p)), "group": data.group}
        columns |= {"label": np.where(data.labels == 1, "all", "hem")}
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


def one_metric_by_scikit_learn(frame: pd.DataFrame) -> None:
    """Compute balanced accuracy of each backbone, without each group."""
    for _, part in frame.groupby("backbone"):
        group, labels = part["group"].to_numpy(), part["label"].eq("all").to_numpy(int)
        guess = part["probability_all"].to_numpy() > 0.5
        for left_out in np.unique(group):
            sk.balanced_accuracy_score(labels[group != left_out], guess[group != left_out])


def rows(short: bool) -> Iterable[Row]:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    world = World(Setting(65, 0.2))
    one, five = frame_of(world, 1), frame_of(world, 5)
    if short:
        one, five = (frame.groupby(["backbone", "group"]).head(10) for frame in (one, five))
    evaluate(one.head(3_000))  # imports
    ways = {
        "intervals": lambda: evaluate(one),
        "scikit-learn": lambda: by_scikit_learn(one),
        "pairs": lambda: compare(five, metric="balanced_accuracy"),
        "scikit-learn, five": lambda: one_metric_by_scikit_learn(five),
    }
    taken = in_turn(ways, 1 if short else 5, warm=0 if short else 1)
    theirs, note = taken["scikit-learn"], "theirs: the metrics without each group, without intervals"
    where = f"{len(one):,} predictions in {one['group'].nunique()} groups"
    return [
        compared(f"{where}: every metric, jackknife", taken["intervals"], theirs, 1, "runs/s", note=note),
        compared("the same: five backbones, one metric", taken["pairs"], taken["scikit-learn, five"], 1, "runs/s"),
    ]
