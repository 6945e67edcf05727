"""Model cards: the facts on one trained net, in the order of TRIPOD+AI, with unknown items named as such.

Items are numbered as in TRIPOD+AI (Collins et al., BMJ 2024;385:e078378); the further questions of CLAIM (Tejani et
al., Radiology: Artificial Intelligence 2024;6(4):e240300) on images have a section of their own.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pandas as pd

from leukemia_dl.benchmark.run_files import StoredRun, read_run
from leukemia_dl.errors import SettingsError, StoreError, UnknownNameError, unknown_name_error
from leukemia_dl.evaluation import class_names_of, evaluate, group_table
from leukemia_dl.models.registry import get_backbone
from leukemia_dl.plugins import DISTRIBUTION, installed_version
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.reporting import render
from leukemia_dl.reporting.figures_of_run import folder_of

__all__ = ["model_card", "write_model_cards"]

_log = logging.getLogger(__name__)
_OF_ANY_CLASSES = ("accuracy", "loss", "balanced_accuracy", "auroc", "auprc", "brier", "ece")
_METRICS = (*_OF_ANY_CLASSES, "sensitivity", "specificity", "calibration_slope", "calibration_intercept")


def write_model_cards(store: str | Path) -> list[Path]:
    """Write a card for each trained net of a `store`, its folder, into cards/ there, and return their paths.

    Raises:
        StoreError: If the folder is no store, or cannot be written.
    """
    run = read_run(store)
    folder = folder_of(run) / "cards"
    if folder.is_symlink():
        raise StoreError(f"{folder} leads out of the store, and is not written to. Delete that link.")
    written = []
    for name in _trained(run):
        try:
            written.append(render.write(folder / f"{name}.md", _card(run, name)))
        except SettingsError as error:  # a step of preprocessing that this version does not know
            _log.warning("No card for %s: %s", name, error)
    return written


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


def _card(run: StoredRun, trial: str) -> str:
    results, settings = run.results, run.settings
    (row,) = render.rows_of(results[(results["trial"] == trial) & (results["tta"] != "8 symmetries")])
    own = run.predictions[(run.predictions["trial"] == trial) & (run.predictions["kind"] == "backbone")]
    test = own[own["side"] == "test"]
    metrics = evaluate(own, metrics=_METRICS if len(class_names_of(own)) == 2 else _OF_ANY_CLASSES)
    worst = group_table(own).head(3) if own["group"].notna().all() else pd.DataFrame()
    recipe = {name: value for name, value in settings["recipe"].items() if name != "name"}
    context = {
        "row": row,
        "trial": render.Code(trial),
        "dataset": settings["dataset"],
        "classes": [(name, int((test["label"] == name).sum())) for name in run.class_names],
        # Of a file only its name, since a card is sent to others.
        "recipe": {key: re.split(r"[/\\]", val)[-1] if isinstance(val, str) else val for key, val in recipe.items()},
        "pipeline": _pipeline(settings["pipeline"].get(str(row["image_size"]))),
        "backbone": _backbone(str(row["backbone"])),
        "metrics": render.rows_of(metrics),
        "unit": "images, taken as independent" if own["group"].isna().any() else "groups of patients",
        "worst": render.rows_of(worst),
        "timing": render.rows_of(run.timings[run.timings["trial"] == trial])[0],
        "has_model": run.store.has_model(trial),
        "version": installed_version(DISTRIBUTION),
    }
    return render.render_markdown("model_card.md", context)


def _pipeline(steps: Any) -> str:
    """Return a pipeline in words, or as it is stored if a step is not known here."""
    try:
        return render.Code(Pipeline.from_dict(steps))
    except UnknownNameError:
        return str(steps)


def _backbone(name: str) -> dict[str, Any]:
    """Return licence and reference of a backbone, if its plugin is still installed."""
    try:
        spec = get_backbone(name)
    except UnknownNameError:
        return {}
    return {"licence": spec.licence, "reference": spec.reference}
