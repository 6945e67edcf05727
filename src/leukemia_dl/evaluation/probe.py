"""How well features predict a fact about the images, such as the patient or the site that they come from."""

import re
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.checks import whole_number
from leukemia_dl.errors import DataError
from leukemia_dl.evaluation.metrics import Floats, Ints
from leukemia_dl.evaluation.predictions import unit_column
from leukemia_dl.identity import is_unknown, name_key
from leukemia_dl.text import counted

_PATIENTS, _MOST_CLASSES = ("subject", "group"), 50


def probe(features: pd.DataFrame, column: str, *, folds: int = 5, seed: int = 0) -> pd.DataFrame:
    """Return how well logistic regression on standardised features predicts a column, by cross-validation, in one row.

    A column that is constant in each patient (site, fold, class) is predicted for whole patients that training has not
    seen, so that the patient is no clue. The patient, or a column that varies in patients, is predicted for other
    images of the same patients. Classes are weighted up to equal size. For more than 50, which take long, it is ridge
    regression. Of the images of one cell (`same_cell`) the first counts.

    Args:
        features: A row per image: `feature_0` and so on, `group` or `subject` (the patient), and other columns.
        column: The column to predict, such as "subject", "fold", "site" or "label".
        folds: Number of folds; values with fewer patients (or images) are left out, with a count in `reason`.
        seed: Of the folds.

    Returns:
        `column`, `split` ("patients" or "images"), `method`, `classes`, `images`, `groups` (NA: patients not known),
        `folds`, `accuracy`; `majority` (share of the most frequent value), `balanced_accuracy`, `chance` (one over the
        number of classes), and `reason` for missing or left out values.

    Raises:
        DataError: If there are no features or no such column, or features are not finite numbers.
    """
    folds = whole_number("folds", folds, 2)
    cells = features.get("same_cell", pd.Series(pd.NA, features.index))
    copies = cells.duplicated() & cells.notna()
    features = features[~copies]
    x, values = feature_values(features, column), features[column].reset_index(drop=True)
    of_patient, name = column in _PATIENTS, unit_column(features)
    patients = features[name].reset_index(drop=True).map(_patient) if name else pd.Series(range(len(x)))
    values = values.map(_patient) if of_patient else values.astype(object).map(str, na_action="ignore")
    known = values.notna() & patients.notna()
    varied = values[known].groupby(patients[known]).nunique() > 1
    by_image = name is None or of_patient or bool(varied.any())
    counts = patients[known].groupby(values[known]).agg("size" if by_image else "nunique")
    used = known & values.isin(counts.index[counts >= folds])
    few, gone = int((counts < folds).sum()), int((known & ~used).sum())
    several = f"{column} varies in {varied.sum():,} of {len(varied):,} patients, who are on both sides of each split"
    left = f"{few:,} of {len(counts):,} values ({counted(gone, 'image')}) left out: fewer than {folds} "
    notes = {
        "patients are not known: images are taken as independent": not name and not of_patient,
        several: not of_patient and varied.any(),
        left + ("images" if by_image else "patients"): few,
        f"{counted(int(copies.sum()), 'further image')} of a cell left out": copies.any(),
        f"{counted(int((~known).sum()), 'image')} without {column} or patient left out": not known.all(),
    }
    x, y, unit = x[used], pd.factorize(values[used], sort=True)[0], pd.factorize(patients[used], sort=True)[0]
    classes, groups = len(set(y)), len(set(unit)) if name else pd.NA
    row: dict[str, Any] = {"column": column, "split": "images" if by_image else "patients", "method": None}
    row |= {"classes": classes, "images": len(y), "groups": groups, "folds": folds}
    row |= dict.fromkeys(("accuracy", "majority", "balanced_accuracy", "chance"), np.nan)
    if classes >= 2:
        predicted, row["method"] = _predicted(x, y, None if by_image else unit, folds, seed)
        right, total = np.bincount(y, predicted == y), np.bincount(y)
        row |= {"accuracy": right.sum() / len(y), "majority": total.max() / len(y), "chance": 1 / classes}
        row["balanced_accuracy"] = (right / total).mean()
    found = [f"{counted(classes, 'value')} of {column} to predict, two are needed"] * (classes < 2)
    row["reason"] = "; ".join(found + [note for note, holds in notes.items() if holds])
    return pd.DataFrame([row]).astype({"groups": "Int64"})


def feature_values(features: pd.DataFrame, column: str) -> Floats:
    """Return the features (n, d) of a frame; DataError if there are none, or no `column` besides, or they are NaN."""
    names = [name for name in features if re.fullmatch(r"feature_\d+", str(name))]
    if not names or column not in features or column in names:
        there = ", ".join(str(name) for name in features if name not in names) or "none"
        raise DataError(f"Features need columns feature_0 and so on ({len(names)} found), and {column!r} of: {there}.")
    x: Floats = features[names].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    with np.errstate(over="ignore"):
        finite = np.isfinite(x.astype(np.float32)).all(axis=1)
    if bad := int((~finite).sum()):
        raise DataError(f"{bad:,} of {len(x):,} images have features that are NaN, infinite or no numbers. Drop them.")
    return x


def _patient(value: Any) -> str | None:
    return None if is_unknown(value) else name_key(str(value))


def _predicted(x: Floats, y: Ints, units: Ints | None, folds: int, seed: int) -> tuple[NDArray[Any], str]:
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    many = y.max() >= _MOST_CLASSES
    linear = (RidgeClassifier if many else LogisticRegression)(class_weight="balanced", max_iter=2_000)
    drawn = (StratifiedKFold if units is None else StratifiedGroupKFold)(folds, shuffle=True, random_state=seed)
    predicted = cross_val_predict(make_pipeline(StandardScaler(), linear), x, y, groups=units, cv=drawn)
    return predicted, f"ridge regression (more than {_MOST_CLASSES} classes)" if many else "logistic regression"
