"""Splits: patients and their cells stay on one side, whatever the seed and the order of the rows."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leukemia_dl.datasets import PROTOCOLS, Dataset, DatasetInfo, Split, make_splits
from leukemia_dl.datasets import dataset as dataset_module
from leukemia_dl.datasets.sources.c_nmc_2019 import LINKED_SUBJECTS
from leukemia_dl.errors import SettingsError, SplitError, UnknownNameError

INFO = DatasetInfo("made_up", "Made up", "none", "nobody")
CLEAN = ("content-disjoint", "group-disjoint", "test-is-not-val")
DRAWN = ("kfold", "holdout")
SIDES = ("train", "val", "test")


@pytest.fixture(autouse=True)
def _contents_from_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up samples have no files: what follows "#" in the path stands for the content."""
    real = dataset_module.file_hashes

    def hashes(paths: list[str]) -> list[str]:
        return [path.split("#")[1] for path in paths] if all("#" in path for path in paths) else real(paths)

    monkeypatch.setattr(dataset_module, "file_hashes", hashes)


def cohort(
    subjects: dict[str, list[int]], order: list[int] | None = None, linked: tuple = (), **columns: str
) -> Dataset:
    """Make up a data set of `{class: [images of each subject]}`; subjects are a0, a1, ... of class a."""
    rows = [
        {"sample": f"{label}{subject}_{image}", "label": label, "subject": f"{label}{subject}"}
        for label, counts in subjects.items()
        for subject, count in enumerate(counts)
        for image in range(count)
    ]
    frame = pd.DataFrame(rows).assign(**columns)
    frame["path"] = "/x#" + frame["sample"]
    groups = {subject: "+".join(members) for members in linked for subject in members}
    frame["group"] = frame["subject"].map(groups)
    return Dataset(frame if order is None else frame.iloc[order], tuple(sorted(subjects)), INFO)


def with_folds(dataset: Dataset, folds: int = 3) -> Dataset:
    """Put the subjects into folds in turn."""
    numbers = dataset.table["subject"].str.extract(r"(\d+)$")[0].astype(int) % folds
    return Dataset(dataset.table.assign(fold=numbers), dataset.class_names, dataset.info)


def content_of(dataset: Dataset, **contents: str) -> Dataset:
    """Give samples the content that is named: equal names are byte-identical files."""
    table = dataset.table
    table["path"] = "/x#" + table["sample"].map(contents).fillna(table["sample"])
    return Dataset(table, dataset.class_names, dataset.info)


def names(dataset: Dataset, split: Split) -> dict[str, list[str]]:
    samples = dataset.table["sample"].to_numpy(dtype=object)
    return {side: sorted(samples[getattr(split, side)]) for side in SIDES}


def assert_clean(dataset: Dataset, split: Split) -> None:
    table = dataset.table.assign(content=dataset.content_hashes)
    assert split.guarantees == CLEAN
    for column in ("sample", "group", "content"):
        values = [set(table[column].iloc[getattr(split, side)]) for side in SIDES]
        assert sum(map(len, values)) == len(set.union(*values)), column
    for side in SIDES:
        assert set(dataset.labels[getattr(split, side)]) == set(range(len(dataset.class_names)))


SUBJECTS = st.fixed_dictionaries(
    {name: st.lists(st.integers(1, 6), min_size=6, max_size=14) for name in ("a", "b", "c")}
)


@settings(max_examples=20)
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


@settings(max_examples=20)
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


@settings(max_examples=20)
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


def test_repeats_are_drawn_anew_and_numbered_on() -> None:
    dataset = cohort({"a": [2] * 9, "b": [2] * 9})
    splits = make_splits(dataset, "kfold", n_folds=3, n_repeats=2)
    assert [split.fold for split in splits] == [0, 1, 2, 3, 4, 5]
    for repeat in (splits[:3], splits[3:]):
        assert sorted(np.concatenate([split.test for split in repeat])) == list(range(len(dataset)))
    assert [split.digest for split in splits[:3]] == [s.digest for s in make_splits(dataset, "kfold", n_folds=3)]
    assert len({split.digest for split in splits}) == 6
    assert make_splits(dataset, "kfold", n_folds=3, n_repeats=2, folds=[4])[0].digest == splits[4].digest
    for wrong in (0, True, 1.5):
        with pytest.raises(SettingsError, match="n_repeats must be an int of at least 1"):
            make_splits(dataset, "kfold", n_repeats=wrong)
    with pytest.raises(SettingsError, match="n_repeats is for protocol='kfold'"):
        make_splits(dataset, "holdout", n_repeats=2)


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
            assert dict(split.crossing) == {"identical": 0, "same_cell": 0, "group": 0}
    official = make_splits(with_folds(dataset), "official", folds="all")
    assert [split.crossing["same_cell"] for split in official] == [2, 2, 2], "the one on the test side is not counted"


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
    assert split.counts().loc[("test", "a")].to_dict() == {"images": 8, "groups": 4}


