"""Model cards: what a reader has to know of one trained net, in the order of TRIPOD+AI, unknown things named as such.

Items are numbered as in TRIPOD+AI (Collins et al., BMJ 2024;385:e078378); what CLAIM (Tejani et al., Radiology:
Artificial Intelligence 2024;6(4):e240300) asks of work on images besides has a section of its own.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pandas as pd

from leukemia_dl.benchmark.stored import StoredRun, read_run
from leukemia_dl.errors import LeukemiaDLError, StoreError, UnknownNameError, unknown_name_error
from leukemia_dl.evaluation import class_names_of, evaluate, group_table
from leukemia_dl.models.registry import get_backbone
from leukemia_dl.plugins import DISTRIBUTION, installed_version
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.reporting import pages
from leukemia_dl.reporting.style import ends_of

__all__ = ["CARDS", "model_card", "write_model_cards"]

CARDS = "cards"
_log = logging.getLogger(__name__)
_OF_ANY_CLASSES = ("accuracy", "loss", "balanced_accuracy", "auroc", "auprc", "brier", "ece")
_METRICS = (*_OF_ANY_CLASSES, "sensitivity", "specificity", "calibration_slope", "calibration_intercept")


def write_model_cards(store: str | Path) -> list[Path]:
    """Write a card for each trained net of a `store`, its folder, into cards/ there, and return their paths.

    Raises:
        StoreError: If the folder is no store, or cannot be written.
    """
    run = read_run(store)
    folder, paths = run.store.root / CARDS, []
    if folder.is_symlink():
        raise StoreError(f"{folder} leads out of the store, and is not written to. Delete that link.")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror or error}.") from error
    for name in _trained(run):
        try:
            text = _card(run, name)
        except (LeukemiaDLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            _log.warning("No card for %s: %s: %s", name, type(error).__name__, error)  # the others have theirs
            continue
        paths.append(run.store.write_text(f"{CARDS}/{name}.md", text))
    return paths


def model_card(store: str | Path, trial: str) -> str:
    """Return the card of one trained net, in Markdown.

    Args:
        store: The folder of its benchmark.
        trial: Name of its folder below trials/, as in the column `trial` of `Benchmark.results`.

    Raises:
        StoreError: If the folder is no store.
        UnknownNameError: If it holds no such net.
    """
    run = read_run(store)
    if trial not in _trained(run):
        raise unknown_name_error("trained net", trial, _trained(run))
    return _card(run, trial)


def _trained(run: StoredRun) -> list[str]:
    results = run.results
    done = set(results.loc[results["status"] == "ok", "trial"]) if "trial" in results else set()
    nets = run.grid[(run.grid["kind"] == "backbone") & run.grid["trial"].isin(done)]
    return [str(name) for name in nets["trial"]]


def _pipeline(steps: Any) -> Any:
    """Return a pipeline in words; one with a step that is not known here as it is stored."""
    if steps is None:
        return "unknown"
    try:
        return pages.Raw(str(Pipeline.from_dict(steps)))
    except UnknownNameError:
        return str(steps)


def _card(run: StoredRun, trial: str) -> str:
    results, settings = run.results, run.settings
    (row,) = pages.plain_rows(results[(results["trial"] == trial) & (results["tta"] != "8 symmetries")])
    own = run.predictions[(run.predictions["trial"] == trial) & (run.predictions["kind"] == "backbone")]
    test = own[own["side"] == "test"]
    context = {
        "row": row,
        "trial": pages.Raw(trial),
        "dataset": settings["dataset"],
        "classes": [(name, int((test["label"] == name).sum())) for name in run.class_names],
        # Of a file only its name, since a card is sent to others.
        "recipe": {
            name: re.split(r"[/\\]", value)[-1] if isinstance(value, str) else value
            for name, value in settings["recipe"].items()
            if name != "name"
        },
        "pipeline": _pipeline(settings["pipeline"].get(str(row["image_size"]))),
        "backbone": _backbone(str(row["backbone"])),
        "metrics": _metrics(own),
        "unit": "images, taken as independent" if own["group"].isna().any() else "groups of patients",
        "worst": _worst_groups(own),
        "timing": pages.plain_rows(run.timings[run.timings["trial"] == trial])[0],
        "has_model": run.store.has_model(trial),
        "version": installed_version(DISTRIBUTION),
    }
    return pages.render_markdown("model_card.md", context)


def _backbone(name: str) -> dict[str, Any]:
    """Return what its plugin says of a backbone, if it is still there."""
    try:
        spec = get_backbone(name)
    except LeukemiaDLError:
        return {}
    return {"licence": spec.licence, "reference": spec.reference, "title": spec.name}


def _metrics(own: pd.DataFrame) -> list[dict[str, Any]]:
    found = evaluate(own, metrics=_METRICS if len(class_names_of(own)) == 2 else _OF_ANY_CLASSES)
    low, high = ends_of(found)
    return [
        {"name": row["metric"], "value": row["value"], "low": row[low], "high": row[high], "why": row["reason"],
         "known": not pd.isna(row[low])}
        for row in found.to_dict("records")
    ]  # fmt: skip


def _worst_groups(own: pd.DataFrame) -> list[dict[str, Any]]:
    """Return accuracies of the three groups of patients on which it is lowest; none if groups are not known."""
    table = group_table(own).head(3) if own["group"].notna().all() else pd.DataFrame()
    return [row | {"accuracy": 1 - row["error_share"]} for row in pages.plain_rows(table)]
