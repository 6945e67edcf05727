"""The images of a report to look at: the worst errors, with maps of these, and labels that the predictions doubt."""

from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd

from leukemia_dl.benchmark.run_files import StoredRun
from leukemia_dl.datasets import Dataset
from leukemia_dl.errors import LeukemiaDLError, SettingsError
from leukemia_dl.evaluation import label_doubts
from leukemia_dl.evaluation.predictions import PREFIX
from leukemia_dl.models import Classifier
from leukemia_dl.models.reading import read_classifier
from leukemia_dl.reporting import render
from leukemia_dl.reporting.summary import ProtocolSummary, worst_errors

_SHOWN = 12


def errors_of(run: StoredRun, one: ProtocolSummary, dataset: Dataset | None, explain: bool) -> list[dict[str, Any]]:
    """Return the worst errors under a protocol with their images and, if `explain`, maps of the wrong predictions."""
    rows = _with_images(worst_errors(one, _SHOWN), dataset)
    if not explain or dataset is None:
        return rows
    nets, by_trial = one.predictions, defaultdict[str, list[dict[str, Any]]](list)
    nets = nets[(nets["kind"] == "backbone") & (nets["side"] == "test")] if rows else nets
    for row in rows:  # by the net that is surest of its error
        own = nets[nets["sample"] == row["sample"]].sort_values(PREFIX + row["predicted"], ascending=False)
        if trial := next(filter(run.store.has_model, own["trial"]), None):
            by_trial[trial].append(row | {"net": own.loc[own["trial"] == trial, "backbone"].iloc[0]})
    found = dict[str, dict[str, Any]]()
    for trial, own in by_trial.items():
        found |= _explained(read_classifier(run.store.folder(trial)), own, dataset)
    return [found.get(row["sample"], row) for row in rows]


def _explained(classifier: Classifier, rows: list[dict[str, Any]], dataset: Dataset) -> dict[str, dict[str, Any]]:
    from matplotlib import colormaps

    chosen = dataset.subset(dataset.table["sample"].isin([row["sample"] for row in rows]).to_numpy())
    by_sample = {row["sample"]: row for row in rows}
    ordered = [by_sample[sample] for sample in chosen.table["sample"]]
    classes = [row["predicted"] for row in ordered]
    try:
        made = classifier.explain(chosen, "gradcam", classes)
    except SettingsError:  # a net without feature maps
        made = classifier.explain(chosen, "occlusion", classes)
    colours = 255 * colormaps["inferno"](made.maps)[..., :3]
    overlays = (0.45 * made.images + 0.55 * colours).astype(np.uint8)
    checks = render.rows_of(made.checks[["inside", "random_weights"]])
    parts = zip(ordered, overlays, checks, strict=True)
    return {row["sample"]: row | {"map": render.thumbnail(one)} | check for row, one, check in parts}


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
    samples = [] if dataset is None else dataset.table["sample"].tolist()
    for row in rows:
        there = dataset is not None and row["sample"] in samples
        row["image"] = render.thumbnail(dataset.decode(samples.index(row["sample"]))) if there and dataset else None
    return rows
