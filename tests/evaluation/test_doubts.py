"""Labels that out-of-fold predictions doubt: planted errors on synthetic cells, values by hand, and patients."""

import sys

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from leukemia_dl.datasets.synthetic import SyntheticCohort, draw_cell, draw_cohort
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import label_doubts

cleanlab = pytest.importorskip("cleanlab")


def features(image):
    """Return the size of a cell, its mean colour and the coarseness of its chromatin at four scales."""
    mask, grey = image.any(axis=-1), image.mean(axis=-1)
    inner = ndimage.binary_erosion(mask, iterations=4)
    bands = [ndimage.gaussian_filter(grey, s) - ndimage.gaussian_filter(grey, 1.6 * s) for s in (0.5, 1, 2, 4)]
    return [np.log(mask.sum()), *image[mask].mean(axis=0), *(np.log(band[inner].std() + 1e-3) for band in bands)]


@pytest.fixture(scope="module")
def cells():
    """Return synthetic cells that show their class: in a data set up to a quarter of a class are ambiguous."""
    cohort = draw_cohort(SyntheticCohort(subjects=60))
    cohort = cohort[~cohort["ambiguous"] & cohort["label"].notna()].reset_index(drop=True)
    found = np.array([features(draw_cell(row, 0)[::2, ::2]) for row in cohort.to_dict("records")])
    return cohort, found


def out_of_fold(cohort, found, labels):
    model = make_pipeline(StandardScaler(), LogisticRegression())
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    how = {"groups": cohort["subject"], "cv": folds, "method": "predict_proba"}
    values = cross_val_predict(model, found, labels, **how)
    names = np.where(labels == 1, "all", "hem")
    frame = pd.DataFrame({"sample": cohort["sample"], "subject": cohort["subject"], "label": names, "side": "test"})
    return frame.assign(probability_hem=values[:, 0], probability_all=values[:, 1])


def test_planted_errors_are_at_the_head_of_the_ranking(cells):
    """Five percent of wrong labels: at least 60 % of them are among the first five percent."""
    cohort, found = cells
    right, shares = (cohort["label"] == "all").to_numpy().astype(int), []
    for seed in range(6):
        planted = np.random.default_rng(seed).choice(len(right), round(0.05 * len(right)), replace=False)
        labels = right.copy()
        labels[planted] ^= 1
        table = label_doubts(out_of_fold(cohort, found, labels))
        assert len(table) == len(cohort)
        assert table["quality"].is_monotonic_increasing
        first = set(table["sample"][: len(planted)])
        shares.append(len(first & set(cohort["sample"].iloc[planted])) / len(planted))
        assert table.loc[table["doubtful"], "label"].ne(table.loc[table["doubtful"], "likely"]).all()
    assert np.mean(shares) >= 0.6, shares


def frame_of(rows):
    columns = ["sample", "subject", "label", "probability_a", "probability_b", "probability_c"]
    return pd.DataFrame(rows, columns=columns).assign(backbone="net", side="test")


ROWS = [
    *((f"a{i}", f"p{i % 3}", "a", 0.9, 0.1, 0.0) for i in range(12)),
    *((f"b{i}", f"q{i % 3}", "b", 0.2, 0.8, 0.0) for i in range(12)),
    ("wrong", "q0", "b", 0.99, 0.01, 0.0),
]


def test_nets_are_averaged_and_patients_summed():
    one, two = frame_of(ROWS).assign(seed=0), frame_of(ROWS).assign(seed=1)
    two.loc[two["sample"] == "wrong", ["probability_a", "probability_b"]] = 0.95, 0.05
    baseline = frame_of(ROWS).assign(backbone="majority", kind="baseline", seed=0, probability_a=0.0, probability_b=1.0)
    frame = pd.concat([one.assign(kind="backbone"), two.assign(kind="backbone"), baseline], ignore_index=True)
    table = label_doubts(frame)
    assert table.iloc[0].drop("quality").to_dict() == {
        "sample": "wrong", "subject": "q0", "label": "b", "likely": "a", "doubtful": True, "nets": 2,
    }  # fmt: skip
    assert table["quality"].iloc[0] == pytest.approx(0.03)  # class c, of which there is no image, takes no part
    absent = label_doubts(frame_of([*ROWS, ("absent", "q1", "b", 0.3, 0.1, 0.6)])).set_index("sample").loc["absent"]
    assert (absent["likely"], absent["quality"]) == ("a", pytest.approx(0.25))
    assert table["doubtful"].sum() == 1
    patients = label_doubts(frame, unit="patient")
    assert patients.iloc[0][["subject", "images", "doubtful"]].tolist() == ["q0", 5, 1]
    assert patients["share"].iloc[0] == pytest.approx(1 / 5)
    assert patients["images"].sum() == 25
    quality = pd.Series([0.03] + [0.8] * 4).mean()
    assert patients["quality"].iloc[0] == pytest.approx(quality)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda f: f[f["label"] == "a"], DataError, "one class only"),
        (lambda f: f.drop(columns="sample"), DataError, "column sample"),
        (lambda f: f.assign(side="val"), DataError, "no predictions of the side 'test'"),
        (lambda f: f.drop(columns="label"), DataError, "no column label"),
        (lambda f: f.assign(kind="baseline"), DataError, "no predictions"),
        (lambda f: f.assign(probability_a=f["probability_a"].where(f.index > 0)), DataError, "must be finite"),
        (lambda f: pd.concat([f, f.iloc[[3]]]), DataError, "several predictions of sample 'a3'"),
        (lambda f: f.assign(subject=f["subject"].where(f.index > 0)), DataError, "1 of 25 predictions have no subject"),
    ],
)
def test_frames_that_give_no_doubts_are_refused(change, error, says):
    with pytest.raises(error, match=says):
        label_doubts(change(frame_of(ROWS)))


def test_patients_must_be_known_and_units_exist():
    with pytest.raises(DataError, match="Nothing is known of patients"):
        label_doubts(frame_of(ROWS).drop(columns="subject"), unit="patient")
    with pytest.raises(SettingsError, match="unit must be one of"):
        label_doubts(frame_of(ROWS), unit="cell")


def test_without_cleanlab_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(SettingsError, match=r"pip install 'leukemia-dl\[doubts\]'"):
        label_doubts(frame_of(ROWS))
