"""Splits: patients and their cells stay on one side, whatever the seed and the order of the rows."""

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohorts import DRAWN, INFO, SIDES, assert_clean, cohort, content_of, names, with_folds
from leukemia_dl.datasets import Dataset, make_splits, splits
from leukemia_dl.datasets.sources.c_nmc_2019 import LINKED_SUBJECTS
from leukemia_dl.datasets.splits import GROUP_DISJOINT, SplitContext
from leukemia_dl.errors import SettingsError, SplitError, UnknownNameError

pytestmark = pytest.mark.usefixtures("contents_from_paths")

SUBJECTS = st.fixed_dictionaries(
    {name: st.lists(st.integers(1, 6), min_size=6, max_size=14) for name in ("a", "b", "c")}
)


@settings(max_examples=10)
@given(subjects=SUBJECTS, seed=st.integers(0, 10**6), protocol=st.sampled_from(DRAWN), data=st.data())
def test_drawn_splits_are_clean_and_do_not_depend_on_row_order(
    subjects: dict, seed: int, protocol: str, data: st.DataObject
) -> None:
    dataset = cohort(subjects)
    order = data.draw(st.permutations(range(len(dataset))))
    shuffled = cohort(subjects, order)
    splits = make_splits(dataset, protocol, seed=seed)
    again = make_splits(shuffled, protocol, seed=seed)
    for one, other in zip(splits, again, strict=True):
        assert_clean(dataset, one)
        assert one.digest == other.digest
        assert names(dataset, one) == names(shuffled, other)
        assert one.flags == other.flags
        pd.testing.assert_frame_equal(one.counts(), other.counts())
    if protocol == "kfold":
        assert sorted(np.concatenate([split.test for split in splits])) == list(range(len(dataset)))


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), protocol=st.sampled_from(["official_clean", *DRAWN]))
def test_linked_subjects_and_identical_files_stay_together(seed: int, protocol: str) -> None:
    dataset = cohort({"a": [2] * 9, "b": [3] * 9}, linked=(("a0", "a4"), ("b1", "b2", "b3")))
    dataset = with_folds(content_of(dataset, a7_0="same", a8_1="same"))
    groups = dataset.table["group"].to_numpy(dtype=object)
    for split in make_splits(dataset, protocol, folds="all" if protocol != "holdout" else None, seed=seed):
        assert_clean(dataset, split)
        sides = {group: {side for side in SIDES if group in groups[getattr(split, side)]} for group in set(groups)}
        assert all(len(found) <= 1 for found in sides.values())
        assert len(sides["a7"] | sides["a8"]) <= 1 or protocol == "official_clean"


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_linked_sets_of_c_nmc_are_never_cut(seed: int) -> None:
    _assert_linked_sets_are_whole(seed)


@pytest.mark.slow
@settings(max_examples=1_000)
@given(seed=st.integers(0, 10**6))
def test_linked_sets_of_c_nmc_are_never_cut_by_a_thousand_seeds(seed: int) -> None:
    _assert_linked_sets_are_whole(seed)


def _assert_linked_sets_are_whole(seed: int) -> None:
    for protocol in DRAWN:
        dataset = _c_nmc_like()
        groups = dataset.table["group"]
        for split in make_splits(dataset, protocol, seed=seed):
            for linked in LINKED_SUBJECTS:
                name = "+".join(linked)
                assert sum((groups.iloc[getattr(split, side)] == name).any() for side in SIDES) == 1


@cache
def _c_nmc_like() -> Dataset:
    """73 subjects with the linked names among them, and a few images each."""
    sizes = np.random.default_rng(0).integers(1, 9, 73)
    known = {subject for linked in LINKED_SUBJECTS for subject in linked}
    leukemic = sorted({s for s in known if s[0] != "H"} | {str(100 + i) for i in range(42)})
    normal = sorted({s for s in known if s[0] == "H"} | {f"H{100 + i}" for i in range(19)})
    assert (len(leukemic), len(normal)) == (47, 26)
    groups = {subject: "+".join(linked) for linked in LINKED_SUBJECTS for subject in linked}
    rows = [
        {"sample": f"{subject}_{i}", "path": f"/x#{subject}_{i}", "label": label, "subject": subject}
        for (label, subject), size in zip(
            [("all", s) for s in leukemic] + [("hem", s) for s in normal], sizes, strict=True
        )
        for i in range(size)
    ]
    frame = pd.DataFrame(rows)
    return Dataset(frame.assign(group=frame["subject"].map(groups)), ("hem", "all"), INFO)


