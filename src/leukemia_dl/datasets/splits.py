"""Training, validation and test rows: `make_splits`, and the `Split` that was checked on creation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pandas as pd

from leukemia_dl import identity
from leukemia_dl.checks import flag, whole_number
from leukemia_dl.datasets.dataset import Dataset
from leukemia_dl.datasets.protocols import (
    CONTENT_DISJOINT,
    FEW_GROUPS,
    GROUP_DISJOINT,
    PROTOCOLS,
    IntArray,
    SplitContext,
    SplitIndices,
    default_protocol,
)
from leukemia_dl.errors import SettingsError, SplitError, unknown_name_error
from leukemia_dl.identity import plain_number

__all__ = ["CONTENT_DISJOINT", "GROUP_DISJOINT", "PROTOCOLS", "TEST_IS_NOT_VAL", "Split", "make_splits"]

TEST_IS_NOT_VAL = "test-is-not-val"


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
            `"content-disjoint"` (no two sides share a byte-identical file), `"test-is-not-val"`.
        dropped: Training images left out because their group, or their content, is on the test side.
        leaked: How many images outside the test side share, with another side, an identical file (`files`), a
            known cell (`cells`, identical files included), a group (`groups`; None if the groups are not known).
        flags: Notes for readers of the results, such as a side with few patients.
        digest: SHA-256 of sample ids and sides, whatever the order of the rows.
    """

    protocol: str
    fold: int | None
    train: IntArray
    val: IntArray
    test: IntArray
    guarantees: tuple[str, ...]
    dropped: int
    leaked: Mapping[str, int | None]
    flags: tuple[str, ...]
    digest: str
    _counts: pd.DataFrame

    def __repr__(self) -> str:
        fold = "" if self.fold is None else f" fold {self.fold}"
        sides = ", ".join(f"{side} {len(getattr(self, side)):,}" for side in ("train", "val", "test"))
        return f"<Split {self.protocol!r}{fold}: {sides}; {', '.join(self.guarantees) or 'no guarantees'}>"

    def counts(self) -> pd.DataFrame:
        """Return a row per side and class (the index): images and groups, int64."""
        return self._counts.copy()