def test_val_is_about_a_fifth_with_as_many_groups_as_can_be() -> None:
    dataset = with_folds(cohort({"a": [4] * 75, "b": [2] * 75}))
    for split in make_splits(dataset, "official_clean", folds="all"):
        assert len(split.val) / (len(split.val) + len(split.train)) == pytest.approx(0.2, abs=0.05)
        assert split.counts().loc["val", "groups"].min() >= 5
        assert split.flags == ()


def test_official_counts_what_crosses_and_clean_drops_it() -> None:
    dataset = cohort({"a": [2] * 12, "b": [3] * 12}, linked=(("a2", "a3"), ("b5", "b6", "b7")))
    dataset = with_folds(content_of(dataset, a8_0="same", a9_1="same"))  # folds 2 and 0
    official, clean = make_splits(dataset, "official")[0], make_splits(dataset, "official_clean")[0]
    assert official.fold == clean.fold == 2
    assert official.guarantees == ("test-is-not-val",)
    assert official.dropped == 0
    # a3 (2 images) is linked with a2; b6 and b7 (3 each) with b5; a9_1 is the file of a8_0
    assert "8 images outside the test side share their group with another side" in official.flags
    assert "1 images outside the test side share their content with another side" in official.flags
    assert clean.dropped == 10
    assert_clean(dataset, clean)
    np.testing.assert_array_equal(official.test, clean.test)
    dropped = set(range(len(dataset))) - set(np.concatenate([clean.train, clean.val, clean.test]))
    assert set(dataset.table["subject"].iloc[sorted(dropped)]) == {"a3", "a9", "b6", "b7"}


def test_where_nothing_crosses_official_holds_all_guarantees() -> None:
    dataset = with_folds(cohort({"a": [2] * 12, "b": [3] * 12}))
    official, clean = (make_splits(dataset, name, folds="all") for name in ("official", "official_clean"))
    for split in [*official, *clean]:
        assert split.guarantees == CLEAN
        assert split.dropped == 0


def test_source_v1_tests_on_what_it_watches_and_says_so() -> None:
    split = make_splits(with_folds(cohort({"a": [2] * 9, "b": [2] * 9})), "source_v1")[0]
    np.testing.assert_array_equal(split.val, split.test)
    assert "test-is-not-val" not in split.guarantees
    assert split.flags[0] == "val is test"
    assert len(split.train) + len(split.test) == 36


def test_folds_by_default_and_by_choice() -> None:
    dataset = with_folds(cohort({"a": [2] * 12, "b": [2] * 12}))
    assert [split.fold for split in make_splits(dataset)] == [2]
    assert [split.fold for split in make_splits(dataset, folds=[1, 0])] == [1, 0]
    two = with_folds(cohort({"a": [2] * 12, "b": [2] * 12}), folds=2)
    assert [split.fold for split in make_splits(two)] == [1]
    for folds in ([3], [0, 0], [], "some", ["0"]):
        with pytest.raises(SettingsError, match=r'`folds` is "all" or some of 0, 1, 2, each once. Received: '):
            make_splits(dataset, folds=folds)
    assert make_splits(dataset, "holdout", folds="all")[0].fold is None
    with pytest.raises(SettingsError, match=r"'holdout' has no folds: leave `folds` out. Received: \[0\]"):
        make_splits(dataset, "holdout", folds=[0])
    for n_folds in (1, True, 2.5):
        with pytest.raises(SettingsError, match="n_folds must be an int of at least 2"):
            make_splits(dataset, "kfold", n_folds=n_folds)
    with pytest.raises(SettingsError, match="n_folds is for protocol='kfold'"):
        make_splits(dataset, n_folds=3)


