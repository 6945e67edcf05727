"""Protocols: what each takes, draws, counts and refuses."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cohorts import CLEAN, DRAWN, INFO, SIDES, assert_clean, cohort, content_of, names, with_folds
from leukemia_dl import Benchmark
from leukemia_dl.datasets import PROTOCOLS, Dataset, make_splits
from leukemia_dl.datasets.sources import c_nmc_2019, files, synthetic
from leukemia_dl.datasets.splits import SplitContext, default_protocol
from leukemia_dl.errors import SettingsError, SplitError, UnknownNameError

pytestmark = pytest.mark.usefixtures("contents_from_paths")


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
        with pytest.raises(SettingsError, match="n_repeats must be a whole number of at least 1"):
            make_splits(dataset, "kfold", n_repeats=wrong)
    with pytest.raises(SettingsError, match="n_repeats are for protocol='kfold'"):
        make_splits(dataset, "holdout", n_repeats=2)


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


def test_published_v1_tests_on_what_it_watches_and_says_so() -> None:
    split = make_splits(with_folds(cohort({"a": [2] * 9, "b": [2] * 9})), "published_v1")[0]
    np.testing.assert_array_equal(split.val, split.test)
    assert "test-is-not-val" not in split.guarantees
    assert split.flags[0] == "val is test"
    assert len(split.train) + len(split.test) == 36


def test_folds_by_default_and_by_choice() -> None:
    dataset = with_folds(cohort({"a": [2] * 12, "b": [2] * 12}))
    assert [split.fold for split in make_splits(dataset)] == [2]
    assert [split.fold for split in make_splits(dataset, folds=[1, 0])] == [1, 0]
    two = with_folds(cohort({"a": [2] * 12, "b": [2] * 12}), folds=2)
    assert [split.fold for split in make_splits(two)] == [0, 1]
    for folds in ([3], [0, 0], [], "some", ["0"]):
        with pytest.raises(SettingsError, match=r'`folds` is "all" or some of 0, 1, 2, each once. Received: '):
            make_splits(dataset, folds=folds)
    assert make_splits(dataset, "holdout", folds="all")[0].fold is None
    with pytest.raises(SettingsError, match=r"has no folds: leave"):
        make_splits(dataset, "holdout", folds=[0])
    for n_folds in (1, True, 2.5):
        with pytest.raises(SettingsError, match="n_folds must be a whole number of at least 2"):
            make_splits(dataset, "kfold", n_folds=n_folds)
    with pytest.raises(SettingsError, match="n_folds and n_repeats are for protocol='kfold'"):
        make_splits(dataset, n_folds=3)


def test_all_official_folds_unless_the_data_set_names_one() -> None:
    """20.11: of anybody's folds 0 to 4, `[2]` was tested, because published results of C-NMC 2019 test fold 2."""
    dataset = with_folds(cohort({"a": [2] * 25, "b": [2] * 25}), folds=5)
    other = Dataset(dataset.table, dataset.class_names, replace(INFO, test_fold=None))
    for protocol in (None, "official", "official_clean", "published_v1"):
        assert [split.fold for split in make_splits(other, protocol)] == [0, 1, 2, 3, 4]
        assert [split.fold for split in make_splits(dataset, protocol)] == [2]
    infos = (c_nmc_2019.INFO, synthetic.INFO, files.CSV_INFO, files.FOLDER_INFO)
    assert [info.test_fold for info in infos] == [2, 2, None, None]


def test_the_default_protocol_follows_from_the_data() -> None:
    """20.11: the default was for official folds, and failed on every data set without them."""
    known = cohort({"a": [2] * 15, "b": [2] * 15})
    sides = known.table["subject"].str[1:].astype(int).mod(5).map({0: "test"}).fillna("train")
    sided = Dataset(known.table.assign(split=sides), known.class_names, INFO)
    anonymous = {"subject": pd.NA, "group": pd.NA}
    for dataset, protocol in (
        (with_folds(sided), "official_clean"),
        (sided, "fixed"),
        (Dataset(sided.table.assign(**anonymous), known.class_names, INFO), "fixed"),
        (known, "kfold"),
        (Dataset(known.table.assign(split="train"), known.class_names, INFO), "kfold"),
    ):
        found = make_splits(dataset)
        assert {split.protocol for split in found} == {protocol}
        assert [split.digest for split in found] == [split.digest for split in make_splits(dataset, protocol)]
        bench = Benchmark(dataset, ["cnn"])
        assert (bench.planned.protocols, len(bench.splits)) == ((protocol,), len(found))
    table = known.table.assign(**anonymous)
    for missing in (table, table.assign(subject=known.table["subject"].where(known.table.index > 3))):
        question = r"does not follow from the data\. Of the 60 labelled samples of 'made_up' (60|4) have no subject; .*"
        with pytest.raises(SplitError, match=question + r"`subject`.*kfold.*--allow-leakage"):
            make_splits(Dataset(missing, known.class_names, INFO))


