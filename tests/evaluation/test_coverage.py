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


@pytest.mark.parametrize("setting", [{}, {"recalls": (0.99, 0.99)}, {"outliers": 0.1, "recalls": (0.95, 0.95)}])
def test_intervals_hold_the_truth_and_tests_raise_few_false_alarms(simulation, setting):
    found = simulation.simulate(simulation.Setting(28, 0.1, **setting), seed=7, runs=150).means()
    for metric in simulation.METRICS:
        # Three standard errors of 150 runs below .92.
        assert found[f"coverage {metric}: ours"] > 0.855
        assert found[f"false alarms {metric}: ours"] < 0.13
        assert found[f"coverage {metric}: percentile"] < found[f"coverage {metric}: ours"]
    assert found["coverage auroc: DeLong, images"] < 0.6
    assert found["false alarms accuracy: McNemar, images"] > 0.3
    assert found["false alarms auroc: DeLong, images"] > 0.3


def test_folds_and_ranks_are_simulated_too(simulation):
    found = simulation.simulate_folds((3, 1), seed=0, runs=60).means()
    assert found["coverage accuracy: ours, of the procedure"] > 0.85
    assert found["false alarms accuracy: ours"] < 0.17
    ranks = simulation.simulate_ranks(0.3, seed=0, runs=10).means()
    assert ranks["found"] > 0.7
    assert ranks["a lower value has a better rank"] == ranks["the best net has no rank 1"] == 0


@pytest.mark.parametrize("setting", [{}, {"outliers": 0.1}, {"spread": 0.7}])
def test_the_simulated_truth_is_the_mean_of_what_is_simulated(simulation, setting):
    world = simulation.World(simulation.Setting(28 if "spread" not in setting else 40, 0.2, **setting))
    random, total = np.random.default_rng(0), np.zeros(3)
    found = []
    for _ in range(150):
        data = world.draw(random)
        right = (data.scores[0] > 0) == data.labels
        found.append([*(np.bincount(data.labels, right)), simulation.win_matrix(data).sum()])
        total += [*np.bincount(data.labels), np.prod(np.bincount(data.labels).astype(float))]
    # Ratios of sums: of images of all runs.
    means, error = np.sum(found, axis=0) / total, np.std(found, axis=0) * np.sqrt(150) / total
    truth = [world.truth[name] for name in ("specificity", "sensitivity", "auroc")]
    assert (np.abs(means - truth) < 4 * error).all()


def test_cells_of_one_group_are_right_together_as_often_as_asked(simulation):
    world = simulation.World(simulation.Setting(65, 0.3))
    random, agreement = np.random.default_rng(1), []
    for _ in range(200):
        data = world.draw(random)
        count, n = np.bincount(data.group, (data.scores[0] > 0) == data.labels), data.sizes
        for code, recall in enumerate(world.setting.recalls):
            own = (data.of_group == code) & (n > 1)
            pairs = (count[own] * (count[own] - 1)) / (n[own] * (n[own] - 1))
            agreement.append((pairs.mean() - recall**2) / (recall * (1 - recall)))
    assert np.mean(agreement) == pytest.approx(0.3, abs=0.03)


def test_the_win_matrix_gives_the_auroc(simulation):
    data = simulation.World(simulation.Setting(28, 0.1)).draw(np.random.default_rng(2))
    model = data.models()[0]
    value = simulation.Estimates(model, simulation.resampling_of([model]), ["auroc"]).value("auroc")
    pairs = (data.labels == 1).sum() * (data.labels == 0).sum()
    assert simulation.win_matrix(data).sum() / pairs == pytest.approx(value)
