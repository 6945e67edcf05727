"""The trained net to use: of a file, the best of a store by its val side, or all of a store as an ensemble."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from leukemia_dl.benchmark.run_files import StoredRun, read_run
from leukemia_dl.checks import choice
from leukemia_dl.errors import DataError
from leukemia_dl.evaluation import evaluate, leaderboard
from leukemia_dl.evaluation.metrics import metric as find_metric
from leukemia_dl.models import Classifier, Ensemble
from leukemia_dl.models.reading import read_classifier
from leukemia_dl.text import listed

_log = logging.getLogger(__name__)


def load_classifier(
    source: Any, which: Literal["best", "ensemble"] | None = None, *, metric: str | None = None,
    protocol: str | None = None,
) -> Classifier | Ensemble:  # fmt: skip
    """Return a trained net. Keras loads it with `safe_mode=True`.

    Args:
        source: A file that `Classifier.save` or `export` wrote, the folder of a trial or of a store, the result of
            `Benchmark.best`, or "hf://owner/name" or "hf://owner/name@revision" of what `push_to_hub` uploaded.
        which: Of a store with several nets: "best" on val, or the "ensemble" of all, whose probabilities are averaged.
        metric: To choose the best by; None for the store's primary metric.
        protocol: Of a store with several, the one whose nets count.

    Raises:
        DataError: If there is none, several and `which` is not given, or a file is damaged or from elsewhere.
        SettingsError: For a wrong hf:// address, or if huggingface_hub is missing (extra `hub`).
        UnknownNameError: If it was trained with a preprocessing step whose module is not imported.
        BackendError: If Keras has no backend here.
    """
    if which is None:
        place = source["path"] if isinstance(source, Mapping) or hasattr(source, "loc") else source
        if place is None:
            raise DataError(f"The net of {source['trial']} is not in the store: run with save_models=True.")
        return read_classifier(place)
    run = read_run(Path(source))
    if choice("which", which, ("best", "ensemble")) == "best":
        return load_classifier(best_net(run, metric, protocol))
    trials = nets_of(run, protocol)["trial"].unique()
    problems = [f"{trial}: {problem}" for trial in trials if (problem := run.store.model_problem(trial))]
    if problems or not len(trials):
        raise DataError(f"Not all nets can be used: {'; '.join(problems) or 'no trial'}. Run with save_models=True.")
    return Ensemble(tuple(read_classifier(run.store.folder(trial)) for trial in trials))


def best_net(run: StoredRun, metric: str | None = None, protocol: str | None = None) -> pd.Series:
    """Return the best net of a run, see `Benchmark.best`."""
    what = find_metric(metric or str(run.settings["benchmark"].get("primary_metric", "accuracy")))
    nets = nets_of(run, protocol)
    if (nets.groupby(["trial", "sample"])["side"].nunique() > 1).any():
        raise DataError(
            "Val and test side share images here: a net chosen on val is chosen on test. Name a trial instead."
        )
    values: dict[Any, float] = {}
    for (name, trial), rows in nets[nets["side"] == "val"].groupby(["backbone", "trial"]):
        values[name, trial] = float(evaluate(rows, metrics=what.name, side="val")["value"].iloc[0])
    found = pd.Series(values, dtype=float).dropna() * (-1 if what.better == "low" else 1)
    if found.empty or not what.better:
        raise DataError(f"No net has a value of {what.name} on a val side, by which it is best. Name another metric.")
    first = found.groupby(level=0).mean().idxmax()
    trial = str(found.xs(first).idxmax())
    board = leaderboard(nets, what.name).to_dict("records")
    (own,) = (row for row in board if row["backbone"] == first)
    worse = [first, *own["better_than"].split(", ")]
    if equal := [row["backbone"] for row in board if row["backbone"] not in worse]:
        _log.warning("%s is best on val; on test it is not significantly better than %s", first, listed(equal))
    facts = nets[nets["trial"] == trial].iloc[0]
    return pd.Series({
        **{name: facts[name] for name in ("backbone", "protocol", "fold", "seed")},
        **{"metric": what.name, "val": values[first, trial], "test": own[what.name], "low": own["low"]},
        **{"high": own["high"], "flags": own["flags"], "not_worse": ", ".join(equal)},
        **{"trial": trial, "path": run.store.folder(trial) / "model.keras" if run.store.has_model(trial) else None},
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
