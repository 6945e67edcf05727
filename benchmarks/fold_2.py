"""What can fold 2 of C-NMC 2019 tell about two classifiers near an accuracy of .80? By simulation.

    python benchmarks/fold_2.py [--runs 500]

Fold 2 has 3,553 images of 28 groups of patients. Two classifiers of equal accuracy (.80) are simulated as in
interval_coverage.py, with several intraclass correlations of being right, and with one half or nine tenths of their
group effects in common. Printed are medians over the runs: how far an interval reaches, and how large a difference
would have been found.
"""

from __future__ import annotations

import argparse

import numpy as np
from interval_coverage import Setting, World
from scipy import stats

from leukemia_dl.evaluation.evaluate import Estimates
from leukemia_dl.evaluation.intervals import interval, resampling_of
from leukemia_dl.evaluation.metrics import metric

PAIRS = 10  # of five backbones


def medians(world: World, runs: int, shared: float) -> list[float]:
    random, rows = np.random.default_rng(0), []
    for _ in range(runs):
        models = world.draw(random, shared).models()
        resampling = resampling_of(models)
        first, second = (Estimates(model, resampling, ["accuracy"]) for model in models)
        value, left_out = first.value("accuracy"), first.left_out["accuracy"]
        own = resampling_of(models[:1])
        low, high, _ = interval(metric("accuracy"), value, left_out, own, 0.95)
        gap = resampling.spread(left_out - second.left_out["accuracy"], metric("accuracy"))
        power = stats.t.ppf(0.8, gap.df)
        smallest = [(stats.t.ppf(1 - alpha / 2, gap.df) + power) * gap.variance**0.5 for alpha in (0.05, 0.05 / PAIRS)]
        rows.append([value, value - low, high - value, *smallest])
    return np.median(rows, axis=0).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    runs = parser.parse_args().runs
    print("| correlation | in common | accuracy | interval | found, one pair | found, first of ten pairs |")
    print("|---|---|---|---|---|---|")
    for correlation in (0.1, 0.16, 0.2, 0.27):
        for shared in (0.5, 0.9):
            value, below, above, one, ten = medians(World(Setting(28, correlation)), runs, shared)
            ends = f"-{below:.3f} to +{above:.3f}"
            print(f"| {correlation} | {shared} | {value:.3f} | {ends} | {one:.3f} | {ten:.3f} |", flush=True)


if __name__ == "__main__":
    main()
