"""The report: one HTML file that needs nothing else, made from a store."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import UndefinedError

from leukemia_dl.benchmark.files import read_file
from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.stored import StoredRun, read_run
from leukemia_dl.datasets import Dataset
from leukemia_dl.datasets.cache import user_path
from leukemia_dl.datasets.sources.synthetic import synthetic_folder
from leukemia_dl.errors import DataError, LeukemiaDLError, StoreError, UnknownNameError
from leukemia_dl.evaluation import published_results
from leukemia_dl.evaluation.comparisons import UNCORRECTED
from leukemia_dl.plugins import DISTRIBUTION, installed_version
from leukemia_dl.progress import track
from leukemia_dl.reporting import pages
from leukemia_dl.reporting.answers import METRIC, Answers, answers_of, worst_errors
from leukemia_dl.reporting.figures import drawings
from leukemia_dl.reporting.style import ends_of

__all__ = ["REPORT_FILE", "write_report"]

REPORT_FILE, _AUDIT_FILE = "report.html", "audit.json"
_MOST_FIGURES, _ERRORS, _FINDINGS = 20, 12, 25
_AUDIT_BYTES = 128 * 2**20
_COLUMNS = ("accuracy", "loss", "balanced_accuracy", "auroc")
# What records and files that no benchmark wrote may lead to.
_ODD = (ArithmeticError, AttributeError, LookupError, TypeError, UndefinedError, ValueError)
_log = logging.getLogger(__name__)


def write_report(
    store: str | Path,
    *,
    dataset: Dataset | None = None,
    root: str | Path | None = None,
    path: str | Path | None = None,
    audit: bool = True,
    show_progress: bool = True,
) -> Path:
    """Write a report of what a store holds: one HTML file, which opens from disk and asks nobody for anything.

    It is made of the store's own files, also of one that is not finished: trials that are missing are named. Sample
    images, the worst errors, the audit and sizes of cells need the data set; where it cannot be had the report says so.

    Args:
        store: The folder.
        dataset: The data set; None to load it as the store's settings say.
        root: Where it lies here, if it has moved; an error if it is not there.
        path: The file to write; None for report.html in the store.
        audit: Look at every image of the data set, if the store has no audit of it yet.
        show_progress: A bar on a terminal, plain lines elsewhere, both on standard error.

    Returns:
        The path of the file.

    Raises:
        StoreError: If the folder is no store, holds what no benchmark writes, or the file cannot be written.
        DataError: If the data set is not at `root`, or is another one.
    """
    target = None if path is None else user_path(path)
    run = read_run(store)
    if target is not None and not target.parent.is_dir():
        raise StoreError(f"{path} cannot be written: there is no folder {target.parent}. Make it first.")
    dataset, why = _dataset_of(run, dataset, root)
    found = _audit(run, dataset, show_progress) if audit else None
    try:
        text = _page(run, dataset, why, found, show_progress)
    except _ODD as error:
        raise StoreError(
            f"{run.store.root} holds what no benchmark writes: {type(error).__name__}: {error}."
        ) from error
    target = run.store.root / REPORT_FILE if target is None else target
    return Store(target.parent).write_text(target.name, text)


def _dataset_of(run: StoredRun, dataset: Dataset | None, root: str | Path | None) -> tuple[Dataset | None, str]:
    """Return the labelled data set of a run, or None and why it cannot be had, without names of folders."""
    said = run.settings["dataset"]
    place, options = root or said.get("root"), dict(said.get("options", {}))
    try:
        if dataset is None and place is None and said["name"] == "synthetic" and "options" in said:
            cohort = {name: value for name, value in options.items() if name not in ("workers", "show_progress")}
            place = synthetic_folder(**cohort)
        if dataset is None and place is None:
            return None, "the data set was not loaded by its name from a folder, so that it cannot be loaded again"
        # A report reads existing files only. It draws and fetches nothing that settings of a store ask for.
        if dataset is None and not _is_there(str(said["name"]), user_path(place)):
            raise DataError(f"The data set {said['name']!r} is not at {place}.")
        if dataset is None:
            dataset = Dataset.load(str(said["name"]), root=place, **options)
        dataset = dataset.subset(dataset.labels >= 0)
    except (LeukemiaDLError, OSError, TypeError, ValueError) as error:
        if root is not None:
            raise DataError(f"The data set of the store cannot be read at {root}: {error}") from error
        _log.warning("The report has no images: %s", " ".join(str(error).split()))
        return None, "they are not, or not readable, where the run has read them"
    if dataset.fingerprint != said["fingerprint"] and root is not None:
        raise DataError(
            f"The data set at {root} has other contents, labels or groups than the one of the store: "
            f"{len(dataset):,} labelled images of {', '.join(dataset.class_names)} where {said.get('samples')} of "
            f"{', '.join(run.class_names)} are expected. If images or classes were left out after loading, pass the "
            "same data set: write_report(store, dataset=dataset)."
        )
    if dataset.fingerprint != said["fingerprint"]:
        _log.warning("The report has no images: those of %s are not the ones that the trials were run on", place)
        return None, "those that are there have other contents, labels or groups"
    return dataset, ""


def _is_there(name: str, place: Path) -> bool:
    """Return whether a data set that is drawn has been drawn at a place, and any other whether there is something."""
    return (place / "synthetic.json").is_file() if name == "synthetic" else place.exists()


def _audit(run: StoredRun, dataset: Dataset | None, show: bool) -> dict[str, Any] | None:
    """Return the audit of a data set, which the store keeps: it takes as long as reading every image."""
    path, fingerprint = run.store.root / _AUDIT_FILE, run.settings["dataset"]["fingerprint"]
    try:
        known = json.loads(read_file(path, _AUDIT_BYTES))
        if known["fingerprint"] == fingerprint:
            found = dict(known["audit"])
            _areas(found), _audit_summary(found), [row["name"] for row in found["counts"]]
            return found
    except (OSError, RecursionError, *_ODD):
        pass
    if dataset is None:
        return None
    found = dataset.audit(show_progress=show).to_dict()
    # Names of files that are not UTF-8 stay what they are behind a backslash.
    text = json.dumps({"fingerprint": fingerprint, "audit": found}, ensure_ascii=True)
    try:
        run.store.write_text(_AUDIT_FILE, text + "\n")
    except StoreError as error:
        _log.warning("The audit is not kept: %s", error)
    return found


def _areas(found: dict[str, Any] | None) -> dict[str, float]:
    """Return the area of the cell in pixels, of images that show a single one."""
    if found is None:
        return {}
    return {
        row["sample"]: float(row["foreground"]) * row["height"] * row["width"]
        for row in found["images"]
        if row["single_cell"] and row["foreground"] is not None and row["height"] is not None
    }


def _page(run: StoredRun, dataset: Dataset | None, why: str, found: dict[str, Any] | None, show: bool) -> str:
    answers = answers_of(run, _areas(found))
    planned = list(drawings(run, answers, dataset))
    # Those of all protocols first, if there are too many.
    kept = sorted(planned, key=lambda one: one.protocol != "")[:_MOST_FIGURES]
    figures, left_out = [], [one.heading + f" ({one.protocol})" for one in planned if one not in kept]
    for one in track([one for one in planned if one in kept], len(kept), "Drawing figures", show):
        try:
            figures.append(vars(one) | {"name": pages.anchor(one.name), "image": pages.svg(one.draw())})
        except (LeukemiaDLError, *_ODD) as error:  # one odd record should not cost the page
            _log.warning("%s: %s: %s", one.heading, type(error).__name__, error)
            left_out.append(f"{one.heading}, which could not be drawn: {' '.join(str(error).split())}")
    said = run.settings["dataset"]
    context = {
        "title": said["title"],
        "synthetic": bool(said.get("synthetic")),
        "made": time.strftime("%Y-%m-%d"),
        "version": installed_version(DISTRIBUTION),
        "dataset": said,
        "class_names": run.class_names,
        "no_dataset": why,
        "question": _question(run),
        "answers": [_summary(one) for one in answers],
        "counts": _counts(run, dataset, found),
        "audit": _audit_summary(found),
        "splits": _splits(run.results, len(run.samples)),
        "boards": [_board(one) for one in answers],
        "figures": [figure for figure in figures if not figure["protocol"]],
        "left_out": left_out,
        "errors": [_errors(one, dataset) for one in answers],
        "trials": list(_trials(run, show)),
        "others": run.others,
        "environments": _environments(run.timings),
        "settings": pages.settings_without_paths(run.text),
        "published": _published(str(said["name"])),
    }
    for board in context["boards"]:
        board["figures"] = [figure for figure in figures if figure["protocol"] == board["protocol"]]
    return pages.render("report.html", context)


def _question(run: StoredRun) -> str:
    nets = list(dict.fromkeys(run.grid.loc[run.grid["kind"] == "backbone", "backbone"]))
    floors = list(dict.fromkeys(run.grid.loc[run.grid["kind"] == "baseline", "backbone"]))
    text = f"How well {'does' if len(nets) == 1 else 'do'} {_listed(nets)} tell {_listed(run.class_names)} apart"
    text += f", and is that better than {_listed(floors)}, which need no net" if floors else ""
    folds = run.grid[["protocol", "fold"]].drop_duplicates().groupby("protocol", sort=False).size()
    splits = ", ".join(f"{_count(int(count), 'split')} by {name}" for name, count in folds.items())
    seeds = _count(run.grid["seed"].dropna().nunique(), "seed")
    return f"{text}? Recipe {run.settings['recipe']['name']}; {splits}; {seeds}."


def _summary(one: Answers) -> dict[str, Any]:
    """Return what was found under a protocol, in a few sentences."""
    board, sentences, ends = one.leaderboard, list[str](), ends_of(one.leaderboard)
    if one.problem:
        return {"protocol": one.protocol, "apart": one.apart, "sentences": [f"Nothing can be said: {one.problem}."]}
    nets = board[board["kind"] == "backbone"]
    ranked, unranked = nets[nets["rank"].notna()], nets[nets["rank"].isna()]
    for why, rows in unranked.groupby(unranked["flags"].str.split("; ").str[0], sort=False):
        of = "" if rows["groups"].isna().any() else f" ({_count(rows['groups'].max(), 'group')} of patients in all)"
        values = [f"{row['backbone']} {row[METRIC]:.3f}" for row in rows.to_dict("records")]
        sentences.append(
            f"Not testable, {why.removeprefix('not testable ')}{of}. Accuracy on the test side, without a rank or a "
            f"verdict: {_listed(values)}."
        )
    if len(ranked):
        first = ranked[ranked["rank"] == ranked["rank"].min()]
        best = first.to_dict("records")[0]
        sentences.append(f"Highest accuracy of a net on the test side: {best['backbone']}, {_value(best, ends)}.")
        if len(first) > 1:
            sentences.append(f"Not significantly different from it: {_listed(first['backbone'].tolist()[1:])}.")
    without = sorted(set(one.asked) - set(board["backbone"]))
    sentences += [f"Not applicable to these images: {name}." for name in without if name in one.inapplicable]
    if unfinished := [name for name in without if name not in one.inapplicable]:
        sentences.append(f"Without any finished trial: {_listed(unfinished)}.")
    sentences += [_beside(floor, nets, one, ends) for floor in board[board["kind"] == "baseline"].to_dict("records")]
    if one.apart is None:
        sentences.append("Nothing is known of patients: whether they are on both sides cannot be checked.")
    elif not one.apart:
        sentences.append("This protocol lets patients be on both sides: its figures are too high for new patients.")
    return {"protocol": one.protocol, "apart": one.apart, "sentences": sentences}


def _beside(floor: Mapping[Any, Any], nets: pd.DataFrame, one: Answers, ends: tuple[str, str]) -> str:
    """Return a sentence that compares nets with a baseline, without a verdict if no pair could be tested."""
    text = f"The floor {floor['backbone']} reaches {_value(floor, ends)}"
    names = {floor["backbone"], *nets["backbone"]}
    tested = [{row["first"], row["second"]} for row in one.comparisons.to_dict("records") if not np.isnan(row["p"])]
    beaten = zip(nets["backbone"], nets["better_than"], strict=True)
    if over := [net for net, worse in beaten if floor["backbone"] in worse.split(", ")]:
        text += f"; better than it at the 5% level, each pair by itself: {_listed(over)}"
    elif any(floor["backbone"] in pair <= names for pair in tested):
        text += "; no net is significantly better"
    return f"{text}."


def _counts(run: StoredRun, dataset: Dataset | None, found: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return how many images, subjects and groups each class has."""
    if found is not None:
        return [row for row in found["counts"] if row["of"] in ("total", "class") and row["name"] != "unlabelled"]
    rows = [{"name": "images", "count": len(run.samples), "declared": None}]
    if run.samples["subject"].notna().any():
        rows.append({"name": "subjects", "count": run.samples["subject"].nunique(), "declared": None})
    for name, count in zip(*np.unique(dataset.labels, return_counts=True), strict=True) if dataset is not None else ():
        rows.append({"name": run.class_names[name], "count": int(count), "declared": None})
    return rows


