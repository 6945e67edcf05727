"""What the driver of a grid costs: planning, keeping and reading 10,000 trials, and its own work per trial.

python benchmarks/driver.py
"""

import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

import leukemia_dl as ldl
from leukemia_dl.benchmark import SerialExecutor
from leukemia_dl.benchmark.grid_runner import GridRunner
from leukemia_dl.benchmark.records import Samples, blank_record, environment
from leukemia_dl.benchmark.trial_runner import RunContext

TRIALS, MODEL_BYTES = 10_000, 20_000_000


def timed(function):
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


class Instant(SerialExecutor):
    """An executor whose trials take no time: what is left is the driver."""

    def run(self, trials, context, on_progress):
        for planned in trials:
            yield records[planned.trial.digest], model


with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
    dataset = ldl.Dataset.load("synthetic", root=Path(folder) / "cells", show_progress=False)
    settings = {"recipe": "quick", "baselines": [], "folds": [2]}
    bench = ldl.Benchmark(dataset, seeds=range(TRIALS // 5), store=Path(folder) / "store", **settings)
    found = {}
    found["plan(), empty store, s"], frame = timed(bench.plan)
    assert len(frame) == TRIALS
    plan = bench.planned
    bench.store.create()
    samples = Samples.of(bench.dataset)
    shared = (plan.recipe, plan.compute, None, True, None, bench.store, Path(folder) / "run")
    GridRunner._context = lambda self, nets: RunContext({}, samples, {}, {}, *shared)
    rng, records = np.random.default_rng(0), {}
    history = pd.DataFrame({name: rng.random(30) for name in ("loss", "accuracy", "val_loss", "val_accuracy")})
    for planned in plan.trials:
        record = blank_record(planned, samples)
        p = rng.random(len(record.labels))
        metrics = {name: float(rng.random()) for name in (*ldl.evaluation.METRICS, "val_accuracy", "val_loss")}
        record = dataclasses.replace(
            record,
            timings=environment(time.perf_counter()),
            metrics=metrics,
            history=history,
            probabilities=np.stack([p, 1 - p], axis=1),
        )
        records[planned.trial.digest] = record

    def run(trials):
        GridRunner(plan, bench.store, trials, Instant(), "reuse", "continue", None, False).run()

    few, model = plan.trials[:20], bytes(MODEL_BYTES)
    seconds, _ = timed(lambda: run(few))
    found["driver's own time per trial with a net of 20 MB, s"] = seconds / len(few)
    found["the same as a share of a trial of one minute"] = seconds / len(few) / 60
    model = b"x"
    seconds, _ = timed(lambda: run(plan.trials[20:120]))
    found["driver's own time per trial without a net, s"] = seconds / 100
    # The rest of the store is only to be read: nobody needs to wait for the disk.
    os.fsync = lambda descriptor: None
    run(plan.trials[120:])
    found["results() of 10,000 trials, s"], frame = timed(bench.results)
    assert list(frame["status"]) == ["ok"] * TRIALS
    found["plan(), full store, s"], frame = timed(bench.plan)
    assert (frame["status"] == "ok").all()
    found["writing results.csv of 10,000 trials, s"], _ = timed(bench.store.export)
print(json.dumps({name: float(f"{value:.3g}") for name, value in found.items()}, indent=1))
limits = {
    "plan(), empty store, s": 2, "results() of 10,000 trials, s": 10,
    "the same as a share of a trial of one minute": 0.01,
}  # fmt: skip
sys.exit(any(found[name] > limit for name, limit in limits.items()))