def test_random_needs_a_yes_and_keeps_identical_files_together() -> None:
    dataset = content_of(cohort({"a": [10] * 4, "b": [10] * 4}), a0_0="same", a1_1="same", a2_2="same")
    with pytest.raises(SplitError, match=r'protocol="random", allow_leakage=True \(command line: --protocol random'):
        make_splits(dataset, "random")
    digests = set()
    for seed in range(20):
        split = make_splits(dataset, "random", seed=seed, allow_leakage=True)[0]
        assert split.guarantees == ("content-disjoint", "test-is-not-val")
        assert "share their group with another side" in split.flags[0]
        assert len(split.test) == pytest.approx(16, abs=3)
        assert len(split.val) == pytest.approx(13, abs=3)
        same = [set(names(dataset, split)[side]) & {"a0_0", "a1_1", "a2_2"} for side in SIDES]
        assert sorted(map(len, same)) == [0, 0, 3]
        digests.add(split.digest)
    assert len(digests) == 20


def test_random_is_stratified_down_to_the_smallest_class() -> None:
    dataset = cohort({"a": [100], "b": [3]})
    split = make_splits(dataset, "random", allow_leakage=True)[0]
    assert split.counts()["images"].to_dict() == {
        ("train", "a"): 64, ("train", "b"): 1, ("val", "a"): 16, ("val", "b"): 1, ("test", "a"): 20, ("test", "b"): 1
    }  # fmt: skip


@pytest.mark.parametrize("protocol", sorted(set(PROTOCOLS) - {"random", "fixed"}))
def test_unknown_subjects_are_never_taken_for_patients(protocol: str) -> None:
    table = with_folds(cohort({"a": [2] * 9, "b": [2] * 9})).table
    table["subject"] = table["group"] = table["subject"].mask(table["subject"] == "a3")
    dataset = Dataset(table, ("a", "b"), INFO)
    assert not dataset.has_subjects
    with pytest.raises(SplitError, match="and 2 of the 36 labelled samples of 'made_up' have no subject") as caught:
        make_splits(dataset, protocol)
    assert 'protocol="random", allow_leakage=True' in str(caught.value)
    assert "--protocol random --allow-leakage" in str(caught.value)
    flags = make_splits(dataset, "random", allow_leakage=True)[0].flags
    assert "patients unknown: one may be on several sides" in flags


def test_fixed_uses_the_sides_that_are_given() -> None:
    dataset = cohort({"a": [2] * 12, "b": [2] * 12})
    number = dataset.table["subject"].str[1:].astype(int)
    table = dataset.table.assign(split=np.select([number < 7, number < 9], ["train", "val"], "test"))
    given_all = make_splits(Dataset(table, ("a", "b"), INFO), "fixed")[0]
    assert [len(getattr(given_all, side)) for side in SIDES] == [28, 8, 12]
    assert given_all.guarantees == CLEAN
    without_val = Dataset(table[table["split"] != "val"], ("a", "b"), INFO)
    drawn = make_splits(without_val, "fixed")[0]
    assert_clean(without_val, drawn)
    assert len(drawn.val) in (4, 6, 8)
    crossing = Dataset(table.assign(subject="one", group="one"), ("a", "b"), INFO)
    assert make_splits(crossing, "fixed")[0].guarantees == ("content-disjoint", "test-is-not-val")
    with pytest.raises(SplitError, match=r"'fixed' uses the sides .* and 'made_up' has none. Give a `split` column"):
        make_splits(dataset, "fixed")


def test_fixed_without_subjects_is_allowed_and_says_so() -> None:
    table = cohort({"a": [9], "b": [9]}).table
    sides = np.where(np.arange(18) % 3 == 0, "test", "train")
    table = table.assign(split=sides, subject=None, group=None)
    split = make_splits(Dataset(table, ("a", "b"), INFO), "fixed")[0]
    assert split.guarantees == ("content-disjoint", "test-is-not-val")
    assert split.flags == ("patients unknown: one may be on several sides",)
    with pytest.raises(SplitError, match="or protocol='fixed' for the sides that it comes with"):
        make_splits(Dataset(table, ("a", "b"), INFO), "kfold")