def _audit_summary(found: dict[str, Any] | None) -> dict[str, Any] | None:
    if found is None:
        return None
    kinds = pd.DataFrame(found["findings"], columns=["kind", "severity", "sample", "other", "detail"])
    counted = kinds.groupby(["severity", "kind"], sort=False).size().reset_index(name="count").to_dict("records")
    shown = kinds.head(_FINDINGS).fillna("").to_dict("records")
    for row in shown:
        row["detail"] = pages.without_paths(str(row["detail"]))
    return {"counted": counted, "findings": shown, "all": len(kinds), "not_checked": found.get("not_checked", [])}


def _splits(results: pd.DataFrame, labelled: int) -> list[dict[str, Any]]:
    """Return a row per split, as its trials say, with the images that it does not use."""
    if "protocol" not in results:
        return []
    table = results.drop_duplicates(["protocol", "fold"]).copy()
    table["n_unused"] = labelled - table[["n_train", "n_val", "n_test", "dropped"]].fillna(0).sum(axis=1)
    names = [name for name in table if str(name).startswith(("n_", "groups_", "leaked_"))]
    names += ["protocol", "fold", "dropped", "guarantees", "flags"]
    return pages.plain_rows(table[names])


def _board(one: Answers) -> dict[str, Any]:
    """Return the leaderboard of a protocol, with intervals of further metrics, and the comparisons in words."""
    rows: list[dict[str, Any]] = []
    spans = {(row["backbone"], row["metric"]): row for row in one.intervals.to_dict("records")}
    for row in pages.plain_rows(one.leaderboard):
        cells = [_interval(spans[row["backbone"], metric], ends_of(one.intervals)) for metric in _COLUMNS]
        rows.append(row | {"cells": cells})
    sentences: dict[str, list[str]] = {"confirmatory": [], "descriptive": []}
    untested: dict[str, list[str]] = {}
    for pair in one.comparisons.to_dict("records"):
        if np.isnan(pair["p"]):
            untested.setdefault(pair["reason"], []).append(f"{pair['first']} and {pair['second']}")
        else:
            sentences[pair["role"]].append(pair["sentence"].replace(UNCORRECTED, ""))
    if len(untested) == 1 and not any(sentences.values()):
        untested = {reason: ["every pair of rows"] for reason in untested}
    optional = ("rank", "parameters", "fit_seconds", "images_per_second", "better_than", "flags")
    return {
        "protocol": one.protocol, "rows": rows, "problem": one.problem, "columns": _COLUMNS, "untested": untested,
        "units": "groups of patients" if "low" in one.leaderboard else "images, taken as independent",
        "filled": {name for name in optional if any(row[name] not in (None, "") for row in rows)},
        "spans": any(cell["low"] is not None for row in rows for cell in row["cells"]), **sentences,
    }  # fmt: skip