def test_val_has_five_groups_of_each_class_where_there_are_ten_to_take_from() -> None:
    for sizes, fewest in (([2] * 33, 7), ([2] * 21, 5), ([2] * 10, 5), ([2] * 9, 2)):
        dataset = cohort({"a": sizes, "b": [3] * 40})
        for seed in range(5):
            context = SplitContext(dataset, "holdout", seed)
            rest, val = context.holdout(context.everything, "val")
            assert context.units_per_class(val).tolist() == [fewest, 8]
            assert context.units_per_class(rest).tolist() == [len(sizes) - fewest, 32]
            test = context.holdout(context.everything, "test")[1]
            assert context.units_per_class(test).tolist() == [max(round(len(sizes) / 5), min(len(sizes) // 3, 5)), 8]


def test_numbers_of_numpy_are_those_of_python() -> None:
    dataset = cohort({"a": [2] * 9, "b": [2] * 9})
    python = make_splits(dataset, "kfold", [0, 4], seed=3, n_folds=3, n_repeats=2)
    whole = np.int64
    numpy = make_splits(dataset, "kfold", np.array([0, 4]), seed=whole(3), n_folds=whole(3), n_repeats=whole(2))
    assert [split.digest for split in numpy] == [split.digest for split in python]
    assert [type(split.fold) for split in numpy] == [int, int]


def test_random_needs_a_yes_and_keeps_identical_files_together() -> None:
    dataset = content_of(cohort({"a": [10] * 4, "b": [10] * 4}), a0_0="same", a1_1="same", a2_2="same")
    with pytest.raises(SplitError, match=r"add allow_leakage=True \(command line: --allow-leakage\)"):
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
    with pytest.raises(SplitError, match="Of the 36 labelled samples of 'made_up' 2 have no subject") as caught:
        make_splits(dataset, protocol)
    assert 'protocol="random", allow_leakage=True' in str(caught.value)
    assert "--protocol random --allow-leakage" in str(caught.value)
    flags = make_splits(dataset, "random", allow_leakage=True)[0].flags
    assert "patients unknown of 2 of 36 images: one may be on several sides" in flags


def test_images_without_a_side_or_fold_are_counted() -> None:
    """20.9: rows with an empty `split` or `fold` were left out without a word."""
    table = with_folds(cohort({"a": [2] * 9, "b": [2] * 9})).table
    some = table["subject"].isin(["a1", "b1"])
    sided = table.assign(split=np.where(table.index % 2, "train", "test"), fold=pd.NA)
    for changed, protocol in (
        (sided.assign(split=sided["split"].mask(some)), "fixed"),
        (table.assign(fold=table["fold"].mask(some)), "official_clean"),
    ):
        for split in make_splits(Dataset(changed, ("a", "b"), INFO), protocol, folds=None):
            assert "4 labelled images have no side or fold and are not used" in split.flags


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
    with pytest.raises(SplitError, match=r"'fixed' needs the sides .* of 'made_up' .*; their sides: none\."):
        make_splits(dataset, "fixed")
    only_train = Dataset(table.assign(split="train", subject=pd.NA, group=pd.NA), ("a", "b"), INFO)
    with pytest.raises(SplitError, match=r"their sides: \['train'\]\."):
        make_splits(only_train, "fixed")
    with pytest.raises(SplitError, match=r"their folds: none; their sides: \['train'\]\."):
        default_protocol(only_train)


def test_fixed_without_subjects_is_allowed_and_says_so() -> None:
    table = cohort({"a": [9], "b": [9]}).table
    sides = np.where(np.arange(18) % 3 == 0, "test", "train")
    table = table.assign(split=sides, subject=None, group=None)
    split = make_splits(Dataset(table, ("a", "b"), INFO), "fixed")[0]
    assert split.guarantees == ("content-disjoint", "test-is-not-val")
    assert split.flags == ("patients unknown: one may be on several sides",)
    with pytest.raises(SplitError, match='protocol="fixed" with sides train and test'):
        make_splits(Dataset(table, ("a", "b"), INFO), "kfold")


def test_preliminary_and_final_stay_out_of_everything_else() -> None:
    dataset = with_folds(cohort({"a": [2] * 15, "b": [2] * 15}))
    number = dataset.table["subject"].str[1:].astype(int)
    split = np.select([number < 9, number < 12], ["train", "preliminary"], "final")
    dataset = Dataset(dataset.table.assign(split=split), ("a", "b"), INFO)
    outside = set(np.flatnonzero(number >= 9))
    for protocol in ("official", "official_clean", "published_v1", "kfold", "holdout", "random"):
        for one in make_splits(dataset, protocol, allow_leakage=True):
            assert not outside & set(np.concatenate([one.train, one.val, one.test])), protocol
    one = make_splits(dataset, "preliminary")[0]
    assert_clean(dataset, one)
    assert set(one.test) == set(np.flatnonzero((number >= 9) & (number < 12)))
    assert len(one.train) + len(one.val) == 36
    with pytest.raises(SplitError, match="'preliminary' needs the training part and labelled preliminary images"):
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
        with pytest.raises(SplitError, match=r"at least 3 groups .* of each class .* are 2 of 'a'.*Add"):
            make_splits(few, protocol)
    with pytest.raises(SplitError, match=r"at least 3 different images of each class .* are 2 of 'b'"):
        make_splits(content_of(cohort({"a": [9], "b": [3]}), b0_0="same", b0_1="same"), "random", allow_leakage=True)
    blank = {f"a{number}_0": "blank" for number in range(8)}
    joined = content_of(cohort({"a": [2] * 9, "b": [2] * 9}), **blank)
    with pytest.raises(SplitError, match=r"groups that share no file or cell of each class .* are 2 of 'a'"):
        make_splits(joined, "holdout")
    with pytest.raises(
        SplitError,
        match="needs at least 2 groups that share no file or cell of each class among",
    ):
        make_splits(with_folds(cohort({"a": [2] * 3, "b": [2] * 9}), folds=2), "official", folds=[0])
    table = with_folds(cohort({"a": [2] * 9, "b": [2] * 9})).table
    moved = table.assign(fold=table["fold"].mask((table["label"] == "a") & (table["fold"] == 1), 0))
    one_class = Dataset(moved, ("a", "b"), INFO)
    with pytest.raises(SplitError, match=r"\(fold 1\) leaves the test side of 'made_up' without images of class 'a'"):
        make_splits(one_class, "official", folds=[1])


def test_official_needs_folds_and_protocols_need_their_name() -> None:
    dataset = cohort({"a": [2] * 9, "b": [2] * 9})
    with pytest.raises(SplitError, match=r"two folds .*`fold`\)\. .*; their folds: none.*protocol=\"kfold\""):
        make_splits(dataset, "official_clean")
    with pytest.raises(UnknownNameError, match=r"no protocol 'k_fold'. Did you mean 'kfold'"):
        make_splits(dataset, "k_fold")


@pytest.mark.parametrize("protocol", ["official_clean", "kfold"])
def test_without_folds_and_patients_the_ways_out_are_named(protocol: str) -> None:
    table = cohort({"a": [2] * 9, "b": [2] * 9}).table.assign(subject=None, group=None)
    with pytest.raises(SplitError) as caught:
        make_splits(Dataset(table, ("a", "b"), INFO), protocol)
    message = str(caught.value)
    assert 'With a column `subject` (Dataset.from_csv) take protocol="kfold"' in message
    assert message.endswith('protocol="random", allow_leakage=True (--protocol random --allow-leakage).')


def test_patients_that_are_known_are_kept_apart_although_others_are_not() -> None:
    dataset = cohort({"a": [3] * 9, "b": [3] * 9})
    table = dataset.table.assign(split=["train", "train", "test"] * 18)
    table.loc[0, ["subject", "group"]] = pd.NA
    split = make_splits(Dataset(table, dataset.class_names, INFO), "fixed")[0]
    train, val = (set(table["subject"].iloc[side].dropna()) for side in (split.train, split.val))
    assert not train & val
    assert split.leaked["groups"] == 35  # 18 patients with two training images and one test image, one row unknown
    assert "35 images outside the test side share their group with another side" in split.flags
    assert "group-disjoint" not in split.guarantees
