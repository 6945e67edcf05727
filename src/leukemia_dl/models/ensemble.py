"""Several trained nets as one: the mean of their probabilities."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from leukemia_dl.errors import SettingsError
from leukemia_dl.models.classifier import Classifier


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Trained nets of the same classes, which predicts the mean of their probabilities.

    A net must not have been trained on the images that it predicts: nets of all folds are for images from elsewhere.

    Attributes:
        classifiers: The nets, each with its preprocessing and temperature.

    Raises:
        SettingsError: On creation, if there are none, or their classes differ.
    """

    classifiers: tuple[Classifier, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "classifiers", tuple(self.classifiers))
        if len(kinds := {one.class_names for one in self.classifiers}) != 1:
            found = "; ".join(", ".join(names) for names in kinds) or "no classifier"
            raise SettingsError(f"An ensemble is of classifiers of the same classes. Received: {found}.")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes, in the order of the probabilities."""
        return self.classifiers[0].class_names

    def predict(self, images: Any, **how: Any) -> pd.DataFrame:
        """Return a row per image, as `Classifier.predict` does, by means over all nets, each of which reads the images.

        `images` and `how` are arguments of `Classifier.predict`; SettingsError for `abstain`, a limit of one net.
        """
        if how.get("abstain"):
            raise SettingsError("An ensemble has no limit to abstain by: each of its nets has its own.")
        frames = [one.predict(images, **how) for one in self.classifiers]
        columns = [f"probability_{name}" for name in self.class_names]
        mean = np.mean([frame[columns].to_numpy() for frame in frames], axis=0)
        best = np.nan_to_num(mean).argmax(axis=1)
        errors = np.max([frame["error"].to_numpy(object) for frame in frames], axis=0)  # of any net
        named = [None if error else self.class_names[i] for i, error in zip(best, errors, strict=True)]
        means = dict(zip(columns, mean.T, strict=True))
        return frames[0].assign(predicted=np.array(named, object), error=errors, **means)
