"""What the predictions of a run say, per protocol: intervals, ranks, comparisons in words, and the worst errors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from leukemia_dl.benchmark.stored import StoredRun
from leukemia_dl.datasets.splits import GROUP_DISJOINT
from leukemia_dl.errors import DataError, LeukemiaDLError, UnknownNameError
from leukemia_dl.evaluation import compare, error_list, evaluate, inflation, leaderboard

__all__ = ["METRIC", "Answers", "answers_of", "inflation_of", "worst_errors"]

METRIC = "accuracy"
_INTERVALS = ("accuracy", "loss", "balanced_accuracy", "weighted_f1", "auroc", "auprc", "brier", "ece")


@dataclass(frozen=True, eq=False)
class Answers:
    """What is known under one protocol.

    Attributes:
        protocol: Its name.
        apart: Whether it keeps patients apart; None if nothing is known of them.
        asked: Names of the backbones and floors of which there should be trials.
        inapplicable: Names of the baselines that these images do not allow, such as `cell_size` without single cells.
        predictions: Its part of the prediction frame.
        intervals: `evaluate`; empty if there is nothing to evaluate.
        leaderboard: Likewise.
        comparisons: `compare`; empty with fewer than two rows.
        problem: Why there is nothing to evaluate; "" otherwise.
    """

    protocol: str
    apart: bool | None
    asked: list[str]
    inapplicable: set[str]
    predictions: pd.DataFrame
    intervals: pd.DataFrame = field(default_factory=pd.DataFrame)
    leaderboard: pd.DataFrame = field(default_factory=pd.DataFrame)
    comparisons: pd.DataFrame = field(default_factory=pd.DataFrame)
    problem: str = ""


def answers_of(run: StoredRun, areas: dict[str, float] | None = None) -> list[Answers]:
    """Return what a run says under each of its protocols.

    Args:
        run: The run.
        areas: Of the cell in each sample, in pixels of the file; they become the column `cell_area`.
    """
    predictions, results = run.predictions, run.results
    if areas and len(predictions):
        predictions = predictions.assign(cell_area=predictions["sample"].map(areas).astype(float))
    found = []
    for name in dict.fromkeys(run.grid["protocol"]):
        part = predictions[predictions["protocol"] == name] if len(predictions) else predictions
        rows = results[results["protocol"] == name] if "protocol" in results else results
        apart = None
        if len(rows) and rows["groups_test"].notna().all():
            apart = all(GROUP_DISJOINT in str(said).split("; ") for said in rows["guarantees"])
        asked = list(dict.fromkeys(run.grid.loc[run.grid["protocol"] == name, "backbone"]))
        inapplicable = set(rows.loc[rows["status"] == "not_applicable", "backbone"]) if len(rows) else set()
        found.append(_answers(run, Answers(str(name), apart, asked, inapplicable, part), rows))
    return found


def _answers(run: StoredRun, blank: Answers, results: pd.DataFrame) -> Answers:
    part = blank.predictions
    if part.empty:
        return replace(blank, problem="no trial was finished")
    trials = set(results["trial"])
    timings = run.timings[run.timings["trial"].isin(trials)]
    try:
        table = leaderboard(part, METRIC, results=results, timings=timings)
        intervals = evaluate(part, metrics=_INTERVALS)
        pairs = compare(part, METRIC) if len(table) > 1 else pd.DataFrame()
    except LeukemiaDLError as error:
        return replace(blank, problem=" ".join(str(error).split()))
    intervals = intervals.assign(protocol=blank.protocol)
    return replace(blank, intervals=intervals, leaderboard=table, comparisons=pairs)


def inflation_of(answers: list[Answers]) -> pd.DataFrame:
    """Return what the one protocol that leaks adds to the one that does not; no rows where they are not such two."""
    known = [one.apart for one in answers]
    if sorted(map(str, known)) != ["False", "True"] or any(one.predictions.empty for one in answers):
        return pd.DataFrame()
    honest, leaky = sorted(answers, key=lambda one: not one.apart)
    try:
        return inflation(pd.concat([honest.predictions, leaky.predictions]), honest.protocol, leaky.protocol)
    except (DataError, UnknownNameError):  # trials of one of them only were finished
        return pd.DataFrame()


def worst_errors(answers: Answers, count: int) -> pd.DataFrame:
    """Return the images that most of the fitted nets get wrong, the surest errors first among equals.

    Returns:
        `sample, label, subject, group, wrong` (fitted nets that are wrong), `nets` (that have predicted it),
        `predicted` (the wrong class that is said most often), `times` (by how many), `confidence` (their mean
        probability of it).
    """
    columns = ["sample", "label", "subject", "group", "wrong", "nets", "predicted", "times", "confidence"]
    nets = answers.predictions
    nets = nets[(nets["kind"] == "backbone") & (nets["side"] == "test")] if len(nets) else nets
    if nets.empty or answers.problem:
        return pd.DataFrame(columns=columns)
    wrong = error_list(nets)
    if wrong.empty:
        return pd.DataFrame(columns=columns)
    by_sample = wrong.groupby("sample", sort=False)
    table = by_sample[["label", "subject", "group"]].first()
    table["wrong"] = by_sample.size()
    table["nets"] = nets.groupby("sample").size()
    said = wrong.groupby(["sample", "predicted"], sort=False)["confidence"].agg(["size", "mean"]).reset_index()
    first = said.sort_values(["size", "mean"], ascending=False, kind="stable").drop_duplicates("sample")
    table[["predicted", "times", "confidence"]] = first.set_index("sample")[["predicted", "size", "mean"]]
    table["share"] = np.round(table["wrong"] / table["nets"], 12)
    order = table.sort_values(["share", "wrong", "confidence"], ascending=False, kind="stable")
    return order.head(count).reset_index()[columns]
