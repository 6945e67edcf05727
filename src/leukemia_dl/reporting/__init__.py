"""Figures, report pages and model cards of a benchmark. matplotlib is imported inside functions, without a window."""

from leukemia_dl.reporting.feature_plots import plot_explanations, plot_features
from leukemia_dl.reporting.plots import plot_comparison, plot_cost, plot_inflation, plot_learning_curves, plot_samples

from leukemia_dl.reporting.prediction_plots import (  # isort: skip
    plot_confusion, plot_errors_by_size, plot_net_benefit, plot_precision_recall, plot_reliability, plot_roc,
    plot_subjects,
)  # fmt: skip
from leukemia_dl.reporting.report import model_card, write_model_cards, write_pictures, write_report

__all__ = [
    "model_card", "plot_comparison", "plot_confusion", "plot_cost", "plot_errors_by_size",
    "plot_explanations", "plot_features",
    "plot_inflation", "plot_learning_curves", "plot_net_benefit", "plot_precision_recall", "plot_reliability",
    "plot_roc", "plot_samples", "plot_subjects", "write_model_cards", "write_pictures", "write_report",
]  # fmt: skip