def test_a_cell_that_is_there_twice_joins_its_groups_and_is_counted() -> None:
    plain = cohort({"a": [2] * 9, "b": [2] * 9})
    table = plain.table
    same = ["a0_0", "a1_0", "a2_0"]
    table["same_cell"] = table["sample"].where(~table["sample"].isin(same), "one").where(table["sample"].isin(same))
    dataset = Dataset(table, plain.class_names, INFO)
    for protocol in DRAWN:
        for split in make_splits(dataset, protocol):
            sides = {side for side in SIDES for row in getattr(split, side) if table["sample"][row] in same}
            assert len(sides) == 1
            assert dict(split.leaked) == {"files": 0, "cells": 0, "groups": 0}
    official = make_splits(with_folds(dataset), "official", folds="all")
    assert [split.leaked["cells"] for split in official] == [2, 2, 2], "the one on the test side is not counted"


def test_seeds_draw_different_splits() -> None:
    dataset = cohort({"a": [3] * 20, "b": [4] * 20})
    assert len({make_splits(dataset, "holdout", seed=seed)[0].digest for seed in range(5)}) == 5


def test_number_of_folds() -> None:
    many, few = cohort({"a": [1] * 25, "b": [2] * 30}), cohort({"a": [1] * 24, "b": [2] * 30})
    assert [split.fold for split in make_splits(many, "kfold")] == [0, 1, 2, 3, 4]
    assert [split.fold for split in make_splits(few, "kfold")] == [0, 1, 2]
    assert len(make_splits(few, "kfold", n_folds=8)) == 8
    assert [split.fold for split in make_splits(many, "kfold", folds=[3, 1])] == [3, 1]
    assert make_splits(many, "kfold", folds=[3])[0].digest == make_splits(many, "kfold")[3].digest
    shares = [len(split.test) / len(many) for split in make_splits(many, "kfold")]
    assert min(shares) > 0.15
    assert max(shares) < 0.25
    few_groups = [flag for split in make_splits(many, "kfold") for flag in split.flags if "test" in flag]
    assert not few_groups


def test_a_side_with_few_patients_is_flagged() -> None:
    split = make_splits(with_folds(cohort({"a": [2] * 12, "b": [2] * 30})), "official")[0]
    assert "test: few groups of class a (4)" in split.flags
    assert not any("class b" in flag and "test" in flag for flag in split.flags)
    assert split.counts().loc[("test", "a")].to_dict() == {"images": 8, "groups": 4, "effective_groups": 4}


def test_val_is_about_a_fifth_with_as_many_groups_as_can_be() -> None:
    dataset = with_folds(cohort({"a": [4] * 75, "b": [2] * 75}))
    for split in make_splits(dataset, "official_clean", folds="all"):
        assert len(split.val) / (len(split.val) + len(split.train)) == pytest.approx(0.2, abs=0.05)
        assert split.counts().loc["val", "groups"].min() >= 5
        assert split.flags == ()


def test_a_forged_split_is_noticed() -> None:
    """Mutant 2: a sample, or the images of a subject, in train and in val."""
    dataset = cohort({"a": [2] * 9, "b": [2] * 9})
    context, unguarded = SplitContext(dataset, "holdout", 0), SplitContext(dataset, "fixed", 0)
    rest, test = context.holdout(context.everything, "test")
    train, val = context.holdout(rest, "val")
    _ = splits._checked(context, None, train, test, val)
    with pytest.raises(SplitError, match="made a split that is not "):
        splits._checked(context, None, np.append(train, val[0]), test, val)
    cut = np.isin(context.groups[val], context.groups[val[:1]])  # one of the two images of a subject goes to train
    moved = val[cut][:1]
    shared = (None, np.append(train, moved), test, np.setdiff1d(val, moved))
    with pytest.raises(SplitError, match="made a split that is not group-disjoint"):
        splits._checked(context, *shared)
    found = splits._checked(unguarded, *shared)
    assert found.leaked["groups"] == 1
    assert GROUP_DISJOINT not in found.guarantees


def test_a_split_is_read_only_and_prints_shortly() -> None:
    split = make_splits(cohort({"a": [2] * 9, "b": [2] * 9}), "holdout")[0]
    assert all(getattr(split, side).dtype == np.int64 for side in SIDES)
    with pytest.raises(ValueError, match="read-only"):
        split.test[0] = 0
    assert repr(split).startswith("<Split 'holdout': train ")


