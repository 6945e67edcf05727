"""The leaderboard: values with intervals, ranks that show ties, the costs of each backbone, and warnings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from leukemia_dl.evaluation.comparisons import compare
from leukemia_dl.evaluation.evaluate import Estimand, evaluate
from leukemia_dl.evaluation.metrics import metric as find_metric
from leukemia_dl.evaluation.predictions import model_keys, select_side, validated_predictions

__all__ = ["leaderboard"]

# Column of the leaderboard -> its column in `Benchmark.results()` or `Benchmark.timings()`, and how over trials.
_COSTS = {
    "parameters": ("parameters", "max"),
    "fit_seconds": ("fit_seconds", "mean"),
    "images_per_second": ("predict_images_per_second", "median"),
}
_COLUMNS = (
    "rank", "backbone", "kind", "value", "low", "high", "unit", "better_than", "trials", "seeds", "images", "groups",
    *_COSTS, "changes", "estimand", "flags",
)  # fmt: skip


def leaderboard(
    frame: pd.DataFrame,
    metric: str = "accuracy",
    *,
    results: pd.DataFrame | None = None,
    timings: pd.DataFrame | None = None,
    level: float = 0.95,
    estimand: Estimand = "models",
    side: str = "test",
) -> pd.DataFrame:
    """Return the backbones in the order of one metric, with baselines among them.

    `rank` is one more than the number of backbones that are significantly better (`compare`, after Holm's correction),
    so that backbones without a significant difference may share a rank. Where nothing can be tested, as with fewer than
    five groups of a class, there is no rank, and `flags` begins with the reason. Baselines, and undefined values, have
    none either. `better_than` names every row, baselines included, that a backbone is better than at the same level
    (for baselines without correction).

    Choose the `metric` before the results are seen; where none is better (`prevalence`, calibration's slope and
    intercept) there are no ranks. `results` is `Benchmark.results()`, for parameters, changed settings and trials that
    failed, and `timings` is `Benchmark.timings()`. `frame`, `level`, `estimand` and `side` are those of `evaluate`.

    Returns:
        A row per backbone and baseline that has predictions, best first: `rank, backbone, kind, <metric>, low, high,
        unit, better_than, trials, seeds, images, groups, parameters, fit_seconds` (mean of the trials),
        `images_per_second` (predicting), `changes` (to the preset of the recipe), `estimand, flags`.
    """
    what, frame = find_metric(metric), validated_predictions(frame)
    settings: dict[str, Any] = {"level": level, "estimand": estimand, "side": side}
    table, chosen = evaluate(frame, metrics=metric, **settings), select_side(frame, side)
    trials = chosen[model_keys(chosen)].drop_duplicates().astype(str)
    table["kind"] = table["backbone"].map(chosen.groupby("backbone")["kind"].first())
    table["trials"] = table["backbone"].map(trials["backbone"].value_counts())
    comparable = len(table) == 1 or "sample" in frame
    pairs = compare(frame, metric, **settings).to_dict("records") if len(table) > 1 and comparable else []
    better = _better_than(pairs, what.better, level)
    table["better_than"] = [", ".join(better.get(name, [])) for name in table["backbone"]]
    nets = set(table.loc[(table["kind"] == "backbone") & table["value"].notna(), "backbone"])
    untested = {frozenset((row["first"], row["second"])): row["reason"] for row in pairs if np.isnan(row["p"])}
    ranked = _testable(nets, set(untested)) if what.better and comparable else set()
    if len(nets) == 1:  # without a pair to test its own interval decides
        ranked &= set(table.loc[table["low"].notna(), "backbone"])
    places = {name: 1 + sum(name in better.get(other, []) for other in nets) for name in ranked}
    table["rank"] = table["backbone"].map(places).astype("Int64")
    whys = {name: [why for pair, why in untested.items() if name in pair and pair <= nets] for name in nets - ranked}
    table["untested"] = [(whys.get(name) or [""])[0] for name in table["backbone"]]
    table = table.sort_values("value", ascending=what.better == "low", kind="stable", ignore_index=True)
    for column, (source, how) in _COSTS.items():
        given = next((one for one in (results, timings) if one is not None and source in one), None)
        known = given.groupby("backbone")[source].agg(how) if given is not None else pd.Series(dtype=float)
        table[column] = table["backbone"].map(known).astype("Int64" if column == "parameters" else "float64")
    rows = pd.DataFrame(columns=["backbone", "status"]) if results is None or "status" not in results else results
    changes = dict(zip(rows["backbone"], rows["changes"], strict=True)) if "changes" in rows else {}
    table["changes"] = [changes.get(name, "") for name in table["backbone"]]
    failed = rows.loc[rows["status"] == "failed", "backbone"].value_counts()
    of_nets = trials[trials["backbone"].isin(table.loc[table["kind"] == "backbone", "backbone"])]
    planned = len(set(of_nets.drop(columns="backbone").itertuples(index=False)))
    table["flags"] = _flags(table, planned, "" if comparable else "not compared: there is no column sample", failed)
    return table.rename(columns={"value": metric})[[metric if name == "value" else name for name in _COLUMNS]]


def _testable(nets: set[str], untested: set[frozenset[str]]) -> set[str]:
    """Return the nets whose pairs were all tested, once those with the most untested pairs are left out in turn."""
    while any(pair <= nets for pair in untested):
        counts = {name: sum(name in pair and pair <= nets for pair in untested) for name in nets}
        nets = {name for name in nets if counts[name] < max(counts.values())}
    return nets


def _better_than(pairs: list[dict[Any, Any]], better: str, level: float) -> dict[str, list[str]]:
    """Return, per backbone, those that it is better than at a level."""
    found: dict[str, list[str]] = {}
    for row in pairs if better else ():
        p = row["p"] if np.isnan(row["p_holm"]) else row["p_holm"]
        if p <= 1 - level and row["difference"]:
            pair = (row["first"], row["second"])
            winner, loser = pair if (row["difference"] > 0) == (better == "high") else pair[::-1]
            found.setdefault(winner, []).append(loser)
    return found


def _flags(table: pd.DataFrame, planned: int, uncompared: str, failed: pd.Series) -> list[str]:
    """Return the warnings of each row."""
    ranked, most = table.loc[table["rank"].notna(), "backbone"].tolist(), int(table["images"].max())
    flags = []
    for row in table.to_dict("records"):
        notes = [note for note in (row["reason"], uncompared) if note]
        if row["untested"] and not row["reason"]:
            notes.append(f"not testable against the others, {row['untested']}")
        if row["images"] < most:
            notes.append(f"{row['images']:,} of {most:,} images")
        if row["kind"] == "backbone" and row["trials"] < planned:
            notes.append(f"incomplete: {row['trials']} of {planned} trials")
        if row["backbone"] in failed:
            notes.append(f"{failed[row['backbone']]} failed")
        if len(ranked) > 1 and row["backbone"] == ranked[0]:
            notes.append(f"best of {len(ranked)} on this side: its value is optimistic")
        flags.append("; ".join(notes))
    return flags
