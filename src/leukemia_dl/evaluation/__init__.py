"""Metrics, intervals and comparisons of a frame of predictions, whichever program made them."""

from leukemia_dl.evaluation.calibration import apply_temperature, calibrate, fit_temperature
from leukemia_dl.evaluation.comparisons import compare, inflation
from leukemia_dl.evaluation.curves import net_benefit, precision_recall_curves, reliability_curves, roc_curves
from leukemia_dl.evaluation.doubts import label_doubts
from leukemia_dl.evaluation.ensembles import ensembles
from leukemia_dl.evaluation.evaluate import drop_repeated_cells, error_list, evaluate, group_table
from leukemia_dl.evaluation.leaderboard import leaderboard
from leukemia_dl.evaluation.metrics import METRICS, score
from leukemia_dl.evaluation.operating_points import accuracy_at_coverage, conformal_sets, operating_points
from leukemia_dl.evaluation.patients import patient_predictions
from leukemia_dl.evaluation.planning import plan_study
from leukemia_dl.evaluation.predictions import class_names_of
from leukemia_dl.evaluation.probe import probe
from leukemia_dl.evaluation.published import published_results

__all__ = [
    "METRICS", "accuracy_at_coverage", "apply_temperature", "calibrate", "class_names_of", "compare", "conformal_sets",
    "drop_repeated_cells", "ensembles", "error_list", "evaluate", "fit_temperature", "group_table", "inflation",
    "label_doubts", "leaderboard", "net_benefit", "operating_points", "patient_predictions", "plan_study",
    "precision_recall_curves", "probe", "published_results", "reliability_curves", "roc_curves", "score",
]  # fmt: skip