def test_files_need_not_be_images(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    rows = [(f"{name}{i}.bmp", name, f"{name}{i // 2}") for name in "ab" for i in range(8)]
    for path, *_ in rows:
        (tmp_path / path).write_text(path)
    dataset = Dataset.from_dataframe(pd.DataFrame(rows, columns=["path", "label", "subject"]), images_root=tmp_path)
    assert_clean(dataset, make_splits(dataset, "holdout")[0])


def test_official_clean_on_all_of_c_nmc_drops_what_the_facts_say(c_nmc_tree: Path) -> None:
    dataset = Dataset.load("c_nmc_2019", root=c_nmc_tree)
    clean = make_splits(dataset, "official_clean", folds="all")
    assert [split.dropped for split in clean] == [229, 353, 1_274]
    assert [len(split.test) for split in clean] == [3_527, 3_581, 3_553]
    for split in clean:
        assert_clean(dataset, split)
    official = make_splits(dataset, "official", folds="all")
    assert ["; ".join(split.flags).count("share their") for split in official] == [2, 2, 2]
    expected = [(72, 90, 229), (22, 172, 353), (94, 262, 1_274)]
    assert [tuple(split.leaked.values()) for split in official] == expected
    assert "94 images outside the test side share their content with another side" in official[2].flags
    assert "1,274 images outside the test side share their group with another side" in official[2].flags
    kfold = make_splits(dataset, "kfold")
    assert len(kfold) == 3
    assert sum(len(split.test) for split in kfold) == 10_661
    preliminary = make_splits(dataset, "preliminary")[0]
    assert (preliminary.dropped, len(preliminary.test)) == (0, 1_867)
    for split in [*kfold, preliminary, *make_splits(dataset, "holdout")]:
        assert_clean(dataset, split)


def test_real_sample(c_nmc_sample: Path, aria_sample: Path) -> None:
    dataset = Dataset.load("c_nmc_2019", root=c_nmc_sample)
    for split in make_splits(dataset, "official_clean", folds="all"):
        assert_clean(dataset, split)
    aria = Dataset.load("folder", root=aria_sample)
    with pytest.raises(SplitError, match="Of the 1,200 labelled samples of 'folder' 1,200 have no subject"):
        make_splits(aria, "holdout")
    split = make_splits(aria, "random", allow_leakage=True)[0]
    assert split.counts().loc["test", "images"].to_numpy() == pytest.approx([60] * 4, abs=2)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"folds": 2.5}, "some of 0, 1, 2, each once"),
        ({"folds": True}, "some of 0, 1, 2, each once"),
        ({"folds": [[1]]}, "some of 0, 1, 2, each once"),
        ({"seed": float("nan")}, "seed must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_odd_arguments(arguments: dict, match: str) -> None:
    dataset = cohort({"a": [2] * 9, "b": [2] * 9})
    with pytest.raises(SettingsError, match=match):
        make_splits(dataset, "kfold", **arguments)
    with pytest.raises(UnknownNameError):
        make_splits(dataset, ["kfold"])
    assert make_splits(dataset, "kfold", folds=np.int64(1))[0].fold == 1


def order_of(counts, sides, shares):
    """By what a deal is chosen: classes missing on a side, sides that few groups own, uneven images."""
    number = len(shares)
    images = np.array([counts[sides == side].sum(axis=0) for side in range(number)], float)
    squares = np.array([(counts[sides == side] ** 2).sum(axis=0) for side in range(number)], float)
    uneven = np.abs(images / np.outer(shares, counts.sum(axis=0)) - 1).max()
    return (images == 0).sum(), (images**2 / np.maximum(squares, 1) < 3).sum(), round(float(uneven), 9)


@settings(max_examples=15)
@given(st.lists(st.integers(1, 40), min_size=4, max_size=5), st.lists(st.integers(1, 40), min_size=4, max_size=4))
def test_the_assignment_is_the_best_of_all_on_small_cases(first, second):
    counts = np.array([[n, 0] for n in first] + [[0, n] for n in second])
    numbers = np.array([[len(of) - 2, 2] for of in (first, second)])
    found = splits.assign_groups(counts, numbers, np.full((2, 2), 0.5), np.random.default_rng(0))
    every = []
    for one in itertools.combinations(range(len(first)), 2):
        for other in itertools.combinations(range(len(second)), 2):
            sides = np.zeros(len(counts), int)
            sides[[*one, *(len(first) + i for i in other)]] = 1
            every.append(order_of(counts, sides, (0.5, 0.5)))
    assert order_of(counts, found, (0.5, 0.5)) == min(every)


SIZES = (  # images per group of C-NMC 2019's training part, ALL and HEM
    (9, 11, 14, 19, 31, 35, 53, 58, 73, 74, 74, 84, 89, 92, 92, 97, 99, 103, 111, 112, 113, 142, 145, 146, 155, 156,
     161, 178, 178, 181, 190, 197, 197, 201, 212, 246, 250, 253, 267, 268, 278, 352, 402, 1074),
    (20, 29, 30, 32, 46, 47, 50, 69, 100, 108, 119, 137, 140, 162, 185, 185, 327, 373, 385, 404, 441),
)  # fmt: skip


@cache
def _c_nmc_sizes() -> Dataset:
    return cohort({"all": list(SIZES[0]), "hem": list(SIZES[1])})


def test_on_c_nmc_a_seed_draws_another_partition_and_no_side_is_owned_by_few_patients() -> None:
    counts = np.array([[n, 0] for n in SIZES[0]] + [[0, n] for n in SIZES[1]])
    labels, units = np.repeat(counts.argmax(axis=1), counts.sum(axis=1)), np.repeat(np.arange(65), counts.sum(axis=1))
    first = np.unique(units, return_index=True)[1]
    for folds in (3, 5):
        drawn = [splits.draw_folds(labels, units, folds, np.random.default_rng(seed))[first] for seed in range(6)]
        free = [np.random.default_rng(seed).permutation(np.arange(65) % folds) for seed in range(6)]
        changed, unrestricted = ([(one != other).sum() for one in found for other in found] for found in (drawn, free))
        assert np.mean(changed) >= 0.5 * np.mean(unrestricted)
    for split in make_splits(_c_nmc_sizes(), "kfold", n_folds=3):
        assert split.counts()["effective_groups"].min() >= 3
        assert split.counts()["groups"].min() >= 5
        assert not split.flags


def test_a_side_that_one_patient_owns_is_flagged() -> None:
    dataset = with_folds(cohort({"a": [2] * 18, "b": [2] * 17 + [99]}))
    (owned,) = make_splits(dataset, "official", folds=[2])
    assert owned.counts().loc[("test", "b"), "effective_groups"] == pytest.approx(109**2 / (5 * 4 + 99**2))
    flag = "test: most images of class b are of few patients (6 groups, effective number 1.2)"
    assert flag in owned.flags
    (of_five,) = make_splits(with_folds(cohort({"a": [2] * 18, "b": [2] * 14 + [99]})), "official", folds=[2])
    assert flag.replace("6 groups", "5 groups") in of_five.flags


def test_the_same_seed_gives_the_splits_that_were_recorded() -> None:
    """No installed version of scikit-learn or numpy changes a split."""
    found = [split.digest[:12] for seed in (0, 1) for split in make_splits(_c_nmc_sizes(), "kfold", seed=seed)]
    recorded = ["30eecc464c67", "ac3318ce7981", "6370c82f44e3", "8322c86f7116", "80020b7fe3c8", "6afd51158130"]
    assert found == recorded
    source = Path(splits.__file__).read_text()
    assert "sklearn" not in source


def test_large_patients_are_held_out_too() -> None:
    sizes = [6, 10, 12, 18, 23, 23, 29, 39, 52, 74]
    counts = np.array([[n, 0] for n in sizes] + [[0, n] for n in sizes])
    numbers = np.array([[7, 3], [7, 3]])
    random = [np.random.default_rng(seed) for seed in range(100)]
    drawn = [splits.assign_groups(counts, numbers, numbers / 10, rng, among=10) for rng in random]
    assert (np.mean(drawn, axis=0)[[8, 9, 18, 19]] > 0.1).all()


def test_repetitions_are_named_and_are_runs_of_their_own() -> None:
    dataset = cohort({"a": [3] * 20, "b": [4] * 20})
    drawn = make_splits(dataset, "kfold", n_folds=3, n_repeats=2)
    assert [split.repeat for split in drawn] == [0, 0, 0, 1, 1, 1]
    assert [split.repeat for split in make_splits(dataset, "kfold", n_folds=3, n_repeats=2, folds=[4])] == [1]
    assert make_splits(dataset, "holdout")[0].repeat is None


def test_a_class_that_a_side_lacks_is_worse_than_sides_that_few_groups_own() -> None:
    """Three of eight groups are large. Two of them have all images of a class: they part, although they own sides."""
    counts = np.array([[100, 0, 1]] * 2 + [[100, 0, 0]] + [[5, 0, 0]] * 5 + [[0, 10, 0]] * 8)
    numbers = np.array([[4, 4], [4, 4], [0, 0]])
    for seed in range(5):
        sides = splits.assign_groups(counts, numbers, np.full((3, 2), 0.5), np.random.default_rng(seed))
        assert sides[0] != sides[1]


def test_a_holdout_holds_its_part_of_the_images_and_large_patients_too() -> None:
    sizes = [6, 10, 12, 18, 23, 23, 29, 39, 52, 74]
    dataset = cohort({"a": sizes, "b": sizes})
    held = []
    for seed in range(60):
        context = SplitContext(dataset, "holdout", seed)
        held.append(np.bincount(context.groups[context.holdout(context.everything, "test")[1]], minlength=20))
    images = np.array(held)
    assert images.sum(axis=1).mean() / (2 * sum(sizes)) == pytest.approx(0.3, abs=0.04)
    assert ((images > 0).mean(axis=0)[images.max(axis=0) >= 52] > 0.1).all()
    assert (images.max(axis=0) > 0).all()
