"""Few-shot splits: the training side of a split reduced to a few patients of each class."""

from dataclasses import replace

import numpy as np
import pandas as pd

from leukemia_dl import identity
from leukemia_dl.datasets.dataset import Dataset
from leukemia_dl.datasets.splits import Split, count_images
from leukemia_dl.errors import SplitError


def few_shot(dataset: Dataset, split: Split, shots: int, seed: int) -> Split:
    """Return a split with `shots` patients of each class on its training side, images where patients are unknown.

    They are drawn by the seed; those of fewer shots are among those of more. A patient belongs to the class of most of
    its images; SplitError if a class then has none. One with fewer patients keeps them all, and a flag says so.
    """
    table, classes, unit = dataset.table, len(dataset.class_names), "patients" if dataset.has_subjects else "images"
    names = table["group" if dataset.has_subjects else "sample"].iloc[split.train]
    units = pd.factorize(names, sort=True)[0]  # the order of rows does not count
    counts, codes = count_images(dataset.labels[split.train], units, classes)
    order = identity.generator(seed, "shots", split.digest).permutation(len(counts))
    of_class = [order[counts[order].argmax(axis=1) == code][:shots] for code in range(classes)]
    train = split.train[np.isin(codes, np.concatenate(of_class))]
    train.flags.writeable = False
    found = {name: len(one) for name, one in zip(dataset.class_names, of_class, strict=True)}
    if lost := [name for name, there in zip(found, counts.sum(axis=0), strict=True) if there and not found[name]]:
        raise SplitError(f"No patients of {split.protocol} are mostly of class {', '.join(lost)}: use no shots.")
    fewer = ", ".join(f"{count} of {name}" for name, count in found.items() if count < shots)
    flags = [f"training {unit} of each class: {shots}, drawn" + f" (there are only {fewer})" * bool(fewer)]
    flags += [flag for flag in split.flags if not flag.startswith("train: ")]
    kept, numbers = counts[np.concatenate(of_class)], split.counts()
    train_rows = numbers.index.get_level_values("side") == "train"
    images, groups = kept.sum(axis=0), np.sign(kept).sum(axis=0)
    numbers.loc[train_rows, "images"] = images
    if dataset.has_subjects:
        numbers.loc[train_rows, "groups"] = groups
        numbers.loc[train_rows, "effective_groups"] = images**2 / np.maximum((kept**2).sum(axis=0), 1)
    samples = table["sample"].to_numpy()
    sides = {"train": train, "val": split.val, "test": split.test}
    digest = identity.digest({side: sorted(samples[rows]) for side, rows in sides.items()})
    return replace(
        split, protocol=f"{split.protocol}-{shots}shot", train=train, digest=digest, flags=tuple(flags),
        _counts=numbers, shots=shots, seed=seed,
    )  # fmt: skip
