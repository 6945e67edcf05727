"""The images of a report to look at: the worst errors, with maps of these, and labels that the predictions doubt."""

from functools import cache
from typing import Any

import pandas as pd

from leukemia_dl.benchmark.run_files import StoredRun
from leukemia_dl.datasets import Dataset
from leukemia_dl.errors import LeukemiaDLError
from leukemia_dl.evaluation import label_doubts
from leukemia_dl.evaluation.predictions import PREFIX, class_names_of
from leukemia_dl.models.reading import read_classifier
from leukemia_dl.progress import track
from leukemia_dl.reporting import render
from leukemia_dl.reporting.summary import ProtocolSummary, worst_errors

_SHOWN = 12


def errors_of(
    run: StoredRun, one: ProtocolSummary, dataset: Dataset | None, explain: bool, show: bool = False
) -> list[dict[str, Any]]:
    """Return the worst errors under a protocol with their images and, if `explain`, maps of the wrong predictions."""
    rows = _with_images(worst_errors(one, _SHOWN), dataset)
    if not explain or dataset is None or not rows:
        return rows
    nets, load = one.predictions, cache(lambda trial: read_classifier(run.store.folder(trial)))
    nets = nets[(nets["kind"] == "backbone") & (nets["side"] == "test")]
    for row in track(rows, len(rows), "Explaining errors", show):
        own = nets[nets["sample"] == row["sample"]].sort_values(PREFIX + row["predicted"], ascending=False)
        # By the net that is surest of the error, of those that make it.
        own = own[own[[PREFIX + name for name in class_names_of(own)]].idxmax(axis=1) == PREFIX + row["predicted"]]
        if trial := next(filter(run.store.has_model, own["trial"]), None):
            image = dataset.subset(dataset.table["sample"].eq(row["sample"]).to_numpy())
            made = load(trial).explain(image, classes=[row["predicted"]])
            row |= {"net": own.set_index("trial")["backbone"][trial], "map": render.thumbnail(render.overlays(made)[0])}
            row |= render.rows_of(made.checks[["inside", "random_weights"]])[0]
    return rows


def doubts_of(one: ProtocolSummary, dataset: Dataset | None) -> dict[str, Any]:
    """Return the labels under a protocol that are most doubtful, with images; or the reason why none are known."""
    if one.problem or not (one.predictions["kind"] == "backbone").any():
        return {}
    try:
        table = label_doubts(one.predictions)
    except LeukemiaDLError as error:
        return {"problem": render.one_line(error)}
    doubtful = table[table["doubtful"]]
    return {"images": len(table), "doubtful": len(doubtful), "rows": _with_images(doubtful.head(_SHOWN), dataset)}


def _with_images(table: pd.DataFrame, dataset: Dataset | None) -> list[dict[str, Any]]:
    rows = render.rows_of(table)
    at = {} if dataset is None else {sample: row for row, sample in enumerate(dataset.table["sample"])}
    for row in rows:
        row["image"] = render.thumbnail(dataset.decode(at[row["sample"]])) if dataset and row["sample"] in at else None
    return rows
