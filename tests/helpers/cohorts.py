"""Made-up data sets for the tests of splits: subjects, groups and contents, without any files."""

import pandas as pd

from leukemia_dl.datasets import Dataset, DatasetInfo, Split

INFO = DatasetInfo("made_up", "Made up", "none", "nobody", test_fold=2)
CLEAN = ("content-disjoint", "group-disjoint", "test-is-not-val")
DRAWN = ("kfold", "holdout")
SIDES = ("train", "val", "test")


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
