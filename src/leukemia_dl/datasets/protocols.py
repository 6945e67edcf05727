"""The rules by which rows come to sides, one protocol each; `splits` checks the outcome.

Everything is drawn in units, groups joined where they hold byte-identical files: groups AND contents are kept apart.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl import identity
from leukemia_dl.datasets.dataset import Dataset
from leukemia_dl.errors import SplitError

__all__ = [
    "CONTENT_DISJOINT", "FEW_GROUPS", "GROUP_DISJOINT", "PROTOCOLS", "IntArray", "Protocol", "SplitContext",
    "SplitIndices", "default_protocol",
]  # fmt: skip

GROUP_DISJOINT = "group-disjoint"
CONTENT_DISJOINT = "content-disjoint"
FEW_GROUPS = 5
"""With fewer groups of a class than this, a side is flagged: its figures depend on a handful of patients."""
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class SplitIndices:
    """Positions in the context's table; `val` None: still to be drawn from train."""

    fold: int | None
    train: IntArray
    test: IntArray
    val: IntArray | None = None


@dataclass(frozen=True)
class Protocol:
    """One row of the table of protocols."""

    draw: Callable[[SplitContext], Iterator[SplitIndices]]
    folds: Literal["given", "drawn", ""] = ""  # by whom its folds are made; "" if it has none
    needs_groups: bool = True  # the patient of each image must be known
    clean: bool = False  # training images whose unit is on the test side are dropped
    val_is_test: bool = False
    guaranteed: tuple[str, ...] = ()  # properties that its splits have; otherwise there is a bug


