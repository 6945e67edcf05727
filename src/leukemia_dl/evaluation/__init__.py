"""Predictions -> numbers. Pure numpy and scikit-learn; imports `errors` only and knows nothing of images or training.

Input is class indices and probabilities, wherever they come from.
"""

from leukemia_dl.evaluation.metrics import METRICS, score

__all__ = ["METRICS", "score"]
