"""The leaderboard: values with intervals, ranks that show ties, what each backbone costs, and what to beware of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from leukemia_dl.evaluation.comparisons import compare
from leukemia_dl.evaluation.evaluate import Estimand, evaluate
from leukemia_dl.evaluation.metrics import metric as find_metric
from leukemia_dl.evaluation.predictions import select_side, tidy

__all__ = ["leaderboard"]

# Column of the leaderboard -> its column in `Benchmark.results()` or `Benchmark.timings()`, and how over trials.
_COSTS = {
    "parameters": ("parameters", "max"),
    "fit_seconds": ("fit_seconds", "mean"),
    "images_per_second": ("predict_images_per_second", "median"),
}


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

    Args:
        frame: The prediction frame, see `evaluate`.
        metric: The one metric, to be chosen before the results are seen. Where none is better (`prevalence`,
            calibration's slope and intercept) there are no ranks.
        results: `Benchmark.results()`, for parameters, changed settings and trials that failed.
        timings: `Benchmark.timings()`, for seconds.
        level: Of the intervals and comparisons.
        estimand: "models" or "procedure", see `evaluate`.
        side: Which rows of the column `side`.

    Returns:
        A row per backbone and baseline that has predictions, best first: `rank, backbone, kind, <metric>, low, high`
        (or `low_image_level, high_image_level`), `better_than, trials, seeds, images, groups, parameters, fit_seconds`
        (mean of the trials), `images_per_second` (predicting), `changes` (to the preset of the recipe), `estimand`,
        `flags`.

    Raises:
        DataError: If the frame is not one of predictions.
        SettingsError: If the metric does not exist.
    """
    what, frame = find_metric(metric), tidy(frame)
    settings: dict[str, Any] = {"level": level, "estimand": estimand, "side": side}
    table = evaluate(frame, metrics=metric, **settings)
    chosen = select_side(frame, side)
    table["kind"] = table["backbone"].map(chosen.groupby("backbone")["kind"].first())
    table["trials"] = table["backbone"].map(_trials(chosen).map(len)).astype(int)
    pairs = compare(frame, metric, **settings).to_dict("records") if len(table) > 1 and "sample" in frame else []
    better = _better_than(pairs, what.better, level)
    table["better_than"] = table["backbone"].map(lambda name: ", ".join(better.get(name, [])))
    nets = set(table.loc[(table["kind"] == "backbone") & table["value"].notna(), "backbone"])
    untested = {frozenset((row["first"], row["second"])): row["reason"] for row in pairs if np.isnan(row["p"])}
    ranked = _testable(nets, set(untested)) if what.better and (len(table) == 1 or "sample" in frame) else set()
    ends = [name for name in table if str(name).startswith(("low", "high"))]
    if len(nets) == 1:  # without a pair to test its own interval decides
        ranked &= set(table.loc[table[ends[0]].notna(), "backbone"])
    ranks = [
        1 + sum(name in better.get(other, []) for other in nets) if name in ranked else pd.NA
        for name in table["backbone"]
    ]
    table["untested"] = [
        "" if name in ranked else next((why for pair, why in untested.items() if name in pair and pair <= nets), "")
        for name in table["backbone"]
    ]
    table["rank"] = pd.Series(ranks, dtype="Int64")
    table = table.sort_values("value", ascending=what.better == "low", kind="stable", ignore_index=True)
    for column, (source, how) in _COSTS.items():
        given = next((one for one in (results, timings) if one is not None and source in one), None)
        known = given.groupby("backbone")[source].agg(how) if given is not None else pd.Series(dtype=float)
        table[column] = table["backbone"].map(known).astype("Int64" if column == "parameters" else "float64")
    rows = results if results is not None and "changes" in results else pd.DataFrame(columns=["backbone", "changes"])
    changes = dict(zip(rows["backbone"], rows["changes"], strict=True))
    table["changes"] = [changes.get(name, "") for name in table["backbone"]]
    table["flags"] = _flags(table, chosen, results)
    front = ["rank", "backbone", "kind", "value", *ends, "better_than", "trials", "seeds", "images", "groups"]
    return table[[*front, *_COSTS, "changes", "estimand", "flags"]].rename(columns={"value": metric})


def _trials(chosen: pd.DataFrame) -> pd.Series:
    """Return, per backbone, which folds, seeds and repeats there are."""
    keys = [name for name in ("seed", "repeat", "fold") if name in chosen]
    found = {
        name: set(map(tuple, rows[keys].drop_duplicates().astype(str).to_numpy())) if keys else {()}
        for name, rows in chosen.groupby("backbone", sort=False)
    }
    return pd.Series(found, dtype=object)


def _testable(nets: set[str], untested: set[frozenset[str]]) -> set[str]:
    """Return the nets whose pairs were all tested, once those with the most untested pairs are left out in turn."""
    while any(pair <= nets for pair in untested):
        counts = {name: sum(name in pair and pair <= nets for pair in untested) for name in nets}
        nets = {name for name in nets if counts[name] < max(counts.values())}
    return nets


def _better_than(pairs: list[dict[Any, Any]], better: str, level: float) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in pairs if better else ():
        p = row["p"] if np.isnan(row["p_holm"]) else row["p_holm"]
        if p <= 1 - level and row["difference"]:
            pair = (row["first"], row["second"])
            winner, loser = pair if (row["difference"] > 0) == (better == "high") else pair[::-1]
            found.setdefault(winner, []).append(loser)
    return found


def _flags(table: pd.DataFrame, chosen: pd.DataFrame, results: pd.DataFrame | None) -> list[str]:
    trials = _trials(chosen)
    nets = [name for name, kind in zip(table["backbone"], table["kind"], strict=True) if kind == "backbone"]
    best = table.loc[table["rank"].notna(), "backbone"].tolist()
    most = int(table["images"].max())
    grid = set().union(*(trials[name] for name in nets)) if nets else set()
    failed: dict[Any, int] = {}
    if results is not None and {"backbone", "status"} <= set(results):
        failed = results[results["status"] == "failed"].groupby("backbone").size().to_dict()
    flags = []
    unnamed = "" if len(table) == 1 or "sample" in chosen else "not compared: there is no column sample"
    for name, why, untested, images in table[["backbone", "reason", "untested", "images"]].to_numpy():
        notes = [note for note in (why, unnamed) if note]
        if untested and not why:
            notes.append(f"not testable against the others, {untested}")
        if images < most:
            notes.append(f"{images:,} of {most:,} images")
        if name in nets and len(trials[name]) < len(grid):
            notes.append(f"incomplete: {len(trials[name])} of {len(grid)} trials")
        if failed.get(name):
            notes.append(f"{failed[name]} failed")
        if best and name == best[0] and len(best) > 1:
            notes.append(f"best of {len(best)} on this side: its value is optimistic")
        flags.append("; ".join(notes))
    return flags
