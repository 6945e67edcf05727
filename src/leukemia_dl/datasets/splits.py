"""Splits into training, validation and test rows: the protocols, how each draws, and the checks of each split."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from leukemia_dl import identity
from leukemia_dl.checks import flag, whole_number
from leukemia_dl.datasets.dataset import Dataset
from leukemia_dl.errors import SettingsError, SplitError, unknown_name_error

GROUP_DISJOINT, CONTENT_DISJOINT, TEST_IS_NOT_VAL = "group-disjoint", "content-disjoint", "test-is-not-val"
# With fewer groups of a class, or a lower effective number of them, a side is flagged: its values are of few patients.
FEW_GROUPS, FEW_EFFECTIVE = 5, 3.0
_DEALS, _MOST_DEALT = 1_000, 1_000_000  # random assignments of groups to sides, and groups in all of them
IntArray = NDArray[np.int64]
_Draws = dict[int | None, tuple[IntArray, IntArray, IntArray | None]]  # fold: train, test, val
_WAYS_OUT = (
    'With a column `subject` (Dataset.from_csv) take protocol="kfold", or protocol="fixed" with sides train and test. '
    'Or accept a patient on several sides: protocol="random", allow_leakage=True (--protocol random --allow-leakage).'
)
_NEEDS = {
    "folds": "at least two folds that the authors of a data set give (a column `fold`)",
    "patients": "to know the patient of each image",
    "preliminary": "the training part and labelled preliminary images, as in all of C-NMC 2019",
    "sides": "the sides that a data set comes with (its folders, or a column `split`), at least train and test",
}


class Protocol(NamedTuple):
    """One row of the table of protocols."""

    test: str  # the test sides: official folds, the preliminary set, drawn folds, a drawn side, or the given sides
    needs: tuple[str, ...] = ()  # keys of `_NEEDS`
    guaranteed: tuple[str, ...] = ()  # enforced by dropping training images whose unit is on the test side
    folds: bool = False
    val_is_test: bool = False


_BOTH = (GROUP_DISJOINT, CONTENT_DISJOINT)
PROTOCOLS = {
    "official": Protocol("official", ("folds", "patients"), folds=True),
    "official_clean": Protocol("official", ("folds", "patients"), _BOTH, folds=True),
    "preliminary": Protocol("preliminary", ("patients", "preliminary"), _BOTH),
    "kfold": Protocol("kfold", ("patients",), _BOTH, folds=True),
    "holdout": Protocol("holdout", ("patients",), _BOTH),
    "fixed": Protocol("fixed", ("sides",)),
    "random": Protocol("holdout", (), (CONTENT_DISJOINT,)),
    "published_v1": Protocol("official", ("folds", "patients"), folds=True, val_is_test=True),
}
"""The protocols by their names; `make_splits` explains them."""


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """One division of a data set's rows.

    Attributes:
        protocol: The protocol that made it.
        fold: Which fold is the test side; None for protocols without folds.
        train: Row numbers, int64, sorted, read-only.
        val: Row numbers that are watched, and never trained on.
        test: Row numbers that are looked at once.
        guarantees: Properties that were verified: `"group-disjoint"` (no group, so no patient, on two sides),
            `"content-disjoint"` (no identical files on two sides), `"test-is-not-val"`.
        dropped: Training images left out because their group, or their content, is on the test side.
        leaked: How many images outside the test side share an identical file (`files`), a known cell or such a file
            (`cells`), or a group (`groups`; None if not known) with another side.
        flags: Notes for readers of the results, such as a side with few patients.
        digest: SHA-256 of sample ids and sides, in any order of the rows.
        repeat: Which repetition of `kfold` the fold is of, from 0; None for other protocols.
        shots: Patients of each class on the training side, drawn by `seed`; None for all.
    """

    protocol: str
    fold: int | None
    train: IntArray
    val: IntArray
    test: IntArray
    guarantees: tuple[str, ...]
    dropped: int
    leaked: dict[str, int | None]
    flags: tuple[str, ...]
    digest: str
    _counts: pd.DataFrame
    repeat: int | None = None
    shots: int | None = None
    seed: int | None = None

    def __repr__(self) -> str:
        fold = "" if self.fold is None else f" fold {self.fold}"
        sides = ", ".join(f"{side} {len(getattr(self, side)):,}" for side in ("train", "val", "test"))
        return f"<Split {self.protocol!r}{fold}: {sides}; {', '.join(self.guarantees) or 'no guarantees'}>"

    def counts(self) -> pd.DataFrame:
        """Return a row per side and class (the index): images and groups, int64, and Kish's effective number of groups.

        The effective number of groups of n images is (sum n)^2 / sum n^2: fewer than there are if sizes are unequal.
        """
        return self._counts.copy()


def make_splits(
    dataset: Dataset, protocol: str | None = None, folds: Sequence[int] | str | None = None, seed: int = 0,
    allow_leakage: bool = False, n_folds: int | None = None, n_repeats: int = 1,
) -> list[Split]:  # fmt: skip
    """Return the splits of a data set: a `Split` per fold, or one whose `fold` is None for a protocol without folds.

    The same seed and table give the same splits, in any order of the rows. UnknownNameError or SettingsError for
    a wrong argument, SplitError if the data set lacks what a protocol needs. Protocols, on labelled samples
    only (C-NMC's preliminary images enter only `preliminary`, its final ones none):

    - `official`: each official fold as test side in turn, as published, also where linked patients are separated.
    - `official_clean`: the same, without the training images of a group that is on the test side.
    - `preliminary`: train on the training part, test on the preliminary set.
    - `kfold`: drawn, stratified by class; 5 folds if there are 25 groups of each class, else 3, or `n_folds`.
    - `holdout`: one drawn test side of about a fifth.
    - `fixed`: the sides that the data set itself gives (column `split`).
    - `random`: image by image, identical files together. Patients are on several sides: `allow_leakage` must say yes.
    - `published_v1`: the published habit: train on the other folds, val IS test.

    Where a protocol gives no val side, a fifth of the training groups of each class is drawn, and at least five where
    there are ten. Sides are drawn by `assign_groups`, at random, with images and groups in balance.

    Args:
        dataset: The data set to split.
        protocol: None for `official_clean` with official folds, else `fixed` with sides, else `kfold`.
        folds: Which to test on; `"all"`; None for `dataset.info.test_fold` of official folds, if any, else all.
        seed: Of everything that is drawn.
        allow_leakage: Needed for `random`.
        n_folds: Number of folds to draw, for `kfold` only.
        n_repeats: How often to draw them anew, for `kfold` only; fold numbers go on.
    """
    seed, n_repeats = whole_number("seed", seed), whole_number("n_repeats", n_repeats, 1)
    protocol = default_protocol(dataset) if protocol is None else protocol
    if protocol not in list(PROTOCOLS):
        raise unknown_name_error("protocol", protocol, PROTOCOLS)
    if protocol != "kfold" and (n_folds is not None or n_repeats != 1):
        raise SettingsError(f"n_folds and n_repeats are for protocol='kfold'. Received: {n_folds=}, {n_repeats=}.")
    n_folds = None if n_folds is None else whole_number("n_folds", n_folds, 2)
    if not flag("allow_leakage", allow_leakage) and protocol == "random":
        raise SplitError(
            "Protocol 'random' puts images of one patient on several sides: results look better than they are. If you "
            "accept that, add allow_leakage=True (command line: --allow-leakage); 'kfold' keeps patients apart."
        )
    context, needs = SplitContext(dataset, protocol, seed), PROTOCOLS[protocol].needs
    if missing := [need for need in needs if not context.has[need]]:
        raise SplitError(f"Protocol {protocol!r} needs {_NEEDS[missing[0]]}. {context.facts} {_WAYS_OUT}")
    drawn = _draw(context, n_folds, n_repeats)
    chosen: list[int | None] = list(drawn)
    if folds is None and "folds" in needs and dataset.info.test_fold in drawn:
        chosen = [dataset.info.test_fold]
    elif folds is not None and not (isinstance(folds, str) and folds == "all"):
        chosen = list(identity.whole_numbers(folds) or [])
        if not chosen or len(set(chosen) & set(drawn)) != len(chosen):
            if list(drawn) == [None]:
                raise SettingsError(f"Protocol {protocol!r} has no folds: leave `folds` out. Received: {folds!r}.")
            there = ", ".join(map(str, drawn))
            raise SettingsError(f'`folds` is "all" or some of {there}, each once. Received: {folds!r}.')
    made = [_checked(context, fold, *drawn[fold]) for fold in chosen]
    repeats = {fold: number * n_repeats // len(drawn) for number, fold in enumerate(drawn)}
    return [replace(one, repeat=repeats[one.fold]) for one in made] if protocol == "kfold" else made


def default_protocol(dataset: Dataset) -> str:
    """Return the protocol that follows from official folds, sides, or patients, in this order; else SplitError."""
    context = SplitContext(dataset, "fixed")
    for need, protocol in (("folds", "official_clean"), ("sides", "fixed"), ("patients", "kfold")):
        if context.has[need]:
            return protocol
    raise SplitError(f"Which protocol to take does not follow from the data. {context.facts} {_WAYS_OUT}")


class SplitContext:
    """The labelled rows that a protocol may use, sorted by sample id, so that nothing depends on the rows' order."""

    def __init__(self, dataset: Dataset, protocol: str, seed: int = 0) -> None:
        self.name, self.class_names, self.protocol, self.seed = dataset.info.name, dataset.class_names, protocol, seed
        table = dataset.table.assign(row=np.arange(len(dataset)), label=dataset.labels, content=dataset.content_hashes)
        outside = ["final"] if protocol == "preliminary" else ["final", "preliminary"]
        table = table[(table["label"] >= 0) & ~table["split"].isin(outside).fillna(False).astype(bool)]
        if not len(table):
            raise SplitError(f"The data set {self.name!r} has no labelled samples for protocol {protocol!r}.")
        self.table = table.sort_values("sample", ignore_index=True)
        self.labels = self.table["label"].to_numpy(np.int64)
        self.everything = np.arange(len(self.table))
        self.unknown = int(self.table["group"].isna().sum())
        self.fold = self.table["fold"].to_numpy(np.float64, na_value=np.nan)
        self.given = self.table["split"].fillna("").to_numpy(object)
        self.folds = sorted(int(fold) for fold in self.table["fold"].dropna().unique())
        sides = set(self.given)
        self.has = {"folds": len(self.folds) > 1, "patients": self.unknown == 0}
        self.has |= {"preliminary": sides > {"preliminary"}, "sides": sides >= {"train", "test"}}
        self.facts = f"Of the {len(self.table):,} labelled samples of {self.name!r} {self.unknown:,} have no subject; "
        self.facts += f"their folds: {self.folds or 'none'}; their sides: {sorted(sides - {''}) or 'none'}."
        alone = " " + self.table["sample"]
        # Equal numbers: byte-identical files; files that are known to show one cell; images of a group.
        columns = (self.table[name].fillna(alone).astype(object) for name in ("content", "same_cell", "group"))
        self.contents, cells, self.groups = (pd.factorize(column, sort=True)[0] for column in columns)
        self.cells = _components(self.contents, cells)
        self.codes = (self.contents, self.cells, self.groups)
        # Images that are never separated: groups, joined where they share files or cells; else identical files.
        by_content = protocol == "random" or self.unknown == len(self.table)
        self.units = self.contents if by_content else _components(self.groups, self.cells)

    def units_per_class(self, positions: IntArray) -> IntArray:
        """Return how many different units each class has among some positions."""
        counts, _ = count_images(self.labels[positions], self.units[positions], len(self.class_names))
        return np.asarray((counts > 0).sum(axis=0))

    def require_units(self, positions: IntArray, needed: int) -> None:
        """Raise SplitError unless each class has `needed` units among some positions."""
        counts = self.units_per_class(positions)
        worst = int(counts.argmin())
        if counts[worst] < needed:
            unit = "different images" if self.units is self.contents else "groups that share no file or cell"
            raise SplitError(
                f"Protocol {self.protocol!r} needs at least {needed} {unit} of each class among {len(positions):,} "
                f"images: there are {counts[worst]} of {self.class_names[worst]!r}. Add images, or leave the class out."
            )

    def parts(self, positions: IntArray, n: int, *names: str | int) -> list[tuple[IntArray, IntArray]]:
        """Cut positions into n class-stratified folds of whole units: pairs of (rest, fold)."""
        rng = identity.generator(self.seed, "split", self.protocol, *names)
        sides = draw_folds(self.labels[positions], self.units[positions], n, rng)
        return [(positions[sides != fold], positions[sides == fold]) for fold in range(n)]

    def holdout(self, positions: IntArray, *names: str | int) -> tuple[IntArray, IntArray]:
        """Take a fifth of the units of each class among some positions: (rest, fifth).

        Of a class with ten groups or more, the val side gets at least five; the test side gets at least five, or a
        third of a class with fewer than 15.
        """
        self.require_units(positions, 2)
        rng = identity.generator(self.seed, "split", self.protocol, *names)
        counts, codes = count_images(self.labels[positions], self.units[positions], len(self.class_names))
        of_class = np.bincount(counts.argmax(axis=1), minlength=len(self.class_names))
        least = np.where(of_class >= 2 * FEW_GROUPS, FEW_GROUPS, 1) if names[0] == "val" else of_class // 3
        least = np.clip(least, 1, 1 if self.units is self.contents else FEW_GROUPS)
        taken = np.clip(np.round(of_class / 5).astype(np.int64), least, np.maximum(of_class - 1, 0))
        numbers = np.stack([of_class - taken, taken], axis=1)
        # The most even of many deals would hardly ever hold out the largest groups.
        inside = assign_groups(counts, numbers, numbers / np.maximum(of_class, 1)[:, None], rng, among=10)[codes] == 1
        return positions[~inside], positions[inside]


def count_images(labels: IntArray, units: IntArray, classes: int) -> tuple[IntArray, IntArray]:
    """Return the images (units, classes) of each unit and class, and the row there of each image's unit (images,)."""
    found, codes = np.unique(units, return_inverse=True)
    counts = np.bincount(codes * classes + labels, minlength=len(found) * classes)
    return counts.reshape(len(found), classes), codes


def draw_folds(labels: IntArray, units: IntArray, n: int, rng: np.random.Generator) -> IntArray:
    """Return the fold of each image (images,), from 0 to `n` - 1: whole units, balanced by class."""
    counts, codes = count_images(labels, units, int(labels.max()) + 1)
    of_class = np.bincount(counts.argmax(axis=1), minlength=counts.shape[1])
    numbers = np.array([rng.permutation(count // n + (np.arange(n) < count % n)) for count in of_class])
    return assign_groups(counts, numbers, np.full(numbers.shape, 1 / n), rng)[codes]


def assign_groups(
    counts: IntArray, numbers: IntArray, shares: ArrayLike, rng: np.random.Generator, among: int = _DEALS
) -> IntArray:
    """Return the side of each group (groups,): the best of up to 1,000 random deals.

    Groups are dealt within their most frequent class. In the best deals the fewest classes are missing on a side; among
    these, the fewest have an effective number of groups below 3 on one. Of the first `among` such deals, the one is
    taken whose images are the most even.

    `counts` are images (groups, classes), `numbers` how many groups of a class each side gets, and `shares` the share
    of its images that each side should get (classes, sides).
    """
    draws = int(np.clip(_MOST_DEALT // len(counts), 1, _DEALS))
    main, sides = counts.argmax(axis=1), numbers.shape[1]
    deals = np.zeros((draws, len(counts)), np.int64)
    for code, of_class in enumerate(numbers):
        dealt = np.tile(np.repeat(np.arange(sides), of_class), (draws, 1))
        deals[:, main == code] = rng.permuted(dealt, axis=1)
    cells = (deals + sides * np.arange(draws)[:, None]).ravel()

    def summed(values: IntArray) -> IntArray:
        columns = [np.bincount(cells, np.tile(column, draws), draws * sides) for column in values.T]
        return np.stack(columns, axis=1).reshape(draws, sides, -1).astype(np.int64)

    images, squares = summed(counts), summed(counts**2)
    effective = images**2 / np.maximum(squares, 1)
    wanted = (np.asarray(shares) * counts.sum(axis=0)[:, None]).T
    uneven = np.abs(images / np.maximum(wanted, 1) - 1).max(axis=(1, 2))
    owned, missing = (found.sum(axis=(1, 2)) for found in (effective < FEW_EFFECTIVE, images == 0))
    faults = missing * counts.size + owned
    best = np.flatnonzero(faults == faults.min())[:among]
    return np.asarray(deals[best[uneven[best].argmin()]])


def _draw(context: SplitContext, n_folds: int | None, n_repeats: int) -> _Draws:
    """Return (train, test, val) of each fold before anything is dropped; val None: it is drawn from train later."""
    kind, everything, given = PROTOCOLS[context.protocol].test, context.everything, context.given
    if kind == "official":
        inside = everything[~np.isnan(context.fold)]
        of = context.fold[inside]
        return {fold: (inside[of != fold], inside[of == fold], None) for fold in context.folds}
    if kind == "fixed":
        train, val, test = (everything[given == side] for side in ("train", "val", "test"))
        return {None: (train, test, val if len(val) else None)}
    if kind == "preliminary":
        return {None: (everything[given != kind], everything[given == kind], None)}
    n = n_folds or (5 if context.units_per_class(everything).min() >= 5 * FEW_GROUPS else 3)
    context.require_units(everything, max(n, 3) if kind == "kfold" else 3)
    if kind == "holdout":
        return {None: (*context.holdout(everything, "test"), None)}
    names = [("test", repeat) if repeat else ("test",) for repeat in range(n_repeats)]
    cuts = [cut for of_repeat in names for cut in context.parts(everything, n, *of_repeat)]
    return {fold: (*cut, None) for fold, cut in enumerate(cuts)}


def _checked(context: SplitContext, fold: int | None, drawn: IntArray, test: IntArray, val: IntArray | None) -> Split:
    """Apply the rules of the protocol, draw the val side where there is none, verify everything, return rows."""
    rules, train = PROTOCOLS[context.protocol], drawn
    if rules.guaranteed:
        train = train[~np.isin(context.units[train], context.units[test])]
    dropped = len(drawn) - len(train)
    if rules.val_is_test:
        val = test
    elif val is None:
        train, val = context.holdout(train, "val", -1 if fold is None else fold)
    sides = {"train": train, "val": val, "test": test}
    counts = _count(context, sides, fold)
    files, cells, groups = (_shared(codes, sides, rules.val_is_test) for codes in context.codes)
    known = context.unknown < len(context.table)
    held = {CONTENT_DISJOINT: not files, GROUP_DISJOINT: not groups and not context.unknown}
    held |= {TEST_IS_NOT_VAL: not rules.val_is_test}
    if broken := [name for name in rules.guaranteed if not held[name]]:
        raise SplitError(f"Protocol {context.protocol!r} made a split that is not {broken[0]}: please report this.")
    unused = len(np.setdiff1d(context.everything, np.concatenate([drawn, test, val])))
    unknown = f" of {context.unknown:,} of {len(context.table):,} images" if known else ""
    notes = {
        "val is test": rules.val_is_test,
        f"{groups:,} images outside the test side share their group with another side": groups and known,
        f"{files:,} images outside the test side share their content with another side": files,
        f"{cells:,} images outside the test side show a cell that another side shows too": cells,
        f"patients unknown{unknown}: one may be on several sides": context.unknown,
        f"{unused:,} labelled images have no side or fold and are not used": unused,
        f"{dropped:,} training images dropped: their group or content is on the test side": dropped,
    }
    flags = [note for note, holds in notes.items() if holds]
    if not context.unknown:
        for row in counts.reset_index().to_dict("records"):
            if row["groups"] < FEW_GROUPS:
                flags.append(f"{row['side']}: few groups of class {row['class']} ({row['groups']})")
            elif row["effective_groups"] < FEW_EFFECTIVE:
                owned = f"{row['groups']} groups, effective number {row['effective_groups']:.1f}"
                flags.append(f"{row['side']}: most images of class {row['class']} are of few patients ({owned})")
    samples, numbers = context.table["sample"], context.table["row"].to_numpy(np.int64)
    train, val, test = (np.sort(numbers[positions]) for positions in sides.values())
    for rows in (train, val, test):
        rows.flags.writeable = False
    leaked = {"files": files, "cells": cells, "groups": groups if known else None}
    digest = identity.digest({side: sorted(samples[positions]) for side, positions in sides.items()})
    guarantees = tuple(name for name, holds in held.items() if holds)
    return Split(context.protocol, fold, train, val, test, guarantees, dropped, leaked, tuple(flags), digest, counts)


def _count(context: SplitContext, sides: dict[str, IntArray], fold: int | None) -> pd.DataFrame:
    """Return images and groups per side and class. Raises SplitError if a side lacks a class."""
    index = pd.MultiIndex.from_product([sides, context.class_names], names=["side", "class"])
    labels, codes, classes = context.labels, context.groups, len(context.class_names)
    tables = [count_images(labels[rows], codes[rows], classes)[0] for rows in sides.values()]
    images, groups, squares = (
        np.concatenate([how(table).sum(axis=0) for table in tables]) for how in (np.array, np.sign, np.square)
    )
    effective = images**2 / np.maximum(squares, 1)
    counts = pd.DataFrame({"images": images, "groups": groups, "effective_groups": effective}, index)
    for side, name in counts.index[counts["images"] == 0]:
        raise SplitError(
            f"Protocol {context.protocol!r}{'' if fold is None else f' (fold {fold})'} leaves the {side} side of "
            f"{context.name!r} without images of class {name!r}. Add some, choose another fold, or leave the class out."
        )
    return counts


def _shared(codes: IntArray, sides: dict[str, IntArray], val_is_test: bool) -> int:
    """Return how many images outside the test side have a code that is on another side too."""
    train, val, test = (codes[positions] for positions in sides.values())
    return int(np.isin(train, np.concatenate([val, test])).sum() + (0 if val_is_test else np.isin(val, test).sum()))


def _components(first: IntArray, second: IntArray) -> IntArray:
    """Return equal numbers for rows that are linked by equal numbers in either array, directly or through others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    shift = int(first.max()) + 1
    graph = coo_array((np.ones(len(first)), (first, second + shift)), shape=(shift + int(second.max()) + 1,) * 2)
    parts: IntArray = connected_components(graph, directed=False)[1].astype(np.int64)
    return parts[first]
