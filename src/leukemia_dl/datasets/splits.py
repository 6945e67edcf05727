"""Which images train, which are watched, which test: `make_splits`, and the `Split` that was checked on creation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    ON_FOLDS,
    PROTOCOLS,
    Draft,
    IntArray,
    Pool,
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
        val: Likewise. Watched, and never trained on.
        test: Likewise. Looked at once.
        guarantees: What was verified of it: `"group-disjoint"` (no group, so no patient, on two sides),
            `"content-disjoint"` (no two sides share a byte-identical file), `"test-is-not-val"`.
        dropped: Training images left out because their group, or their content, is on the test side.
        leaked: How many images outside the test side share, with another side, an identical file (`files`), a
            cell that is known to be one (`cells`, identical files included), a group (`groups`; None if the groups
            are not known).
        flags: What a reader of the results should know, such as a side with few patients.
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
    _counts: tuple[tuple[str, str, int, int], ...]

    def __repr__(self) -> str:
        fold = "" if self.fold is None else f" fold {self.fold}"
        sides = ", ".join(f"{side} {len(getattr(self, side)):,}" for side in ("train", "val", "test"))
        return f"<Split {self.protocol!r}{fold}: {sides}; {', '.join(self.guarantees) or 'no guarantees'}>"

    def counts(self) -> pd.DataFrame:
        """Return a row per side and class (the index): images and groups, int64."""
        frame = pd.DataFrame(list(self._counts), columns=["side", "class", "images", "groups"])
        return frame.set_index(["side", "class"])


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
    Sides that a data set gives itself count for `fixed` alone; the others pool them. On official folds, samples without
    a fold are left out.

    - `official`: each official fold as test side in turn, as published. Where the folds are cut through linked
      patients, the split lacks `"group-disjoint"` and its flags count what crosses.
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
        dataset: What to split.
        protocol: One of the above; None for `official_clean` if the data set has official folds, else `fixed` if it
            has sides, else `kfold` if its patients are known.
        folds: Which folds to test on; None for all, or for the one of official folds that published results of the data
            set test (`dataset.info.test_fold`, 2 for C-NMC 2019); `"all"` for all.
        seed: Of everything that is drawn.
        allow_leakage: Needed for `random`.
        n_folds: Number of folds to draw, for `kfold` only.
        n_repeats: How often to draw them anew, for `kfold` only; the folds of the second time are numbered from
            `n_folds` on, and so forth.

    Returns:
        A `Split` per fold, in the order of `folds`; one, whose `fold` is None, for a protocol without folds.

    Raises:
        UnknownNameError: If there is no such protocol.
        SettingsError: If folds, seed, n_folds, n_repeats or allow_leakage are none, or do not fit the protocol.
        SplitError: If the data set has not what the protocol needs: subjects, folds, sides, groups of each class; for
            None, if nothing says how to split it.

    Examples:
        >>> import numpy as np
        >>> import leukemia_dl as ldl
        >>> images = np.arange(100, dtype=np.uint8).repeat(192).reshape(100, 8, 8, 3)
        >>> subjects = [f"P{row % 50}" for row in range(100)]
        >>> dataset = ldl.Dataset.from_arrays(images, np.arange(100) % 2, ("hem", "all"), subjects=subjects)
        >>> ldl.make_splits(dataset, "kfold", folds=[0])
        [<Split 'kfold' fold 0: train 64, val 16, test 20; content-disjoint, group-disjoint, test-is-not-val>]
    """
    n_folds, n_repeats = plain_number(n_folds), plain_number(n_repeats)
    seed = whole_number("seed", seed)
    protocol = default_protocol(dataset) if protocol is None else protocol
    if not isinstance(protocol, str) or protocol not in PROTOCOLS:
        raise unknown_name_error("protocol", protocol, PROTOCOLS)
    for name, value, default, least in (("n_folds", n_folds, None, 2), ("n_repeats", n_repeats, 1, 1)):
        if value != default and protocol != "kfold":
            raise SettingsError(f"{name} is for protocol='kfold'. Received: {name}={value!r} with {protocol!r}.")
        if value is not default:
            whole_number(name, value, least)
    flag("allow_leakage", allow_leakage)
    if protocol == "random" and not allow_leakage:
        raise SplitError(
            "Protocol 'random' puts images of one patient on several sides, which makes results look better than they "
            "are. If you accept that, add allow_leakage=True (command line: --allow-leakage). Where the patients are "
            "known, protocol='kfold' keeps them apart."
        )
    pool = Pool(dataset, protocol, seed, n_folds, n_repeats)
    drafts = {draft.fold: draft for draft in PROTOCOLS[protocol](pool)}
    return [_checked(pool, drafts[fold]) for fold in _chosen(protocol, folds, list(drafts), dataset.info.test_fold)]


