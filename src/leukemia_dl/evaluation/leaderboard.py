"""The leaderboard: backbones in the order of one metric, with ranks that differences between them support."""

from typing import Any, Literal

import numpy as np
import pandas as pd

from leukemia_dl.checks import choice
from leukemia_dl.evaluation import predictions
from leukemia_dl.evaluation.comparisons import compare, winner_of
from leukemia_dl.evaluation.evaluate import Estimand, evaluate
from leukemia_dl.evaluation.metrics import metric as find_metric
from leukemia_dl.evaluation.patients import patient_predictions

_COSTS = {"parameters": ("parameters", "max"), "fit_seconds": ("fit_seconds", "mean"),
          "images_per_second": ("predict_images_per_second", "median")}  # fmt: skip
_COLUMNS = (
    "rank", "rank_high", "backbone", "kind", "value", "low", "high", "unit", "better_than", "trials", "seeds", "images",
    "groups", *_COSTS, "changes", "estimand", "flags",
)  # fmt: skip


def leaderboard(
    frame: pd.DataFrame, metric: str = "accuracy", *, results: pd.DataFrame | None = None,
    timings: pd.DataFrame | None = None, unit: Literal["image", "patient"] = "image", level: float = 0.95,
    estimand: Estimand | None = None, side: str = "test",
) -> pd.DataFrame:  # fmt: skip
    """Return the backbones in the order of one metric, with baselines among them.

    `rank` is 1 more than the number of backbones that are significantly better (`compare`, after Holm's correction).
    `rank_high` is the number of backbones less that of worse ones (Klein, Wright and Wieczorek 2020). Both are widened
    so that no lower value has a better rank. They are NA where nothing can be tested (`flags` begins with the reason),
    for baselines, undefined values, and metrics of which neither end is better. `better_than` names the rows that one
    is significantly better than, baselines (without correction) included. `results` and `timings` of the benchmark add
    parameters, costs, changes, failures; `frame`, `metric`, `unit`, `level`, `estimand`, `side` are as in `evaluate`.

    Returns a row per backbone and baseline, best first.
    """
    what, frame = find_metric(metric), predictions.validated_predictions(frame)
    if choice("unit", unit, ("image", "patient")) == "patient":
        frame = patient_predictions(frame, side=side)
    settings: dict[str, Any] = {"level": level, "estimand": estimand, "side": side}
    table, chosen = evaluate(frame, metrics=metric, **settings), predictions.select_side(frame, side)
    trials = chosen[predictions.model_keys(chosen)].drop_duplicates().astype(str)
    table["kind"] = table["backbone"].map(chosen.groupby("backbone")["kind"].first())
    table["trials"] = table["backbone"].map(trials["backbone"].value_counts())
    comparable = len(table) == 1 or "sample" in frame
    pairs = compare(frame, metric, **settings).to_dict("records") if len(table) > 1 and comparable else []
    better: dict[str, list[str]] = {}
    for row in pairs:
        if winner := winner_of(row, level):
            better.setdefault(winner, []).append(row["second" if winner == row["first"] else "first"])
    table["better_than"] = [", ".join(better.get(name, [])) for name in table["backbone"]]
    nets = set(table.loc[(table["kind"] == "backbone") & table["value"].notna(), "backbone"])
    untested = {frozenset((row["first"], row["second"])): row["reason"] for row in pairs if np.isnan(row["p"])}
    ranked = set(nets) if what.better and comparable else set[str]()
    while any(pair <= ranked for pair in untested):  # leave out those with the most untested pairs in turn
        counts = {name: sum(name in pair and pair <= ranked for pair in untested) for name in ranked}
        ranked = {name for name in ranked if counts[name] < max(counts.values())}
    if len(nets) == 1:  # without a pair to test its own interval decides
        ranked &= set(table.loc[table["low"].notna(), "backbone"])
    whys = {name: [why for pair, why in untested.items() if name in pair and pair <= nets] for name in nets - ranked}
    table["untested"] = [next(iter(whys.get(name, ())), "") for name in table["backbone"]]
    table = table.sort_values("value", ascending=what.better == "low", kind="stable", ignore_index=True)
    order = [name for name in table["backbone"] if name in ranked]
    above = [1 + sum(name in better.get(other, []) for other in ranked) for name in order]
    below = [len(ranked) - sum(other in ranked for other in better.get(name, [])) for name in order]
    above, below = np.minimum.accumulate(above[::-1])[::-1].tolist(), np.maximum.accumulate(below).tolist()
    table["rank"] = table["backbone"].map(dict(zip(order, above, strict=True))).astype("Int64")
    table["rank_high"] = table["backbone"].map(dict(zip(order, below, strict=True))).astype("Int64")
    for column, (source, how) in _COSTS.items():
        given = next((one for one in (results, timings) if one is not None and source in one), None)
        known = given.groupby("backbone")[source].agg(how) if given is not None else pd.Series(dtype=float)
        table[column] = table["backbone"].map(known).astype("Int64" if column == "parameters" else "float64")
    columns = ["backbone", "status", "changes"]
    rows = (pd.DataFrame() if results is None else results).reindex(columns=columns, fill_value="")
    changes = dict(zip(rows["backbone"], rows["changes"], strict=True))
    table["changes"] = [changes.get(name, "") for name in table["backbone"]]
    failed = rows.loc[rows["status"] == "failed", "backbone"].value_counts()
    of_nets = trials[trials["backbone"].isin(table.loc[table["kind"] == "backbone", "backbone"])]
    planned = len(set(of_nets.drop(columns="backbone").itertuples(index=False)))
    table["flags"] = _flags(table, planned, "" if comparable else "not compared: there is no column sample", failed)
    return table[[*_COLUMNS]].rename(columns={"value": metric})


def _flags(table: pd.DataFrame, planned: int, uncompared: str, failed: pd.Series) -> list[str]:
    ranked, most = table.loc[table["rank"].notna(), "backbone"].tolist(), int(table["images"].max())
    flags = []
    for row in table.to_dict("records"):
        notes = {
            row["reason"]: True,
            uncompared: True,
            f"not testable against the others, {row['untested']}": row["untested"] and not row["reason"],
            f"{row['images']:,} of {most:,} images": row["images"] < most,
            f"incomplete: {row['trials']} of {planned} trials": row["kind"] == "backbone" and row["trials"] < planned,
            f"{failed.get(row['backbone'])} failed": row["backbone"] in failed,
            f"best of {len(ranked)} on this side: its value is optimistic": ranked[1:] and row["backbone"] == ranked[0],
        }
        flags.append("; ".join(note for note, applies in notes.items() if note and applies))
    return flags
