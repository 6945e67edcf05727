"""The report: one HTML file that needs nothing else, made from a store."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from leukemia_dl.benchmark.run_files import StoredRun, read_run
from leukemia_dl.benchmark.store import read_file
from leukemia_dl.datasets import Dataset
from leukemia_dl.datasets.cache import user_path
from leukemia_dl.datasets.sources.synthetic import synthetic_folder
from leukemia_dl.errors import DataError, LeukemiaDLError, StoreError, UnknownNameError
from leukemia_dl.evaluation import published_results
from leukemia_dl.plugins import DISTRIBUTION, installed_version
from leukemia_dl.progress import track
from leukemia_dl.reporting import render
from leukemia_dl.reporting.figures_of_run import figures_of, folder_of
from leukemia_dl.reporting.summary import ProtocolSummary, summaries_of, worst_errors

__all__ = ["write_report"]

_MOST_FIGURES, _ERRORS, _FINDINGS = 20, 12, 25
_COLUMNS = ("accuracy", "loss", "balanced_accuracy", "auroc")
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
    """Write a report of a store, finished or not: one HTML file, which opens from disk and fetches nothing.

    Trials that are missing are named. Sample images, the worst errors, the audit and sizes of cells need the data set;
    without it the report says so.

    Args:
        store: The folder of a store, or one folder of its grids/.
        dataset: The data set; None to load it as the store's settings say.
        root: Where the data set is on this machine, if it has moved.
        path: The file to write; None for report.html in the store, or beside the grid if the store holds other trials.
        audit: Audit every image of the data set, if the store has no audit of it yet.
        show_progress: A bar on a terminal, plain lines elsewhere, both on standard error.

    Returns:
        The path of the file.

    Raises:
        StoreError: If the folder is no store, or the file cannot be written.
        DataError: If the data set is not at `root`, or is another one.
    """
    run = read_run(store)
    target = folder_of(run) / "report.html" if path is None else user_path(path)
    if not target.parent.is_dir():
        raise StoreError(f"{path} cannot be written: there is no folder {target.parent}. Make it first.")
    try:
        dataset, why = _dataset_of(run, dataset, root), ""
    except (LeukemiaDLError, OSError, TypeError, ValueError) as error:
        if root is not None:
            raise DataError(f"The data set of the store cannot be read at {root}: {error}") from error
        dataset, why = None, " ".join(str(error).split())
        _log.warning("The report has no images: %s", why)
    found = _audit(run, dataset, show_progress) if audit else None
    return render.write(target, _page(run, dataset, render.without_folders(why), found, show_progress))


def _dataset_of(run: StoredRun, dataset: Dataset | None, root: str | Path | None) -> Dataset:
    """Return the labelled data set of a run. Only existing files are read: nothing is drawn or fetched."""
    facts = run.settings["dataset"]
    name, options, place = str(facts["name"]), facts.get("options", {}), root or facts.get("root")
    if place is None and name == "synthetic" and "options" in facts:
        place = synthetic_folder(**{key: options[key] for key in options if key not in ("workers", "show_progress")})
    if dataset is None and place is None:
        raise DataError("The data set was not loaded by its name from a folder, so that it cannot be loaded again.")
    if dataset is None:
        there = user_path(place) / ("synthetic.json" if name == "synthetic" else "")
        if not there.exists():
            raise DataError(f"The data set {name!r} is not at the place that the store names.")
        dataset = Dataset.load(name, root=place, **options)
    dataset = dataset.subset(dataset.labels >= 0)
    if dataset.fingerprint != facts["fingerprint"]:
        raise DataError(
            f"It has other contents, labels or groups than the data set of the store: {len(dataset):,} labelled "
            f"images of {', '.join(dataset.class_names)} where {facts.get('samples')} of "
            f"{', '.join(run.class_names)} are expected. If images or classes were left out after loading, pass "
            "the same data set: write_report(store, dataset=dataset)."
        )
    return dataset


def _audit(run: StoredRun, dataset: Dataset | None, show: bool) -> dict[str, Any] | None:
    """Return the audit of a data set, which the store keeps, since it takes as long as reading every image."""
    path, fingerprint = run.store.root / "audit.json", run.settings["dataset"]["fingerprint"]
    try:
        known = json.loads(read_file(path, 2**27))
        if known["fingerprint"] == fingerprint and {"findings", "counts"} <= known["audit"].keys():
            return dict(known["audit"])
    except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError):
        pass  # absent or damaged
    if dataset is None:
        return None
    found = dataset.audit(show_progress=show).to_dict()
    try:
        render.write(path, json.dumps({"fingerprint": fingerprint, "audit": found}) + "\n")
    except StoreError as error:  # the store of a colleague
        _log.warning("The audit is not kept: %s", error)
    return found


def _page(run: StoredRun, dataset: Dataset | None, why: str, found: dict[str, Any] | None, show: bool) -> str:
    # Areas of cells in pixels, of images that show a single one.
    areas = {
        row["sample"]: float(row["foreground"]) * row["height"] * row["width"]
        for row in (found or {"images": []})["images"]
        if row["single_cell"] and row["foreground"] is not None and row["height"] is not None
    }
    summaries = summaries_of(run, areas)
    figures, left_out = _figures(run, summaries, dataset, show)
    grid, facts, results = run.grid, run.settings["dataset"], run.results
    own = results[results["tta"] != "8 symmetries"] if len(results) else results
    records = {row["trial"]: row for row in render.rows_of(own)}
    context = {
        "made": time.strftime("%Y-%m-%d"),
        "version": installed_version(DISTRIBUTION),
        "dataset": facts,
        "class_names": run.class_names,
        "no_dataset": why,
        "nets": list(dict.fromkeys(grid.loc[grid["kind"] == "backbone", "backbone"])),
        "baselines": list(dict.fromkeys(grid.loc[grid["kind"] == "baseline", "backbone"])),
        "recipe": run.settings["recipe"]["name"],
        "folds": grid[["protocol", "fold"]].drop_duplicates()["protocol"].value_counts(sort=False).to_dict(),
        "seeds": grid["seed"].dropna().nunique(),
        "summaries": summaries,
        "counts": _counts(run, dataset, found),
        "audit": _findings(found),
        "labelled": len(run.samples),
        "splits": render.rows_of(results.drop_duplicates(["protocol", "fold"])) if len(results) else [],
        "boards": [_board(one, figures) for one in summaries],
        "figures": [figure for figure in figures if not figure["protocol"]],
        "left_out": left_out,
        "errors": [_errors(one, dataset) for one in summaries],
        "trials": [_trial(row, records.get(row["trial"])) for row in render.rows_of(grid)],
        "others": run.others,
        "environments": _environments(run.timings),
        "settings": render.settings_without_folders(run.text),
        "published": _published(str(facts["name"])),
    }
    return render.render_html("report.html", context)


def _figures(
    run: StoredRun, summaries: list[ProtocolSummary], dataset: Dataset | None, show: bool
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Return the figures as data addresses, and the figures that are too many or cannot be drawn, with the reason."""
    # Figures of all protocols first, if there are too many.
    planned = sorted(figures_of(run, summaries, dataset), key=lambda one: one.protocol != "")
    kept, figures = planned[:_MOST_FIGURES], []
    left_out = [{"kind": one.kind, "protocol": one.protocol, "why": ""} for one in planned[_MOST_FIGURES:]]
    for one in track(kept, len(kept), "Drawing figures", show):
        try:
            figures.append(vars(one) | {"image": render.svg(one.draw())})
        except LeukemiaDLError as error:
            _log.warning("%s: %s: %s", one.kind, type(error).__name__, error)
            left_out.append({"kind": one.kind, "protocol": one.protocol, "why": " ".join(str(error).split())})
    return figures, left_out


