"""What features contain: known answers by construction, scikit-learn as the oracle, and what is left out and why."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import probe


def cohort(seed=0, sites=4, patients=40, per=10, dimensions=20, of_site=0.0, of_patient=0.0):
    """Return noise, plus a shift of each site along its own axis and a random shift of each patient."""
    random, site = np.random.default_rng(seed), np.arange(patients) % sites
    rows = np.repeat(np.arange(patients), per)
    x = random.normal(size=(len(rows), dimensions)) + of_patient * random.normal(size=(patients, dimensions))[rows]
    x[:, :sites] += of_site * np.eye(sites)[site[rows]]
    frame = pd.DataFrame(x, columns=[f"feature_{number}" for number in range(dimensions)])
    return frame.assign(subject=[f"P{row}" for row in rows], site=[f"S{number}" for number in site[rows]])


def row(frame, column, **how):
    (found,) = probe(frame, column, **how).to_dict("records")
    return found


def test_features_that_are_the_site_predict_it_for_new_patients():
    found = row(cohort(of_site=8), "site")
    assert found["balanced_accuracy"] > 0.99
    assert found["reason"] == ""
    facts = {"column": "site", "split": "patients", "method": "logistic regression", "classes": 4, "images": 400}
    facts |= {"groups": 40, "folds": 5, "majority": 0.25, "chance": 0.25}
    assert {name: found[name] for name in facts} == facts


def test_noise_is_near_chance():
    found = [row(cohort(seed, patients=20, per=4, dimensions=5), "site") for seed in range(60)]
    assert np.mean([one["balanced_accuracy"] for one in found]) == pytest.approx(0.25, abs=0.03)


def test_features_of_patients_say_nothing_of_the_site_of_new_patients():
    frames = [cohort(seed, of_patient=5, patients=24) for seed in range(8)]
    assert row(frames[0], "subject")["balanced_accuracy"] > 0.99
    grouped = [row(frame, "site") for frame in frames]
    assert np.mean([one["balanced_accuracy"] for one in grouped]) == pytest.approx(0.25, abs=0.1)
    # As if patients were not known: the same images, the patient is the clue.
    for frame in frames:
        alone = row(frame.drop(columns="subject"), "site")
        assert alone["split"] == "images"
        assert alone["balanced_accuracy"] > 0.9
        assert "patients are not known: images are taken as independent" in alone["reason"]
        assert pd.isna(alone["groups"])


def test_the_patient_is_predicted_for_other_images_of_the_same_patients():
    frame = cohort(of_patient=1, patients=12)
    found = row(frame, "subject")
    assert (found["split"], found["classes"], found["groups"]) == ("images", 12, 12)
    assert found["chance"] == pytest.approx(1 / 12)
    assert found["balanced_accuracy"] > 0.8
    noise = row(cohort(patients=12), "subject")
    assert noise["balanced_accuracy"] < 0.2
    joined = frame.assign(group=frame["subject"].map({f"P{number}": number // 2 for number in range(12)}))
    assert row(joined, "subject")["classes"] == 12
    assert row(joined, "group")["classes"] == 6


def test_a_column_that_varies_in_patients_is_predicted_for_other_images_of_them():
    """The share of a label differs between patients, and features identify the patient only."""
    frame, random = cohort(of_patient=4, patients=20), np.random.default_rng(1)
    share = np.repeat(np.linspace(0.05, 0.95, 20), 10)
    frame["label"] = np.where(random.random(200) < share, "all", "hem")
    found = row(frame, "label")
    assert found["split"] == "images"
    assert found["balanced_accuracy"] > 0.65
    varied = (frame.groupby("subject")["label"].nunique() > 1).sum()
    reason = f"label varies in {varied} of 20 patients, who are on both sides of each split"
    assert found["reason"] == reason


@pytest.mark.parametrize(("column", "patients"), [("subject", 8), ("subject", 55), ("site", 30)])
def test_the_values_are_those_of_scikit_learn(column, patients):
    """On the same folds, with the standard deviation of the training part."""
    frame = cohort(of_patient=0.7, of_site=1, patients=patients, dimensions=6)
    found = row(frame, column)
    x, y = frame.filter(like="feature_").to_numpy(), frame[column].to_numpy()
    folds = (StratifiedGroupKFold if column == "site" else StratifiedKFold)(5, shuffle=True, random_state=0)
    linear, predicted = RidgeClassifier if patients > 50 else LogisticRegression, np.empty(len(frame), object)
    for train, test in folds.split(x, y, frame["subject"] if column == "site" else None):
        scaler = StandardScaler().fit(x[train])
        model = linear(class_weight="balanced", max_iter=2000).fit(scaler.transform(x[train]), y[train])
        predicted[test] = model.predict(scaler.transform(x[test]))
    assert found["accuracy"] == pytest.approx(accuracy_score(y, list(predicted)))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, list(predicted)))
    assert found["method"].startswith("ridge regression (more than 50" if patients > 50 else "logistic regression")


def test_the_same_seed_gives_the_same_row_in_any_scale():
    frame = cohort(of_patient=1, patients=12, of_site=1)
    one = probe(frame, "site", seed=3)
    pd.testing.assert_frame_equal(one, probe(frame, "site", seed=3))
    scaled = frame.assign(**{name: frame[name] * 256 for name in frame if name.startswith("feature_")})
    pd.testing.assert_frame_equal(one, probe(scaled, "site", seed=3))
    renamed = frame.assign(subject=frame["subject"].str.lower() + " ", fold=1)
    pd.testing.assert_frame_equal(one, probe(renamed, "site", seed=3))


def test_values_with_too_few_patients_are_left_out_and_counted():
    frame = cohort(of_site=8, sites=4)
    frame.loc[frame["site"] == "S3", "subject"] = "P3"  # one patient
    found = row(frame, "site")
    assert (found["classes"], found["images"], found["groups"], found["chance"]) == (3, 300, 30, 1 / 3)
    assert found["reason"] == "1 of 4 values (100 images) left out: fewer than 5 patients"
    short = cohort(of_patient=5, patients=6).drop(index=range(6))  # four images of P0 are left
    found = row(short, "subject")
    assert (found["classes"], found["images"]) == (5, 50)
    assert found["reason"] == "1 of 6 values (4 images) left out: fewer than 5 images"
    assert row(short, "subject", folds=4)["classes"] == 6


def test_images_without_a_value_or_patient_are_left_out_and_counted():
    frame = cohort(of_site=8).astype({"site": object})
    frame.loc[0:9, "site"] = None
    frame.loc[10:12, "subject"] = "n/a"
    found = row(frame, "site")
    assert (found["images"], found["groups"]) == (387, 39)
    assert found["reason"] == "13 images without site or patient left out"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["a"] * 40, "1 value of site to predict, two are needed"),
        ([None] * 40, "0 values of site to predict, two are needed; 400 images without site or patient left out"),
        (["a"] * 36 + list("bbbb"), "1 value of site to predict, two are needed; 1 of 2 values (40 images) left out"),
        (range(40), "0 values of site to predict, two are needed; 40 of 40 values (400 images) left out: fewer than 5"),
    ],
)
def test_a_row_without_numbers_says_why(values, reason):
    frame = cohort()
    found = row(frame.assign(site=frame["subject"].map({f"P{i}": value for i, value in enumerate(values)})), "site")
    assert found["reason"].startswith(reason)
    assert all(np.isnan(found[name]) for name in ("accuracy", "majority", "balanced_accuracy", "chance"))
    assert list(found) == list(row(frame, "site"))


def test_images_of_one_cell_count_once():
    frame = cohort(patients=10, per=10, dimensions=30)
    twice = pd.concat([frame, frame], ignore_index=True)
    assert row(twice, "subject")["balanced_accuracy"] > 0.5
    cells = twice.assign(same_cell=[*range(len(frame))] * 2)
    found = row(cells, "subject")
    assert found["balanced_accuracy"] == row(frame, "subject")["balanced_accuracy"] < 0.3
    assert found["reason"] == "100 further images of a cell left out"
    assert row(cells.assign(same_cell=None), "subject")["images"] == 200


def test_what_is_no_table_of_features_is_refused():
    frame = cohort(patients=10)
    with pytest.raises(DataError, match=r"feature_0 and so on \(0 found\), and 'site' of: subject, site"):
        probe(frame[["subject", "site"]], "site")
    for column in ("sit", "feature_1"):
        with pytest.raises(DataError, match=rf"\(20 found\), and '{column}' of: subject, site"):
            probe(frame, column)
    with pytest.raises(DataError, match="2 of 100 images have features that are NaN, infinite or no numbers"):
        probe(frame.assign(feature_3=[np.nan, np.inf, *range(98)]), "site")
    with pytest.raises(DataError, match="100 of 100 images have features"):
        probe(frame.assign(feature_3=1e200), "site")
    with pytest.raises(DataError, match="100 of 100 images have features"):
        probe(frame.assign(feature_3="x"), "site")
    with pytest.raises(SettingsError, match="folds must be a whole number of at least 2"):
        probe(frame, "site", folds=1)
