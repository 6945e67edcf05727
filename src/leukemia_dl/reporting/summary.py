"""The findings of a run under each protocol: intervals, ranks, comparisons, their sentences, and the worst errors."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from leukemia_dl.benchmark.run_files import StoredRun
from leukemia_dl.datasets.splits import GROUP_DISJOINT
from leukemia_dl.errors import DataError, LeukemiaDLError, UnknownNameError
from leukemia_dl.evaluation import compare, ensembles, error_list, evaluate, inflation, leaderboard
from leukemia_dl.text import counted, listed

_Row = Mapping[Any, Any]
_METRICS = ("accuracy", "loss", "balanced_accuracy", "auroc")


@dataclass(frozen=True, eq=False)
class ProtocolSummary:
    """The findings under one protocol; tables are empty without predictions, and `problem` says why."""

    protocol: str
    keeps_patients_apart: bool | None  # None if the patients are not known
    absent: list[str]  # sentences on backbones and baselines without a finished trial
    predictions: pd.DataFrame
    intervals: pd.DataFrame
    leaderboard: pd.DataFrame
    comparisons: pd.DataFrame
    classes: pd.DataFrame  # recall, precision and F1 of each class, where there are more than two
    patients: pd.DataFrame  # metrics of patients, where these are known
    metric: str  # by which it ranks and compares
    problem: str

    def sentences(self) -> list[str]:
        """Return the findings in a few sentences."""
        if self.problem:
            return [f"Nothing can be said: {self.problem}."]
        rows = self.leaderboard.to_dict("records")
        nets = [row for row in rows if row["kind"] == "backbone"]
        ranked = [row for row in nets if pd.notna(row["rank"])]
        best = ranked[:1]
        found = _untested([row for row in nets if pd.isna(row["rank"])], self.metric)
        if best:
            highest = f"Best {label_of(self.metric)} of a net on the test side"
            found.append(f"{highest}: {best[0]['backbone']}, {_value(best[0], self.metric)}.")
            worse = best[0]["better_than"].split(", ")
            if equal := [row["backbone"] for row in ranked[1:] if row["backbone"] not in worse]:
                found.append(f"Not significantly different from it: {listed(equal)}.")
            chosen = f"Ranks are by {label_of(self.metric)}, chosen before the run"
            found.append(f"{chosen}; intervals and tests are of {best[0]['estimand']}.")
        found += self.absent
        tested = [{row["first"], row["second"]} for row in self.comparisons.to_dict("records") if row["p"] >= 0]
        for name, value in ((row["backbone"], _value(row, self.metric)) for row in rows if row["kind"] == "baseline"):
            better = [net["backbone"] for net in nets if name in net["better_than"].split(", ")]
            verdict = f"; better than it at the 5% level, each pair by itself: {listed(better)}" if better else ""
            if not better and any({name, net["backbone"]} in tested for net in nets):
                verdict = "; no net is significantly better"
            found.append(f"The baseline {name} reaches {value}{verdict}.")
        if self.keeps_patients_apart is None:
            found.append("The patients are not known: whether they are on both sides cannot be checked.")
        elif not self.keeps_patients_apart:
            found.append("This protocol lets patients be on both sides: its figures are too high for new patients.")
        return found


def _untested(nets: Sequence[_Row], metric: str) -> list[str]:
    """Return a sentence on the nets that cannot be tested for each reason, the first of their flags."""
    by_reason: dict[str, list[_Row]] = {}
    for row in nets:
        by_reason.setdefault(row["flags"].split("; ")[0].removeprefix("not testable "), []).append(row)
    found = []
    for reason, rows in by_reason.items():
        groups = max((row["groups"] for row in rows if pd.notna(row["groups"])), default=0)
        of = f" ({counted(groups, 'group')} of patients in all)" if groups else ""
        values = listed([f"{row['backbone']} {row[metric]:.3f}" for row in rows])
        without = f"{label_of(metric)} on the test side, without a rank or a verdict"
        found.append(f"Not testable, {reason}{of}. {without[:1].upper()}{without[1:]}: {values}.")
    return found


def label_of(metric: str) -> str:
    """Return the name of a metric in a sentence."""
    return metric.replace("_", " ").replace("auroc", "AUROC").replace("auprc", "AUPRC")


def _value(row: _Row, metric: str) -> str:
    interval = f" (95% interval {row['low']:.3f} to {row['high']:.3f})" if row["low"] < row["high"] else ""
    return f"{row[metric]:.3f}{interval}"


def summaries_of(run: StoredRun, areas: Mapping[str, float] | None = None) -> list[ProtocolSummary]:
    """Return the findings of a run under each of its protocols; `areas` of cells become the column `cell_area`."""
    predictions = run.predictions
    if areas and len(predictions):
        predictions = predictions.assign(cell_area=predictions["sample"].map(dict(areas)).astype(float))
    return [_summary(run, predictions, str(protocol)) for protocol in run.grid["protocol"].unique()]


def _summary(run: StoredRun, predictions: pd.DataFrame, protocol: str) -> ProtocolSummary:
    both, apart, inapplicable = (predictions, run.results), None, set[str]()
    part, results = (frame[frame["protocol"] == protocol] if len(frame) else frame for frame in both)
    if len(results):
        inapplicable = set(results.loc[results["status"] == "not_applicable", "backbone"])
        if results["groups_test"].notna().all():
            apart = all(GROUP_DISJOINT in str(kept).split("; ") for kept in results["guarantees"])
    planned = set(run.grid.loc[run.grid["protocol"] == protocol, "backbone"])
    without = sorted(planned - set(part["backbone"] if len(part) else ()))
    absent = [f"Not applicable to these images: {name}." for name in without if name in inapplicable]
    if unfinished := [name for name in without if name not in inapplicable]:
        absent.append(f"Without any finished trial: {listed(unfinished)}.")
    board = intervals = pairs = classes = patients = pd.DataFrame()
    metric = str(run.settings["benchmark"].get("primary_metric", "accuracy"))
    problem = "" if len(part) else "no trial was finished"
    try:
        if not problem:
            timings = run.timings[run.timings["trial"].isin(results["trial"])]
            joined = pd.concat([part, ensembles(part)], ignore_index=True)
            board = leaderboard(joined, metric, results=results, timings=timings)
            shown = list(dict.fromkeys([*_METRICS, metric]))
            intervals = evaluate(joined, metrics=shown).assign(protocol=protocol)
            pairs = compare(joined, metric) if len(board) > 1 else pairs
            classes = evaluate(part, by="class") if len(run.class_names) > 2 else classes
            if board["unit"].eq("group").all():
                with contextlib.suppress(DataError):  # all patients have images of several classes
                    patients = evaluate(part, unit="patient", metrics=("accuracy", "balanced_accuracy", "auroc"))
    except LeukemiaDLError as error:
        problem = " ".join(str(error).split())
    tables = (part, intervals, board, pairs, classes, patients)
    return ProtocolSummary(protocol, apart, absent, *tables, metric, problem)


def inflation_of(summaries: Sequence[ProtocolSummary]) -> pd.DataFrame:
    """Return the inflation by the only protocol that leaks of two; no rows for other protocols."""
    by_kind = {one.keeps_patients_apart: one for one in summaries}
    if len(summaries) != 2 or by_kind.keys() != {True, False}:
        return pd.DataFrame()
    honest, leaky = by_kind[True], by_kind[False]
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
        return wrong
    by_class = wrong.groupby(["sample", "predicted"], sort=False)["confidence"].agg(times="size", confidence="mean")
    called = by_class.reset_index().sort_values(["times", "confidence"], ascending=False, kind="stable")
    table = wrong.groupby("sample", sort=False)[["label", "subject", "group"]].first()
    table = table.join(called.drop_duplicates("sample").set_index("sample"))
    table = table.assign(wrong=wrong.groupby("sample").size(), nets=nets.groupby("sample").size())
    table["share"] = table["wrong"] / table["nets"]
    order = table.sort_values(["share", "wrong", "confidence"], ascending=False, kind="stable")
    return order.head(count).reset_index()