def make_splits(
    dataset: Dataset,
    protocol: str | None = None,
    folds: Sequence[int] | str | None = None,
    seed: int = 0,
    allow_leakage: bool = False,
    n_folds: int | None = None,
    n_repeats: int = 1,
) -> list[Split]:
    """Split a data set. The same seed and table give the same splits, whatever the order of the rows.

    Protocols, on labelled samples only; C-NMC's preliminary images enter only `preliminary`, its final ones none.
    Sides that a data set gives count for `fixed` alone. On official folds, samples without a fold are left out.

    - `official`: each official fold as test side in turn, as published, also where linked patients are separated.
    - `official_clean`: the same, without the training images of a group that is on the test side.
    - `preliminary`: train on the training part, test on the preliminary set.
    - `kfold`: drawn, stratified by class. 5 folds where each test side then has at least five groups of each class,
      otherwise 3; `n_folds` overrides it.
    - `holdout`: one drawn test side of about a fifth.
    - `fixed`: the sides that the data set itself gives (column `split`).
    - `random`: image by image, identical files together. Patients are on several sides: `allow_leakage` must say yes.
    - `published_v1`: the published habit: train on the other folds, val IS test.

    Where a protocol gives no val side, about a fifth of the training groups (class-stratified, by scikit-learn's
    StratifiedGroupKFold) is taken: the first fold in which each class has five groups, or comes closest to it.

    Args:
        dataset: The data set to split.
        protocol: One of the above; None for `official_clean` if the data set has official folds, else `fixed` if it
            has sides, else `kfold` if its patients are known.
        folds: Which folds to test on; `"all"`; or None for all, but of official folds for the one that published
            results test (`dataset.info.test_fold`, 2 for C-NMC 2019).
        seed: Of everything that is drawn.
        allow_leakage: Needed for `random`.
        n_folds: Number of folds to draw, for `kfold` only.
        n_repeats: How often to draw them anew, for `kfold` only; fold numbers go on.

    Returns:
        A `Split` per fold, in the order of `folds`; one, whose `fold` is None, for a protocol without folds.

    Raises:
        UnknownNameError: If there is no such protocol.
        SettingsError: If a setting is not allowed, or does not fit the protocol.
        SplitError: If the data set lacks subjects, folds, sides or groups that the protocol needs.

    Examples:
        >>> import numpy as np
        >>> import leukemia_dl as ldl
        >>> images = np.arange(100, dtype=np.uint8).repeat(192).reshape(100, 8, 8, 3)
        >>> subjects = [f"P{row % 50}" for row in range(100)]
        >>> dataset = ldl.Dataset.from_arrays(images, np.arange(100) % 2, ("hem", "all"), subjects=subjects)
        >>> ldl.make_splits(dataset, "kfold", folds=[0])
        [<Split 'kfold' fold 0: train 64, val 16, test 20; content-disjoint, group-disjoint, test-is-not-val>]
    """
    seed = whole_number("seed", seed)
    protocol = default_protocol(dataset) if protocol is None else protocol
    if not isinstance(protocol, str) or protocol not in PROTOCOLS:
        raise unknown_name_error("protocol", protocol, PROTOCOLS)
    if protocol != "kfold" and (n_folds is not None or n_repeats != 1):
        raise SettingsError(
            f"n_folds and n_repeats are for protocol='kfold'. Received: {n_folds=}, {n_repeats=} with {protocol!r}."
        )
    n_folds = None if n_folds is None else whole_number("n_folds", n_folds, 2)
    n_repeats = whole_number("n_repeats", n_repeats, 1)
    if not flag("allow_leakage", allow_leakage) and protocol == "random":
        raise SplitError(
            "Protocol 'random' puts images of one patient on several sides, which makes results look better than they "
            "are. If you accept that, add allow_leakage=True (command line: --allow-leakage). Where the patients are "
            "known, protocol='kfold' keeps them apart."
        )
    context = SplitContext(dataset, protocol, seed, n_folds, n_repeats)
    drawn = {indices.fold: indices for indices in PROTOCOLS[protocol].draw(context)}
    return [_checked(context, drawn[fold]) for fold in _chosen(protocol, folds, list(drawn), dataset.info.test_fold)]


def _chosen(
    protocol: str, folds: Sequence[int] | str | None, there: list[int | None], published: int | None
) -> list[int | None]:
    if folds is None and PROTOCOLS[protocol].folds == "given" and published in there:
        return [published]
    if folds is None or (isinstance(folds, str) and folds == "all"):
        return there
    wanted = whole_numbers(folds)
    if there == [None]:
        if wanted == []:
            return there
        raise SettingsError(f"Protocol {protocol!r} has no folds: leave `folds` out. Received: {folds!r}.")
    if not wanted or len(set(wanted)) != len(wanted) or not set(wanted) <= set(there):
        raise SettingsError(
            f'`folds` is "all" or some of {", ".join(map(str, there))}, each once. Received: {folds!r}.'
        )
    return list(wanted)


def whole_numbers(values: object) -> list[int] | None:
    """Return a whole number or several as a list; None for anything else."""
    listed = list(map(plain_number, values)) if isinstance(values, Iterable) else [plain_number(values)]
    return listed if all(type(value) is int for value in listed) else None