def _errors(one: Answers, dataset: Dataset | None) -> dict[str, Any]:
    """Return the images that most nets get wrong, with the images."""
    rows = pages.plain_rows(worst_errors(one, _ERRORS))
    place = {} if dataset is None else {name: row for row, name in enumerate(dataset.table["sample"])}
    for row in rows:
        row["image"] = None
        if dataset is not None and row["sample"] in place:
            try:
                row["image"] = pages.thumbnail(dataset.decode(place[row["sample"]]))
            except LeukemiaDLError as error:  # it was readable when the nets saw it
                _log.warning("%s", error)
    tested = len(one.predictions) > 0 and bool((one.predictions["kind"] == "backbone").any())
    return {"protocol": one.protocol, "rows": rows, "tested": tested}


def _trials(run: StoredRun, show: bool) -> Iterable[dict[str, Any]]:
    """Yield a row per trial of the grid, with its learning curve."""
    results = run.results[run.results["tta"] != "8 symmetries"] if len(run.results) else run.results
    known = results.set_index("trial") if len(results) else results
    curves = dict(list(run.histories.groupby("trial"))) if len(run.histories) else {}
    sketch = pages.Sketch()
    for row in track(pages.plain_rows(run.grid), len(run.grid), "Drawing trials", show):
        record = known.loc[row["trial"]] if len(results) and row["trial"] in known.index else None
        row |= {"status": "missing", "message": "", "accuracy": None, "loss": None, "curve": None}
        if record is not None:
            row["status"] = record["status"]
            row["message"] = pages.without_paths(": ".join(filter(None, (record["exception"], record["message"]))))
            row |= {name: None if pd.isna(record[name]) else float(record[name]) for name in ("accuracy", "loss")}
        if row["trial"] in curves:
            row["curve"] = sketch(curves[row["trial"]])
        yield row