def _chosen(
    protocol: str, folds: Sequence[int] | str | None, there: list[int | None], published: int | None
) -> list[int | None]:
    if folds is None and protocol in ON_FOLDS and published in there:
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


def _checked(pool: Pool, draft: Draft) -> Split:
    """Draw the val side where there is none, verify everything, and turn positions into rows."""
    if draft.val is None:
        train, val = pool.drawn(draft.train, "val", -1 if draft.fold is None else draft.fold)
        draft = replace(draft, train=train, val=val)
    assert draft.val is not None
    sides = {"train": draft.train, "val": draft.val, "test": draft.test}
    counts = _count(pool, sides)
    _require_each_class(pool, draft, counts)
    guarantees, flags, leaked = _verify(pool, draft, sides)
    if not pool.grouped:
        flags.append("patients unknown: one may be on several sides")
    if draft.dropped:
        flags.append(f"{draft.dropped:,} training images dropped: their group or content is on the test side")
    few = [(side, name, groups) for side, name, _, groups in counts if pool.grouped and groups < FEW_GROUPS]
    flags += [f"{side}: few groups of class {name} ({groups})" for side, name, groups in few]
    samples = pool.table["sample"]
    return Split(
        pool.protocol,
        draft.fold,
        train=_rows(pool, draft.train),
        val=_rows(pool, draft.val),
        test=_rows(pool, draft.test),
        guarantees=tuple(sorted(guarantees)),
        dropped=draft.dropped,
        leaked=MappingProxyType(leaked),
        flags=tuple(flags),
        digest=identity.digest({side: sorted(samples[positions]) for side, positions in sides.items()}),
        _counts=counts,
    )


def _verify(pool: Pool, draft: Draft, sides: dict[str, IntArray]) -> tuple[list[str], list[str], dict[str, int | None]]:
    """Return what holds of the sides, flags for what does not, and counts; a broken promise raises: it is a bug."""
    val_is_test = draft.val is draft.test
    distinct = [("train", "val"), ("train", "test")] + ([] if val_is_test else [("val", "test")])
    guarantees, flags = ([], ["val is test"]) if val_is_test else ([TEST_IS_NOT_VAL], [])
    if any(np.intersect1d(sides[a], sides[b]).size for a, b in distinct):
        raise SplitError(f"Protocol {pool.protocol!r} put a sample of {pool.name!r} on two sides: please report this.")
    leaked: dict[str, int | None] = {
        "files": _crossing(pool.contents, sides, distinct),
        "cells": _crossing(pool.cells, sides, distinct),
        "groups": _crossing(pool.groups, sides, distinct) if pool.grouped else None,
    }
    for name, counted, what in ((GROUP_DISJOINT, "groups", "group"), (CONTENT_DISJOINT, "files", "content")):
        count = leaked[counted]
        if count and name in draft.promised:
            raise SplitError(f"Protocol {pool.protocol!r} broke its promise to be {name}: please report this.")
        if count:
            flags.append(f"{count:,} images outside the test side share their {what} with another side")
        elif name != GROUP_DISJOINT or pool.grouped:
            guarantees.append(name)
    if leaked["cells"]:
        flags.append(f"{leaked['cells']:,} images outside the test side show a cell that another side shows too")
    return guarantees, flags, leaked


def _require_each_class(pool: Pool, draft: Draft, counts: tuple[tuple[str, str, int, int], ...]) -> None:
    for side, name, images, _ in counts:
        if not images:
            fold = "" if draft.fold is None else f" (fold {draft.fold})"
            raise SplitError(
                f"Protocol {pool.protocol!r}{fold} leaves the {side} side of {pool.name!r} without images of class "
                f"{name!r}. Add images or subjects of it, choose another fold or protocol, or leave the class out "
                "(Dataset.subset with class_names)."
            )


def _crossing(codes: IntArray, sides: dict[str, IntArray], distinct: list[tuple[str, str]]) -> int:
    """Count the images, outside the test side, whose code is on another side too."""
    shared = [side for a, b in distinct for side in [sides[a][np.isin(codes[sides[a]], codes[sides[b]])]]]
    return len(np.unique(np.concatenate(shared)))


def _count(pool: Pool, sides: dict[str, IntArray]) -> tuple[tuple[str, str, int, int], ...]:
    """Return (side, class, images, groups) per side and class."""
    counts = []
    for side, positions in sides.items():
        images = np.bincount(pool.labels[positions], minlength=len(pool.class_names))
        groups = pool.units_per_class(positions, pool.groups)
        counts += [(side, name, int(images[i]), int(groups[i])) for i, name in enumerate(pool.class_names)]
    return tuple(counts)


def _rows(pool: Pool, positions: IntArray) -> IntArray:
    rows = np.sort(pool.table["row"].to_numpy(np.int64)[positions])
    rows.flags.writeable = False
    return rows