def test_preliminary_and_final_stay_out_of_everything_else() -> None:
    dataset = with_folds(cohort({"a": [2] * 15, "b": [2] * 15}))
    number = dataset.table["subject"].str[1:].astype(int)
    split = np.select([number < 9, number < 12], ["train", "preliminary"], "final")
    dataset = Dataset(dataset.table.assign(split=split), ("a", "b"), INFO)
    outside = set(np.flatnonzero(number >= 9))
    for protocol in ("official", "official_clean", "source_v1", "kfold", "holdout", "random"):
        for one in make_splits(dataset, protocol, allow_leakage=True):
            assert not outside & set(np.concatenate([one.train, one.val, one.test])), protocol
    one = make_splits(dataset, "preliminary")[0]
    assert_clean(dataset, one)
    assert set(one.test) == set(np.flatnonzero((number >= 9) & (number < 12)))
    assert len(one.train) + len(one.val) == 36
    with pytest.raises(SplitError, match="'made_up' has none of these"):
        make_splits(dataset.subset((number < 9).to_numpy()), "preliminary")


def test_unlabelled_samples_never_enter() -> None:
    table = with_folds(cohort({"a": [2] * 9, "b": [2] * 9})).table
    table["label"] = table["label"].mask(table["sample"].str.endswith("_1"))
    dataset = Dataset(table, ("a", "b"), INFO)
    split = make_splits(dataset)[0]
    assert (dataset.labels[np.concatenate([split.train, split.val, split.test])] >= 0).all()
    with pytest.raises(SplitError, match="has no labelled samples"):
        make_splits(dataset.subset(dataset.labels < 0))


def test_too_few_groups_or_images_say_what_to_do() -> None:
    few = cohort({"a": [5] * 2, "b": [5] * 9})
    for protocol in DRAWN:
        with pytest.raises(SplitError, match=r"at least 3 subjects or groups of each class .* has 2 of class 'a'.*Add"):
            make_splits(few, protocol)
    with pytest.raises(SplitError, match=r"at least 3 different images of each class .* has 2 of class 'b'"):
        make_splits(content_of(cohort({"a": [9], "b": [3]}), b0_0="same", b0_1="same"), "random", allow_leakage=True)
    blank = {f"a{number}_0": "blank" for number in range(8)}
    joined = content_of(cohort({"a": [2] * 9, "b": [2] * 9}), **blank)
    with pytest.raises(
        SplitError, match=r"2 of class 'a' \(7 groups were joined, since they share cells or identical files"
    ):
        make_splits(joined, "holdout")
    with pytest.raises(SplitError, match="needs at least 2 subjects or groups of each class that are left to train on"):
        make_splits(with_folds(cohort({"a": [2] * 3, "b": [2] * 9}), folds=2), "official", folds=[0])
    table = with_folds(cohort({"a": [2] * 9, "b": [2] * 9})).table
    moved = table.assign(fold=table["fold"].mask((table["label"] == "a") & (table["fold"] == 1), 0))
    one_class = Dataset(moved, ("a", "b"), INFO)
    with pytest.raises(SplitError, match=r"\(fold 1\) leaves the test side of 'made_up' without images of class 'a'"):
        make_splits(one_class, "official", folds=[1])


def test_official_needs_folds_and_protocols_need_their_name() -> None:
    dataset = cohort({"a": [2] * 9, "b": [2] * 9})
    with pytest.raises(SplitError, match=r"needs official folds, at least two, and 'made_up' has none. Give a `fold`"):
        make_splits(dataset)
    with pytest.raises(UnknownNameError, match=r"no protocol 'k_fold'. Did you mean 'kfold'"):
        make_splits(dataset, "k_fold")


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
    dataset = Dataset.from_dataframe(pd.DataFrame(rows, columns=["path", "label", "subject"]), root=tmp_path)
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
    assert [tuple(split.crossing.values()) for split in official] == expected
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
    with pytest.raises(SplitError, match="1,200 of the 1,200 labelled samples of 'folder' have no subject"):
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


def test_patients_that_are_known_are_kept_apart_although_others_are_not() -> None:
    dataset = cohort({"a": [3] * 9, "b": [3] * 9})
    table = dataset.table.assign(split=["train", "train", "test"] * 18)
    table.loc[0, ["subject", "group"]] = pd.NA
    split = make_splits(Dataset(table, dataset.class_names, INFO), "fixed")[0]
    train, val = (set(table["subject"].iloc[side].dropna()) for side in (split.train, split.val))
    assert not train & val
    assert split.crossing["group"] is None