class SplitContext:
    """The labelled rows that a protocol may use, sorted by sample id, so that nothing depends on the rows' order."""

    def __init__(
        self, dataset: Dataset, protocol: str, seed: int, n_folds: int | None = None, n_repeats: int = 1
    ) -> None:
        table = dataset.table.assign(row=np.arange(len(dataset)), code=dataset.labels)
        table["content"] = dataset.content_hashes
        outside = ["final"] if protocol == "preliminary" else ["final", "preliminary"]
        table = table[(table["code"] >= 0) & ~table["split"].isin(outside).fillna(False).astype(bool)]
        self.table = table.sort_values("sample", ignore_index=True)
        self.name, self.protocol, self.seed = dataset.info.name, protocol, seed
        self.n_folds, self.n_repeats = n_folds, n_repeats
        self.class_names = dataset.class_names
        self.labels = self.table["code"].to_numpy(np.int64)
        self.everything = np.arange(len(self.table))
        missing = int(self.table["group"].isna().sum())
        self.grouped = bool(len(table)) and not missing
        if not len(table):
            raise SplitError(
                f"The data set {self.name!r} has no labelled samples for protocol {protocol!r}. Its final test images, "
                "if any, have no labels and can only be predicted."
            )
        rules = PROTOCOLS[protocol]
        without_folds = rules.folds == "given" and bool(self.table["fold"].isna().all())  # an error of its own
        if missing and rules.needs_groups and not without_folds:
            raise SplitError(
                f"Protocol {protocol!r} needs to know the patients, and {missing:,} of the {len(table):,} labelled "
                f"samples of {self.name!r} have no subject. {self.alternatives()}"
            )

    @cached_property
    def contents(self) -> IntArray:
        """Equal numbers for byte-identical files."""
        return _codes(self.table["content"])

    @cached_property
    def cells(self) -> IntArray:
        """Equal numbers for images that are known to show one cell, as byte-identical ones do."""
        return _components(self.contents, _codes(self.table["same_cell"].fillna(" " + self.table["sample"])))

    @cached_property
    def groups(self) -> IntArray:
        """Equal numbers for the images of a group; a sample without group counts as one of its own."""
        return _codes(self.table["group"].fillna(" " + self.table["sample"]))

    @cached_property
    def units(self) -> IntArray:
        """Equal numbers for images that are never separated: groups that share cells or files; else identical files."""
        by_content = self.protocol == "random" or bool(self.table["group"].isna().all())
        return self.contents if by_content else _components(self.groups, self.cells)

    def alternatives(self) -> str:
        """Return which protocols there are for data without official folds, or with patients that are not known."""
        if self.grouped:
            return 'Its patients are known: choose protocol="kfold" or "holdout" (command line: --protocol kfold).'
        sided = {"train", "test"} <= set(self.table["split"].dropna())
        own = " Or take the sides that it comes with, protocol='fixed' (--protocol fixed)." if sided else ""
        return (
            "If you know the patient of each image, write a table with the columns path, label and `subject` "
            '(Dataset.from_csv; command line: --dataset csv) and choose protocol="kfold" (--protocol kfold).'
            f"{own} If you do not, accept images of one patient on several sides: "
            'protocol="random", allow_leakage=True (command line: --protocol random --allow-leakage).'
        )

    def where(self, column: str, value: str | int) -> NDArray[np.bool_]:
        """Return a mask of the rows with a value in a column."""
        return self.table[column].eq(value).fillna(False).to_numpy(bool)

    def units_per_class(self, positions: IntArray, units: IntArray | None = None) -> IntArray:
        """Return how many different units each class has among some positions."""
        units = self.units if units is None else units
        pairs = pd.DataFrame({"label": self.labels[positions], "unit": units[positions]}).drop_duplicates()
        return np.bincount(pairs["label"], minlength=len(self.class_names)).astype(np.int64)

    def require_units(self, positions: IntArray, needed: int, why: str) -> None:
        """Raise unless each class has `needed` units among some positions."""
        counts = self.units_per_class(positions)
        worst = int(counts.argmin())
        if counts[worst] >= needed:
            return
        by_content = self.units is self.contents
        unit = "different images" if by_content else "subjects or groups"
        joined = 0 if by_content else len(np.unique(self.groups)) - len(np.unique(self.units))
        note = f" ({joined} groups were joined, since they share cells or identical files)" if joined else ""
        raise SplitError(
            f"Protocol {self.protocol!r} needs at least {needed} {unit} of each class {why}; {self.name!r} has "
            f"{counts[worst]} of class {self.class_names[worst]!r}{note}. Add images, leave the class out "
            "(Dataset.subset with class_names), or choose another protocol."
        )

    def parts(self, positions: IntArray, n: int, *names: str | int) -> list[tuple[IntArray, IntArray]]:
        """Cut positions into n class-stratified folds of whole units: pairs of (rest, fold)."""
        from sklearn.model_selection import StratifiedGroupKFold

        seed = identity.named_seed(self.seed, "split", self.protocol, *names)
        labels, units = self.labels[positions], self.units[positions]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a small class: we check each side ourselves
            cut = list(StratifiedGroupKFold(n, shuffle=True, random_state=seed).split(labels, labels, units))
        return [(positions[rest], positions[part]) for rest, part in cut]

    def holdout(self, positions: IntArray, *names: str | int) -> tuple[IntArray, IntArray]:
        """Take about a fifth of some positions, in whole units: (rest, fifth)."""
        self.require_units(positions, 2, "that are left to train on and to watch")
        if self.units is self.contents:
            return self._holdout_of_images(positions, *names)
        cuts = self.parts(positions, min(5, int(self.units_per_class(positions).min())), *names)
        return max(cuts, key=lambda cut: min(FEW_GROUPS, *(self.units_per_class(side).min() for side in cut)))

    def _holdout_of_images(self, positions: IntArray, *names: str | int) -> tuple[IntArray, IntArray]:
        """Do the same for units of one image or a few: of each class a fifth, and at least one."""
        rng = identity.generator(self.seed, "split", self.protocol, *names)
        units, first = np.unique(self.units[positions], return_index=True)
        labels = self.labels[positions[first]]
        of_class = [rng.permutation(units[labels == label]) for label in range(len(self.class_names))]
        taken = np.concatenate([members[: max(1, round(len(members) / 5))] for members in of_class])
        inside = np.isin(self.units[positions], taken)
        return positions[~inside], positions[inside]

    def excluding(self, train: IntArray, test: IntArray) -> IntArray:
        """Return the positions of `train` whose unit is not in `test`."""
        return train[~np.isin(self.units[train], self.units[test])]


def _official(context: SplitContext) -> Iterator[SplitIndices]:
    folds = sorted(int(fold) for fold in context.table["fold"].dropna().unique())
    if len(folds) < 2:
        raise SplitError(
            f"Protocol {context.protocol!r} is for folds that the authors of a data set give (a column `fold`), at "
            f"least two, and {context.name!r} has {len(folds) or 'none'}. {context.alternatives()}"
        )
    known = context.table["fold"].notna().to_numpy(bool)
    for fold in folds:
        testing = context.where("fold", fold)
        yield SplitIndices(fold, np.flatnonzero(known & ~testing), np.flatnonzero(testing))