def _environments(timings: pd.DataFrame) -> list[dict[str, Any]]:
    """Return where the trials ran: a row per kind of machine and set of versions."""
    names = ["machine", "device_name", "python", "versions"]
    if timings.empty:
        return []
    known = timings.reindex(columns=names)
    nets = known[known["device_name"].notna()]  # floors run wherever the program does
    known = (nets if len(nets) else known).astype(object)
    known = known.where(known.notna(), "")
    counted = known.groupby(names, sort=False).size().reset_index(name="trials")
    return pages.plain_rows(counted)


def _published(name: str) -> list[dict[str, Any]]:
    try:
        table = published_results(name)
    except UnknownNameError:
        return []
    parts = table.groupby(["protocol", "scored_on"], sort=False)
    return [{"protocol": p, "scored_on": on, "rows": rows.to_dict("records")} for (p, on), rows in parts]


def _interval(row: Mapping[Any, Any], ends: tuple[str, str]) -> dict[str, Any]:
    low, high = (float(row[end]) for end in ends)
    # Shares of classes are held, so that an interval of the majority's accuracy would have no width.
    ends_known = {"low": low, "high": high} if low < high else {"low": None, "high": None}
    return {"value": None if np.isnan(row["value"]) else float(row["value"])} | ends_known


def _value(row: Mapping[Any, Any], ends: tuple[str, str]) -> str:
    low, high = (row[end] for end in ends)
    return f"{row[METRIC]:.3f}" + (f" (95% interval {low:.3f} to {high:.3f})" if low < high else "")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else "".join(names)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
