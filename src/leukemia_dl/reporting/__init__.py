"""Numbers -> pictures: from the result, prediction and history frames of a benchmark; never from training.

matplotlib is imported inside functions, and figures are drawn without a window.
"""

from leukemia_dl.reporting.pictures import write_pictures
from leukemia_dl.reporting.plots import plot_comparison, plot_inflation, plot_learning_curves, plot_samples

__all__ = ["plot_comparison", "plot_inflation", "plot_learning_curves", "plot_samples", "write_pictures"]
