import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leukemia_dl import Dataset, make_splits
from leukemia_dl.benchmark.plan import checked_shots
from leukemia_dl.datasets.shots import few_shot
from leukemia_dl.errors import SettingsError, SplitError

IMAGES = np.zeros((90, 4, 4, 3), np.uint8)
IMAGES[:, 0, 0, 0] = np.arange(90)
LABELS = np.repeat(np.arange(30) % 2, 3)


def cohort(subjects=True):
    names = [f"p{i // 3:02}" for i in range(90)] if subjects else None
    return Dataset.from_arrays(IMAGES, LABELS, ("hem", "all"), subjects=names)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 3), st.integers(0, 100))
def test_fewer_patients_of_each_class_are_among_those_of_more_and_the_test_side_stays(shots, seed):
    data = cohort()
    (split,) = make_splits(data, "holdout")
    one, more = (few_shot(data, split, count, seed) for count in (shots, shots + 1))
    groups = data.table["group"].to_numpy()
    for part, count in ((one, shots), (more, shots + 1)):
        chosen = set(groups[part.train])
        assert [len({g for g in chosen if data.labels[groups == g][0] == code}) for code in (0, 1)] == [count, count]
        # Whole patients of the training side, and no other images.
        assert set(part.train) == set(split.train) & set(np.flatnonzero(np.isin(groups, list(chosen))))
        np.testing.assert_array_equal(part.test, split.test)
        np.testing.assert_array_equal(part.val, split.val)
        table = part.counts().loc["train"]
        assert table["groups"].tolist() == [count, count]
        assert table["images"].tolist() == [3 * count, 3 * count]
        np.testing.assert_allclose(table["effective_groups"], count)
    assert set(one.train) < set(more.train)
    assert len({one.digest, more.digest, split.digest}) == 3
    assert (one.shots, one.seed, one.protocol) == (shots, seed, f"holdout-{shots}shot")


def test_other_seeds_draw_others_and_the_order_of_rows_does_not_matter():
    data = cohort()
    (split,) = make_splits(data, "holdout")
    drawn = {few_shot(data, split, 2, seed).digest for seed in range(20)}
    assert len(drawn) > 15
    backwards = data.subset(np.arange(90)[::-1])
    (other,) = make_splits(backwards, "holdout")
    assert few_shot(backwards, other, 2, 0).digest == few_shot(data, split, 2, 0).digest


def test_a_class_with_fewer_patients_keeps_all_and_a_flag_says_so():
    data = cohort()
    (split,) = make_splits(data, "holdout")
    there = split.counts().loc["train", "groups"]
    few = few_shot(data, split, 99, 0)
    np.testing.assert_array_equal(few.train, split.train)
    assert few.flags[0] == (
        f"training patients of each class: 99, drawn (there are only {there['hem']} of hem, {there['all']} of all)"
    )


def test_without_patients_images_are_drawn():
    data = cohort(subjects=False)
    (split,) = make_splits(data, "random", allow_leakage=True)
    few = few_shot(data, split, 5, 0)
    assert np.bincount(data.labels[few.train]).tolist() == [5, 5]
    assert few.flags[0] == "training images of each class: 5, drawn"


@pytest.mark.parametrize("order", [1, -1])
def test_a_patient_of_two_classes_counts_for_that_of_most_of_its_images(order):
    labels = LABELS.copy()
    labels[:2] = 1 - labels[2]  # the first patient has two images of the other class
    data = Dataset.from_arrays(IMAGES, labels, ("hem", "all"), subjects=[f"p{i // 3:02}" for i in range(90)])
    (split,) = make_splits(data.subset(np.arange(90)[::order]), "holdout")
    few = few_shot(data.subset(np.arange(90)[::order]), split, 3, 1)
    assert few.counts().loc["train", "groups"].sum() in (6, 7)  # seven if the mixed patient is one of the six


def test_a_class_without_a_patient_of_mostly_that_class_is_refused():
    labels = np.where(np.arange(90) % 3 == 0, 1, 0)  # each patient has one image of it and two of the other
    data = Dataset.from_arrays(IMAGES, labels, ("hem", "all"), subjects=[f"p{i // 3:02}" for i in range(90)])
    (split,) = make_splits(data, "holdout")
    with pytest.raises(SplitError, match="No patients of holdout are mostly of class all: use no shots"):
        few_shot(data, split, 1, 0)


@pytest.mark.parametrize("shots", [[0, 5], [None, 0], [-1], 5, [2, 2], ["few"]])
def test_numbers_of_shots_are_at_least_one(shots):
    with pytest.raises(SettingsError, match="shots must be"):
        checked_shots(shots)
    assert checked_shots([1, None, 5]) == (1, None, 5)