def _checked(context: SplitContext, indices: SplitIndices) -> Split:
    """Apply the rules of the protocol, draw the val side where there is none, verify everything, return rows."""
    rules = PROTOCOLS[context.protocol]
    test, val = indices.test, indices.test if rules.val_is_test else indices.val
    train = context.excluding(indices.train, test) if rules.clean else indices.train
    dropped = len(indices.train) - len(train)
    if val is None:
        train, val = context.holdout(train, "val", -1 if indices.fold is None else indices.fold)
    sides = {"train": train, "val": val, "test": test}
    counts = _count(context, sides, indices.fold)
    guarantees, flags, leaked = _verify(context, sides)
    if not context.grouped:
        unknown = int(context.table["group"].isna().sum())
        part = f" of {unknown:,} of {len(context.table):,} images" if unknown < len(context.table) else ""
        flags.append(f"patients unknown{part}: one may be on several sides")
    placed = np.concatenate([indices.train, indices.test, val])
    if unused := len(np.setdiff1d(context.everything, placed)):
        flags.append(f"{unused:,} labelled images have no side or fold and are not used")
    if dropped:
        flags.append(f"{dropped:,} training images dropped: their group or content is on the test side")
    few = counts[counts["groups"] < FEW_GROUPS].reset_index() if context.grouped else counts[:0]
    flags += [f"{row['side']}: few groups of class {row['class']} ({row['groups']})" for row in few.to_dict("records")]
    samples = context.table["sample"]
    return Split(
        context.protocol,
        indices.fold,
        **{side: _rows(context, positions) for side, positions in sides.items()},
        guarantees=tuple(sorted(guarantees)),
        dropped=dropped,
        leaked=MappingProxyType(leaked),
        flags=tuple(flags),
        digest=identity.digest({side: sorted(samples[positions]) for side, positions in sides.items()}),
        _counts=counts,
    )


def _verify(context: SplitContext, sides: dict[str, IntArray]) -> tuple[list[str], list[str], dict[str, int | None]]:
    """Return the properties that hold, flags for the others, and counts; a broken guarantee raises: it is a bug."""
    rules = PROTOCOLS[context.protocol]
    pairs = [("train", "val"), ("train", "test")] + ([] if rules.val_is_test else [("val", "test")])
    guarantees, flags = ([], ["val is test"]) if rules.val_is_test else ([TEST_IS_NOT_VAL], [])
    if any(np.intersect1d(sides[a], sides[b]).size for a, b in pairs):
        raise SplitError(
            f"Protocol {context.protocol!r} put a sample of {context.name!r} on two sides: please report this."
        )
    leaked: dict[str, int | None] = {
        "files": _shared(context.contents, sides, pairs),
        "cells": _shared(context.cells, sides, pairs),
        "groups": _shared(context.groups, sides, pairs) if context.table["group"].notna().any() else None,
    }
    for name, counted, what in ((GROUP_DISJOINT, "groups", "group"), (CONTENT_DISJOINT, "files", "content")):
        count = leaked[counted]
        if count and name in rules.guaranteed:
            raise SplitError(f"Protocol {context.protocol!r} broke its promise to be {name}: please report this.")
        if count:
            flags.append(f"{count:,} images outside the test side share their {what} with another side")
        elif count == 0 and (name != GROUP_DISJOINT or context.grouped):
            guarantees.append(name)
    if leaked["cells"]:
        flags.append(f"{leaked['cells']:,} images outside the test side show a cell that another side shows too")
    return guarantees, flags, leaked


def _shared(codes: IntArray, sides: dict[str, IntArray], pairs: list[tuple[str, str]]) -> int:
    """Count the images, outside the test side, whose code is on another side too."""
    shared = [sides[a][np.isin(codes[sides[a]], codes[sides[b]])] for a, b in pairs]
    return len(np.unique(np.concatenate(shared)))


def _count(context: SplitContext, sides: dict[str, IntArray], fold: int | None) -> pd.DataFrame:
    """Return images and groups per side and class. Raises SplitError if a side lacks a class."""
    rows = []
    for side, positions in sides.items():
        images = np.bincount(context.labels[positions], minlength=len(context.class_names))
        groups = context.units_per_class(positions, context.groups)
        rows += [(side, name, int(images[i]), int(groups[i])) for i, name in enumerate(context.class_names)]
    for side, name, count, _ in rows:
        if not count:
            raise SplitError(
                f"Protocol {context.protocol!r}{'' if fold is None else f' (fold {fold})'} leaves the {side} side of "
                f"{context.name!r} without images of class {name!r}. Add images or subjects of it, choose another fold "
                "or protocol, or leave the class out (Dataset.subset with class_names)."
            )
    return pd.DataFrame(rows, columns=["side", "class", "images", "groups"]).set_index(["side", "class"])


def _rows(context: SplitContext, positions: IntArray) -> IntArray:
    rows = np.sort(context.table["row"].to_numpy(np.int64)[positions])
    rows.flags.writeable = False
    return rows
