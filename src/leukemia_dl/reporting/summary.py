"""The findings of a run under each protocol: intervals, ranks, comparisons, their sentences, and the worst errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from leukemia_dl.benchmark.run_files import StoredRun
from leukemia_dl.datasets.splits import GROUP_DISJOINT
from leukemia_dl.errors import DataError, LeukemiaDLError, UnknownNameError
from leukemia_dl.evaluation import compare, error_list, evaluate, inflation, leaderboard
from leukemia_dl.text import counted, listed

__all__ = ["METRIC", "ProtocolSummary", "inflation_of", "summaries_of", "worst_errors"]

METRIC = "accuracy"
_Row = Mapping[Any, Any]
_INTERVALS = ("accuracy", "loss", "balanced_accuracy", "weighted_f1", "auroc", "auprc", "brier", "ece")


@dataclass(frozen=True, eq=False)
class ProtocolSummary:
    """The findings under one protocol; tables are empty without predictions, and `problem` says why."""

    protocol: str
    keeps_patients_apart: bool | None  # None if the patients are not known
    planned: list[str]  # backbones and baselines of which there should be trials
    inapplicable: set[str]  # baselines that these images do not allow, such as `cell_size` without single cells
    predictions: pd.DataFrame
    intervals: pd.DataFrame = field(default_factory=pd.DataFrame)
    leaderboard: pd.DataFrame = field(default_factory=pd.DataFrame)
    comparisons: pd.DataFrame = field(default_factory=pd.DataFrame)
    problem: str = ""

    def sentences(self) -> list[str]:
        """Return the findings in a few sentences."""
        if self.problem:
            return [f"Nothing can be said: {self.problem}."]
        rows = self.leaderboard.to_dict("records")
        nets = [row for row in rows if row["kind"] == "backbone"]
        first = self.leaderboard["rank"].min()
        best = [row for row in nets if row["rank"] == first]
        found = _untested([row for row in nets if pd.isna(row["rank"])])
        if best:
            found.append(f"Highest accuracy of a net on the test side: {best[0]['backbone']}, {_value(best[0])}.")
        if best[1:]:
            found.append(f"Not significantly different from it: {listed([row['backbone'] for row in best[1:]])}.")
        without = sorted(set(self.planned) - {row["backbone"] for row in rows})
        found += [f"Not applicable to these images: {name}." for name in without if name in self.inapplicable]
        if unfinished := [name for name in without if name not in self.inapplicable]:
            found.append(f"Without any finished trial: {listed(unfinished)}.")
        found += [self._beside(row, nets) for row in rows if row["kind"] == "baseline"]
        if self.keeps_patients_apart is None:
            found.append("The patients are not known: whether they are on both sides cannot be checked.")
        elif not self.keeps_patients_apart:
            found.append("This protocol lets patients be on both sides: its figures are too high for new patients.")
        return found

    def _beside(self, baseline: _Row, nets: Sequence[_Row]) -> str:
        """Return a sentence that compares nets with a baseline, without a verdict if no pair could be tested."""
        name, verdict = baseline["backbone"], ""
        pairs = [{name, row["backbone"]} for row in nets]
        tested = [{row["first"], row["second"]} for row in self.comparisons.to_dict("records") if row["p"] >= 0]
        if better := [row["backbone"] for row in nets if name in row["better_than"].split(", ")]:
            verdict = f"; better than it at the 5% level, each pair by itself: {listed(better)}"
        elif any(pair in tested for pair in pairs):
            verdict = "; no net is significantly better"
        return f"The baseline {name} reaches {_value(baseline)}{verdict}."


def summaries_of(run: StoredRun, areas: Mapping[str, float] | None = None) -> list[ProtocolSummary]:
    """Return the findings of a run under each of its protocols; `areas` of cells become the column `cell_area`."""
    predictions = run.predictions
    if areas and len(predictions):
        predictions = predictions.assign(cell_area=predictions["sample"].map(dict(areas)).astype(float))
    return [_summary(run, predictions, str(protocol)) for protocol in dict.fromkeys(run.grid["protocol"])]


def _summary(run: StoredRun, predictions: pd.DataFrame, protocol: str) -> ProtocolSummary:
    part, results = (
        frame[frame["protocol"] == protocol] if len(frame) else frame for frame in (predictions, run.results)
    )
    apart, inapplicable = None, set()
    if len(results):
        inapplicable = set(results.loc[results["status"] == "not_applicable", "backbone"])
        if results["groups_test"].notna().all():
            apart = all(GROUP_DISJOINT in str(kept).split("; ") for kept in results["guarantees"])
    planned = list(dict.fromkeys(run.grid.loc[run.grid["protocol"] == protocol, "backbone"]))
    summary = ProtocolSummary(protocol, apart, planned, inapplicable, part)
    if part.empty:
        return replace(summary, problem="no trial was finished")
    try:
        timings = run.timings[run.timings["trial"].isin(results["trial"])]
        board = leaderboard(part, METRIC, results=results, timings=timings)
        intervals = evaluate(part, metrics=_INTERVALS).assign(protocol=protocol)
        pairs = compare(part, METRIC) if len(board) > 1 else pd.DataFrame()
    except LeukemiaDLError as error:
        return replace(summary, problem=" ".join(str(error).split()))
    return replace(summary, intervals=intervals, leaderboard=board, comparisons=pairs)


def inflation_of(summaries: list[ProtocolSummary]) -> pd.DataFrame:
    """Return the inflation by the only protocol that leaks of two; no rows for other protocols."""
    known = [one.keeps_patients_apart for one in summaries]
    if sorted(map(str, known)) != ["False", "True"] or any(one.predictions.empty for one in summaries):
        return pd.DataFrame()
    honest, leaky = sorted(summaries, key=lambda one: not one.keeps_patients_apart)
    try:
        return inflation(pd.concat([honest.predictions, leaky.predictions]), honest.protocol, leaky.protocol)
    except (DataError, UnknownNameError):  # trials of one of them only were finished
        return pd.DataFrame()


def worst_errors(summary: ProtocolSummary, count: int) -> pd.DataFrame:
    """Return the images that most of the fitted nets get wrong, the most confident errors first among equals.

    Columns are `sample, label, subject, group, wrong` (fitted nets that are wrong), `nets` (that have predicted it),
    `predicted` (the most frequent wrong class), `times` (by how many), `confidence` (their mean probability of it).
    """
    nets = summary.predictions
    nets = nets[(nets["kind"] == "backbone") & (nets["side"] == "test")] if len(nets) else nets
    wrong = error_list(nets) if len(nets) and not summary.problem else pd.DataFrame()
    if wrong.empty:
        return pd.DataFrame()
    by_sample = wrong.groupby("sample", sort=False)
    table = by_sample[["label", "subject", "group"]].first()
    table["wrong"] = by_sample.size()
    table["nets"] = nets.groupby("sample").size()
    called = wrong.groupby(["sample", "predicted"], sort=False)["confidence"].agg(["size", "mean"]).reset_index()
    first = called.sort_values(["size", "mean"], ascending=False, kind="stable").drop_duplicates("sample")
    table[["predicted", "times", "confidence"]] = first.set_index("sample")[["predicted", "size", "mean"]]
    table["share"] = np.round(table["wrong"] / table["nets"], 12)
    order = table.sort_values(["share", "wrong", "confidence"], ascending=False, kind="stable")
    return order.head(count).reset_index().drop(columns="share")


def _untested(nets: Sequence[_Row]) -> list[str]:
    """Return a sentence on the nets that cannot be tested for each reason, the first of their flags."""
    found = []
    for reason in dict.fromkeys(row["flags"].split("; ")[0] for row in nets):
        same = [row for row in nets if row["flags"].split("; ")[0] == reason]
        groups = [row["groups"] for row in same if pd.notna(row["groups"])]
        of = f" ({counted(max(groups), 'group')} of patients in all)" if len(groups) == len(same) else ""
        values = listed([f"{row['backbone']} {row[METRIC]:.3f}" for row in same])
        found.append(
            f"Not testable, {reason.removeprefix('not testable ')}{of}. Accuracy on the test side, without a rank or a "
            f"verdict: {values}."
        )
    return found


def _value(row: _Row) -> str:
    interval = f" (95% interval {row['low']:.3f} to {row['high']:.3f})" if row["low"] < row["high"] else ""
    return f"{row[METRIC]:.3f}{interval}"