def _counts(run: StoredRun, dataset: Dataset | None, found: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return how many images, subjects and groups each class has."""
    if found is not None:
        return [row for row in found["counts"] if row["of"] in ("total", "class") and row["name"] != "unlabelled"]
    counts = {"images": len(run.samples)}
    if run.samples["subject"].notna().any():
        counts["subjects"] = run.samples["subject"].nunique()
    if dataset is not None:
        counts |= dict(zip(run.class_names, np.bincount(dataset.labels).tolist(), strict=False))
    return [{"name": name, "count": count, "declared": None} for name, count in counts.items()]


def _findings(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return how many findings of each kind an audit has, and the first of them."""
    if found is None:
        return None
    kinds = pd.DataFrame(found["findings"], columns=["kind", "severity", "sample", "other", "detail"])
    counted = kinds.groupby(["severity", "kind"], sort=False).size().reset_index(name="count").to_dict("records")
    first = kinds.head(_FINDINGS).fillna("")
    first["detail"] = [render.without_folders(str(detail)) for detail in first["detail"]]
    return {
        "counted": counted,
        "findings": first.to_dict("records"),
        "all": len(kinds),
        "not_checked": found.get("not_checked", []),
    }


def _board(one: ProtocolSummary, figures: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the leaderboard of a protocol, with intervals of further metrics, comparisons and figures."""
    intervals = {(row["backbone"], row["metric"]): row for row in render.rows_of(one.intervals)}
    rows = render.rows_of(one.leaderboard)
    for row in rows:
        row["cells"] = [intervals[row["backbone"], metric] for metric in _COLUMNS]
        for cell in row["cells"]:
            # Shares of classes are held fixed, so that an interval of the majority's accuracy would have no width.
            cell["spread"] = cell["low"] is not None and cell["low"] < cell["high"]
    return {
        "protocol": one.protocol,
        "rows": rows,
        "problem": one.problem,
        "columns": _COLUMNS,
        "pairs": render.rows_of(one.comparisons),
        "filled": {name for row in rows for name in row if row[name] not in (None, "")},
        "intervals": any(cell["spread"] for row in rows for cell in row["cells"]),
        "figures": [figure for figure in figures if figure["protocol"] == one.protocol],
    }


def _errors(one: ProtocolSummary, dataset: Dataset | None) -> dict[str, Any]:
    """Return the images that most nets get wrong, with thumbnails."""
    rows = render.rows_of(worst_errors(one, _ERRORS))
    places = {} if dataset is None else {name: place for place, name in enumerate(dataset.table["sample"])}
    for row in rows:
        place = places.get(row["sample"])
        row["image"] = None if dataset is None or place is None else render.thumbnail(dataset.decode(place))
    tested = len(one.predictions) > 0 and bool((one.predictions["kind"] == "backbone").any())
    return {"protocol": one.protocol, "rows": rows, "tested": tested}


def _trial(row: dict[str, Any], record: dict[str, Any] | None) -> dict[str, Any]:
    """Return a trial of the grid with its outcome."""
    record = record or {"status": "missing"}
    message = ": ".join(filter(None, (record.get("exception"), record.get("message"))))
    outcome = {name: record.get(name) for name in ("status", "accuracy", "loss")}
    return row | outcome | {"message": render.without_folders(message)}


def _environments(timings: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row per kind of machine and set of versions that trials ran on."""
    names = ["machine", "device_name", "python", "versions"]
    if timings.empty:
        return []
    known = timings.reindex(columns=names)
    nets = known[known["device_name"].notna()]  # baselines run wherever the program does
    known = (nets if len(nets) else known).astype(object).fillna("")
    return render.rows_of(known.groupby(names, sort=False).size().reset_index(name="trials"))


def _published(name: str) -> list[dict[str, Any]]:
    try:
        return render.rows_of(published_results(name))
    except UnknownNameError:
        return []