def _preliminary(context: SplitContext) -> Iterator[SplitIndices]:
    testing = context.where("split", "preliminary")
    if not testing.any() or testing.all():
        raise SplitError(
            "Protocol 'preliminary' trains on the training part and tests on labelled preliminary images; "
            f"{context.name!r} has {'only' if testing.any() else 'none of'} these. "
            "Load all of C-NMC, or choose another protocol."
        )
    yield SplitIndices(None, np.flatnonzero(~testing), np.flatnonzero(testing))


def _kfold(context: SplitContext) -> Iterator[SplitIndices]:
    fewest = int(context.units_per_class(context.everything).min())
    n = context.n_folds or (5 if fewest >= 5 * FEW_GROUPS else 3)
    context.require_units(context.everything, max(n, 3), f"for {n} folds, each with a train, a val and a test side")
    for repeat in range(context.n_repeats):
        names = ("test", repeat) if repeat else ("test",)
        for fold, (train, test) in enumerate(context.parts(context.everything, n, *names)):
            yield SplitIndices(repeat * n + fold, train, test)


def _holdout(context: SplitContext) -> Iterator[SplitIndices]:
    context.require_units(context.everything, 3, "for a train, a val and a test side")
    yield SplitIndices(None, *context.holdout(context.everything, "test"))


def _fixed(context: SplitContext) -> Iterator[SplitIndices]:
    train, val, test = (np.flatnonzero(context.where("split", side)) for side in ("train", "val", "test"))
    if not len(train) or not len(test):
        found = ", ".join(sorted(context.table["split"].dropna().unique())) or "none"
        raise SplitError(
            f"Protocol 'fixed' uses the sides that a data set comes with, at least train and test, and "
            f"{context.name!r} has {found}. Name them so, by the folders or the column `split`, or have sides drawn: "
            f"{context.alternatives()}"
        )
    yield SplitIndices(None, train, test, val=val if len(val) else None)


_BOTH = (GROUP_DISJOINT, CONTENT_DISJOINT)
PROTOCOLS = {
    "official": Protocol(_official, folds="given"),
    "official_clean": Protocol(_official, folds="given", clean=True, guaranteed=_BOTH),
    "preliminary": Protocol(_preliminary, clean=True, guaranteed=_BOTH),
    "kfold": Protocol(_kfold, folds="drawn", guaranteed=_BOTH),
    "holdout": Protocol(_holdout, guaranteed=_BOTH),
    "fixed": Protocol(_fixed, needs_groups=False),
    "random": Protocol(_holdout, needs_groups=False, guaranteed=(CONTENT_DISJOINT,)),
    "published_v1": Protocol(_official, folds="given", val_is_test=True),
}
"""The protocols by their names; `make_splits` explains them."""


def default_protocol(dataset: Dataset) -> str:
    """Return the protocol that follows from official folds, sides, or patients, in this order; else SplitError."""
    context = SplitContext(dataset, "fixed", 0)
    if context.table["fold"].nunique() > 1:
        return "official_clean"
    if {"train", "test"} <= set(context.table["split"].dropna()):
        return "fixed"
    if context.grouped:
        return "kfold"
    unknown = int(context.table["group"].isna().sum())
    raise SplitError(
        f"How is {context.name!r} to be split? It has no official folds, no sides train and test, and {unknown:,} of "
        f"its {len(context.table):,} labelled samples have no subject. {context.alternatives()}"
    )


def _codes(column: pd.Series[str]) -> IntArray:
    return np.unique(column.to_numpy(dtype=object), return_inverse=True)[1].astype(np.int64)


def _components(first: IntArray, second: IntArray) -> IntArray:
    """Return equal numbers for rows that are linked by equal numbers in either array, directly or through others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    shift = int(first.max()) + 1
    nodes = shift + int(second.max()) + 1
    graph = coo_array((np.ones(len(first)), (first, second + shift)), shape=(nodes, nodes))
    parts: IntArray = connected_components(graph, directed=False)[1].astype(np.int64)
    return parts[first]
