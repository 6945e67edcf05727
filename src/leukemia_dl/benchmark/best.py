"""The net of a benchmark to go on with: the best on val by the metric that was chosen before the run."""

from __future__ import annotations

import logging
from typing import Any

import pandas as pd

from leukemia_dl.benchmark.run_files import StoredRun
from leukemia_dl.errors import DataError
from leukemia_dl.evaluation import evaluate, leaderboard
from leukemia_dl.evaluation.metrics import metric as find_metric
from leukemia_dl.text import listed

_log = logging.getLogger(__name__)


def best_net(run: StoredRun, metric: str | None = None, protocol: str | None = None) -> pd.Series:
    """Return the best net of a run, see `Benchmark.best`."""
    what = find_metric(metric or str(run.settings["benchmark"].get("primary_metric", "accuracy")))
    nets = nets_of(run, protocol)
    values: dict[Any, float] = {}
    for (name, trial), rows in nets[nets["side"] == "val"].groupby(["backbone", "trial"]):
        values[name, trial] = float(evaluate(rows, metrics=what.name, side="val")["value"].iloc[0])
    found = pd.Series(values, dtype=float).dropna() * (-1 if what.better == "low" else 1)
    if found.empty or not what.better:
        raise DataError(f"No net has a value of {what.name} on val by which it is best: name another metric.")
    first = found.groupby(level=0).mean().idxmax()
    trial = str(found.xs(first).idxmax())
    board = leaderboard(nets, what.name).to_dict("records")
    (own,) = (row for row in board if row["backbone"] == first)
    worse = [first, *own["better_than"].split(", ")]
    if equal := [row["backbone"] for row in board if row["backbone"] not in worse]:
        _log.warning("%s is best on val; on test it is not significantly better than %s", first, listed(equal))
    facts = nets[nets["trial"] == trial].iloc[0]
    found_path = run.store.folder(trial) / "model.keras" if run.store.has_model(trial) else None
    return pd.Series({
        **{name: facts[name] for name in ("backbone", "protocol", "fold", "seed")},
        **{"metric": what.name, "val": values[first, trial], "test": own[what.name], "low": own["low"]},
        **{"high": own["high"], "flags": own["flags"], "not_worse": ", ".join(equal)},
        **{"trial": trial, "path": found_path},
    })  # fmt: skip


def nets_of(run: StoredRun, protocol: str | None) -> pd.DataFrame:
    """Return the predictions of the trained nets of one protocol; DataError if there are none, or several protocols."""
    frame = run.predictions
    nets = frame[frame["kind"] == "backbone"] if len(frame) else frame
    known = sorted(nets["protocol"].unique()) if len(nets) else []
    chosen = known[0] if protocol is None and len(known) == 1 else protocol
    if chosen not in known:
        raise DataError(f"Choose one of the protocols of trained nets: {', '.join(known) or 'there are none yet'}.")
    return nets[nets["protocol"] == chosen]
