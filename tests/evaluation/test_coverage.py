"""The short form of benchmarks/interval_coverage.py: what it measures over 4,000 runs, in 200, with room for chance."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "interval_coverage.py"


@pytest.fixture(scope="module")
def simulation():
    spec = importlib.util.spec_from_file_location("interval_coverage", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_intervals_hold_the_truth_and_tests_raise_few_false_alarms(simulation):
    runs = 200
    totals = simulation.simulate(simulation.Setting(28, 0.2), seed=7, runs=runs)
    share = {name: count / runs for name, count in totals.items()}
    for metric in simulation.METRICS:
        # Three standard errors of 200 runs below .925 and above .975.
        assert 0.87 <= share[f"{metric}: ours"] <= 1.0
        assert share[f"{metric}: image level"] < 0.55
        assert share[f"{metric}: test, ours"] < 0.11
    assert share["accuracy: test, McNemar"] > 0.4
    assert share["auroc: test, DeLong"] > 0.4


def test_the_simulated_truth_is_the_mean_of_what_is_simulated(simulation):
    world = simulation.World(simulation.Setting(28, 0.2))
    random = np.random.default_rng(0)
    found = []
    for _ in range(150):
        model = world.model(world.scores(random)[0])
        resampling = simulation.resampling_of([model])
        estimates = simulation.Estimates(model, resampling, simulation.METRICS)
        found.append([estimates.value(name) for name in simulation.METRICS])
    error = np.std(found, axis=0) / np.sqrt(len(found))
    truth = [world.truth[name] for name in simulation.METRICS]
    assert (np.abs(np.mean(found, axis=0) - truth) < 4 * error).all()


def test_cells_of_one_group_are_right_together_as_often_as_asked(simulation):
    world = simulation.World(simulation.Setting(65, 0.3))
    random = np.random.default_rng(1)
    agreement = []
    for _ in range(200):
        right = (world.scores(random)[0] > 0) == world.labels
        count, n = np.bincount(world.group, right), world.sizes
        for code, recall in enumerate(simulation.RECALLS):
            own = (world.of_group == code) & (n > 1)
            pairs = (count[own] * (count[own] - 1)) / (n[own] * (n[own] - 1))
            agreement.append((pairs.mean() - recall**2) / (recall * (1 - recall)))
    assert np.mean(agreement) == pytest.approx(0.3, abs=0.03)


def test_the_win_matrix_gives_the_auroc(simulation):
    world = simulation.World(simulation.Setting(28, 0.1))
    scores = world.scores(np.random.default_rng(2))[0]
    model = world.model(scores)
    value = simulation.Estimates(model, simulation.resampling_of([model]), ["auroc"]).value("auroc")
    pairs = (world.labels == 1).sum() * (world.labels == 0).sum()
    assert simulation.win_matrix(world, scores).sum() / pairs == pytest.approx(value)
