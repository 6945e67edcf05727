"""Metrics, intervals and comparisons of a frame of predictions, whichever program made them."""

from leukemia_dl.evaluation.calibration import (
    accuracy_at_coverage,
    apply_temperature,
    calibrate,
    fit_temperature,
    operating_points,
)  # fmt: skip
from leukemia_dl.evaluation.comparisons import compare, inflation
from leukemia_dl.evaluation.curves import precision_recall_curves, reliability_curves, roc_curves
from leukemia_dl.evaluation.evaluate import drop_repeated_cells, error_list, evaluate, evaluate_groups, group_table
from leukemia_dl.evaluation.leaderboard import leaderboard
from leukemia_dl.evaluation.metrics import METRICS, score
from leukemia_dl.evaluation.predictions import class_names_of
from leukemia_dl.evaluation.published import published_results

__all__ = [
    "METRICS", "accuracy_at_coverage", "apply_temperature", "calibrate", "class_names_of", "compare",
    "drop_repeated_cells", "error_list", "evaluate", "evaluate_groups", "fit_temperature", "group_table", "inflation",
    "leaderboard", "operating_points", "precision_recall_curves", "published_results", "reliability_curves",
    "roc_curves", "score",
]  # fmt: skip
