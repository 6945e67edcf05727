"""The rules by which rows come to sides: what each protocol takes, draws and refuses. `splits` checks the outcome.

Everything is drawn in units: the groups of the data set, joined where two of them hold byte-identical files. So a drawn
split keeps groups AND contents apart by construction.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl import identity
from leukemia_dl.datasets.dataset import Dataset
from leukemia_dl.errors import SplitError

__all__ = [
    "CONTENT_DISJOINT", "FEW_GROUPS", "GROUP_DISJOINT", "LEAK", "ON_FOLDS", "PROTOCOLS", "WITH_FOLDS", "Draft",
    "IntArray", "Pool", "default_protocol",
]  # fmt: skip

GROUP_DISJOINT = "group-disjoint"
CONTENT_DISJOINT = "content-disjoint"
FEW_GROUPS = 5
"""With fewer groups of a class than this, a side is flagged: its figures hang on a handful of patients."""
LEAK = 'protocol="random", allow_leakage=True (command line: --protocol random --allow-leakage)'
ON_FOLDS = ("official", "official_clean", "published_v1")
WITH_FOLDS = (*ON_FOLDS, "kfold")
_UNGROUPED = ("fixed", "random")
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Draft:
    """Positions in the pool; `val` None: still to be drawn from train."""

    fold: int | None
    train: IntArray
    test: IntArray
    val: IntArray | None = None
    dropped: int = 0
    promised: tuple[str, ...] = ()


class Pool:
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
        self.grouped = bool(len(table)) and bool(self.table["group"].notna().all())
        if not len(table):
            raise SplitError(
                f"The data set {self.name!r} has no labelled samples for protocol {protocol!r}. Its final test images, "
                "if any, have no labels and can only be predicted."
            )
        without_folds = protocol in ON_FOLDS and bool(self.table["fold"].isna().all())  # said by the protocol itself
        if protocol not in _UNGROUPED and not without_folds:
            self._require_groups()

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
        """What is never cut: groups, joined where they share cells or files; without groups, identical files."""
        by_content = self.protocol == "random" or bool(self.table["group"].isna().all())
        return self.contents if by_content else _components(self.groups, self.cells)

    def _require_groups(self) -> None:
        """Refuse to treat an image as a patient."""
        missing = int(self.table["group"].isna().sum())
        if not missing:
            return
        raise SplitError(
            f"Protocol {self.protocol!r} needs to know the patients, and {missing:,} of the {len(self.table):,} "
            f"labelled samples of {self.name!r} have no subject. {self.ways_out()}"
        )

    def ways_out(self) -> str:
        """Return which protocols there are for data without official folds, or with patients that are not known."""
        if self.grouped:
            return 'Its patients are known: choose protocol="kfold" or "holdout" (command line: --protocol kfold).'
        sided = {"train", "test"} <= set(self.table["split"].dropna())
        own = " Or take the sides that it comes with, protocol='fixed' (--protocol fixed)." if sided else ""
        return (
            "If you know the patient of each image, write a table with the columns path, label and `subject` "
            '(Dataset.from_csv; command line: --dataset csv) and choose protocol="kfold" (--protocol kfold).'
            f"{own} If you do not, accept images of one patient on several sides: {LEAK}."
        )

    def rows(self, mask: NDArray[np.bool_]) -> IntArray:
        """Return the positions where `mask` is True."""
        return np.flatnonzero(mask).astype(np.int64)

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

    def drawn(self, positions: IntArray, *names: str | int) -> tuple[IntArray, IntArray]:
        """Take about a fifth of some positions, in whole units: (rest, fifth)."""
        self.require_units(positions, 2, "that are left to train on and to watch")
        if self.units is self.contents:
            return self._drawn_images(positions, *names)
        cuts = self.parts(positions, min(5, int(self.units_per_class(positions).min())), *names)
        return max(cuts, key=lambda cut: min(FEW_GROUPS, *(self.units_per_class(side).min() for side in cut)))

    def _drawn_images(self, positions: IntArray, *names: str | int) -> tuple[IntArray, IntArray]:
        """Do the same for units of one image or a few: of each class a fifth, and at least one."""
        rng = identity.generator(self.seed, "split", self.protocol, *names)
        units, first = np.unique(self.units[positions], return_index=True)
        labels = self.labels[positions[first]]
        of_class = [rng.permutation(units[labels == label]) for label in range(len(self.class_names))]
        taken = np.concatenate([members[: max(1, round(len(members) / 5))] for members in of_class])
        inside = np.isin(self.units[positions], taken)
        return positions[~inside], positions[inside]

    def without(self, train: IntArray, test: IntArray) -> IntArray:
        """Return the positions of `train` whose unit is not in `test`."""
        return train[~np.isin(self.units[train], self.units[test])]


def _official(pool: Pool) -> Iterator[Draft]:
    for fold, train, test in _given_folds(pool):
        yield Draft(fold, train, test)


def _official_clean(pool: Pool) -> Iterator[Draft]:
    for fold, train, test in _given_folds(pool):
        kept = pool.without(train, test)
        yield Draft(fold, kept, test, dropped=len(train) - len(kept), promised=(GROUP_DISJOINT, CONTENT_DISJOINT))


def _published_v1(pool: Pool) -> Iterator[Draft]:
    for fold, train, test in _given_folds(pool):
        yield Draft(fold, train, test, val=test)


def _preliminary(pool: Pool) -> Iterator[Draft]:
    testing = pool.table["split"].eq("preliminary").fillna(False).to_numpy(bool)
    if not testing.any() or testing.all():
        raise SplitError(
            "Protocol 'preliminary' trains on the training part and tests on labelled preliminary images; "
            f"{pool.name!r} has {'only' if testing.any() else 'none of'} these. "
            "Load all of C-NMC, or choose another protocol."
        )
    train, test = pool.rows(~testing), pool.rows(testing)
    kept = pool.without(train, test)
    yield Draft(None, kept, test, dropped=len(train) - len(kept), promised=(GROUP_DISJOINT, CONTENT_DISJOINT))


def _kfold(pool: Pool) -> Iterator[Draft]:
    everything = np.arange(len(pool.labels))
    fewest = int(pool.units_per_class(everything).min())
    n = pool.n_folds or (5 if fewest >= 5 * FEW_GROUPS else 3)
    pool.require_units(everything, max(n, 3), f"for {n} folds, each with a train, a val and a test side")
    for repeat in range(pool.n_repeats):
        names = ("test", repeat) if repeat else ("test",)
        for fold, (train, test) in enumerate(pool.parts(everything, n, *names)):
            yield Draft(repeat * n + fold, train, test, promised=(GROUP_DISJOINT, CONTENT_DISJOINT))


def _holdout(pool: Pool) -> Iterator[Draft]:
    everything = np.arange(len(pool.labels))
    pool.require_units(everything, 3, "for a train, a val and a test side")
    train, test = pool.drawn(everything, "test")
    yield Draft(None, train, test, promised=(GROUP_DISJOINT, CONTENT_DISJOINT))


def _random(pool: Pool) -> Iterator[Draft]:
    everything = np.arange(len(pool.labels))
    pool.require_units(everything, 3, "for a train, a val and a test side")
    train, test = pool.drawn(everything, "test")
    yield Draft(None, train, test, promised=(CONTENT_DISJOINT,))


def _fixed(pool: Pool) -> Iterator[Draft]:
    given = {s: pool.rows(pool.table["split"].eq(s).fillna(False).to_numpy(bool)) for s in ("train", "val", "test")}
    if not len(given["train"]) or not len(given["test"]):
        found = ", ".join(sorted(pool.table["split"].dropna().unique())) or "none"
        raise SplitError(
            f"Protocol 'fixed' uses the sides that a data set comes with, at least train and test, and {pool.name!r} "
            f"has {found}. Name them so, by the folders or the column `split`, or have sides drawn: {pool.ways_out()}"
        )
    yield Draft(None, given["train"], given["test"], val=given["val"] if len(given["val"]) else None)


_Protocol = Callable[[Pool], Iterator[Draft]]
PROTOCOLS: dict[str, _Protocol] = {
    "official": _official,
    "official_clean": _official_clean,
    "preliminary": _preliminary,
    "kfold": _kfold,
    "holdout": _holdout,
    "fixed": _fixed,
    "random": _random,
    "published_v1": _published_v1,
}
"""The protocols by their names; `make_splits` says what they are."""


def default_protocol(dataset: Dataset) -> str:
    """Return the protocol that follows from what a data set gives: official folds, sides, or patients, in this order.

    Raises:
        SplitError: If it gives none of them, so that only the user can choose.
    """
    pool = Pool(dataset, "fixed", 0)
    if pool.table["fold"].nunique() > 1:
        return "official_clean"
    if {"train", "test"} <= set(pool.table["split"].dropna()):
        return "fixed"
    if pool.grouped:
        return "kfold"
    unknown = int(pool.table["group"].isna().sum())
    raise SplitError(
        f"How is {pool.name!r} to be split? It has no official folds, no sides train and test, and {unknown:,} of its "
        f"{len(pool.table):,} labelled samples have no subject. {pool.ways_out()}"
    )


def _given_folds(pool: Pool) -> Iterator[tuple[int, IntArray, IntArray]]:
    column = pool.table["fold"]
    numbers = sorted(int(fold) for fold in column.dropna().unique())
    if len(numbers) < 2:
        raise SplitError(
            f"Protocol {pool.protocol!r} is for folds that the authors of a data set give (a column `fold`), at least "
            f"two, and {pool.name!r} has {len(numbers) or 'none'}. {pool.ways_out()}"
        )
    for fold in numbers:
        testing = column.eq(fold).fillna(False).to_numpy(bool)
        yield fold, pool.rows(column.notna().to_numpy(bool) & ~testing), pool.rows(testing)


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
