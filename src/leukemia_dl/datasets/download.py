"""Fetch a data set, or unpack one that was fetched by hand, and check that it is what its authors declare."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leukemia_dl.datasets.archives import require_space, unpack
from leukemia_dl.datasets.columns import counted
from leukemia_dl.datasets.dataset import Dataset
from leukemia_dl.datasets.verify import VerifyReport, verify
from leukemia_dl.errors import DataError, LeukemiaDLError, unknown_name_error

__all__ = ["DOWNLOADS", "Download", "KaggleDataset", "check_counts", "download"]

_PARTIAL = ".kagglehub"  # what is not complete yet, in the folder that was asked for
_SHOWN = 5


@dataclass(frozen=True)
class KaggleDataset:
    """Where a data set is on Kaggle.

    Attributes:
        handle: Owner and name.
        unpacked: Size of all files in bytes. The archive takes no more, and lies beside them for a while.
    """

    handle: str
    unpacked: int

    @property
    def url(self) -> str:
        """The page for people."""
        return f"https://www.kaggle.com/datasets/{self.handle}"


DOWNLOADS: Mapping[str, KaggleDataset] = {
    "c_nmc_2019": KaggleDataset("andrewmvd/leukemia-classification", 10_400_000_000)
}


@dataclass(frozen=True)
class Download:
    """What is there now.

    Attributes:
        root: To be passed to `Dataset.load(name, root=...)`.
        dataset: Loaded from there; its counts are the declared ones.
        report: The comparison with the manifest, if one was given.
    """

    root: Path
    dataset: Dataset
    report: VerifyReport | None


def download(
    name: str,
    to: str | Path,
    archive: str | Path | None = None,
    manifest: str | Path | None = None,
    show_progress: bool = True,
) -> Download:
    """Fetch a data set from Kaggle, unless it is there already, and check it.

    Nothing else of this library uses the network for data. The licence of a data set is in `get_source(name).info`.

    Args:
        name: A key of `DOWNLOADS`.
        to: A folder that is new, empty, holds the data set already, or holds what an interrupted download left, which
            then goes on.
        archive: An archive fetched by hand, to be unpacked instead of downloading.
        manifest: Hashes of the files to compare with, see `leukemia_dl.datasets.manifest.read_manifest`.
        show_progress: Whether to tell how far it is.

    Returns:
        The folder, the data set and the comparison; look at its `report.ok`.

    Raises:
        UnknownNameError: If the data set cannot be downloaded.
        DataError: If the folder holds other things, the disk is too small, the archive is refused (see
            `leukemia_dl.datasets.archives.unpack`), or what came is not what the authors declare.
        LeukemiaDLError: If kagglehub is not installed, or the download failed; the message names the ways out.
    """
    if name not in DOWNLOADS:
        raise unknown_name_error("data set to download", name, DOWNLOADS, "Others are read from a folder of yours.")
    where, root = DOWNLOADS[name], Path(to).absolute()
    dataset = _already_there(name, root)
    if dataset is None:
        if archive is not None:
            _unpack(name, Path(archive), root, show_progress)
        else:
            _fetch(name, where, root)
        dataset = Dataset.load(name, root=root)
    check_counts(dataset)
    report = None if manifest is None else verify(root, manifest, show_progress=show_progress)
    return Download(root, dataset, report)


def check_counts(dataset: Dataset) -> None:
    """Compare the numbers of images and subjects, in all and per fold and side, with the declared ones.

    Raises:
        DataError: If they differ; it names each.
    """
    found = counted(dataset.table)
    declared = dict(dataset.info.declared)
    wrong = [
        f"{what}: {found.get(what, 0):,} of {count:,}"
        for what, count in declared.items()
        if found.get(what, 0) != count
    ]
    if wrong:
        raise DataError(
            f"{dataset.info.title} is not complete, or not the published one ({'; '.join(wrong)}). "
            "Delete it and fetch it again, or see which files differ: leukemia-dl verify ROOT --manifest FILE."
        )


def _already_there(name: str, root: Path) -> Dataset | None:
    """Load the data set if it is in the folder; raise if anything else is."""
    try:
        entries = sorted(entry.name for entry in root.iterdir()) if root.exists() else []
    except (OSError, ValueError) as error:
        raise DataError(f"{root} cannot be used: {error}. Choose another folder.") from error
    others = [entry for entry in entries if entry != _PARTIAL]
    if not others:
        return None
    try:
        return Dataset.load(name, root=root)
    except DataError as error:
        named = ", ".join(map(ascii, others[:_SHOWN])) + (", ..." if len(others) > _SHOWN else "")
        raise DataError(
            f"{root} holds other things ({named}) and not {name}. Choose a folder that is new or empty."
        ) from error


def _fetch(name: str, where: KaggleDataset, root: Path) -> None:
    try:
        kagglehub: Any = importlib.import_module("kagglehub")
    except ImportError as error:
        raise LeukemiaDLError(
            f"Downloading needs kagglehub, which cannot be imported ({error}): pip install 'leukemia-dl[kaggle]'. "
            f"{_by_hand(name, where, root)}"
        ) from error
    partial = root / _PARTIAL
    have = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file()) if partial.is_dir() else 0
    require_space(root, max(where.unpacked, 2 * where.unpacked - have))
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _environment(KAGGLEHUB_CACHE=str(partial), DISABLE_KAGGLE_CACHE="1", DISABLE_COLAB_CACHE="1"):
            _move(Path(kagglehub.dataset_download(where.handle)), root)
    except Exception as error:  # kagglehub, its client and requests each have their own; all mean the same to a user
        said = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise LeukemiaDLError(
            f"{name} could not be downloaded ({type(error).__name__}: {said}). What was fetched is kept in "
            f"{partial}, and the same command goes on from there: check the network, HTTPS_PROXY and the free space. "
            "If it fails in the same way again, delete that. If Kaggle asks who you are, create a token on the "
            f"page of your account and save it as ~/.kaggle/kaggle.json. {_by_hand(name, where, root)}"
        ) from error


def _unpack(name: str, archive: Path, root: Path, show_progress: bool) -> None:
    aside = root / _PARTIAL / "unpacked"  # not in `root` at once: the rest of a download may be there
    shutil.rmtree(aside, ignore_errors=True)
    unpack(archive, aside, show_progress=show_progress)
    try:
        Dataset.load(name, root=aside)  # before it is moved: another archive's files would be in the way ever after
    except DataError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise DataError(f"{archive} does not hold {name}: {error}") from error
    try:
        _move(aside, root)
    except OSError as error:
        raise DataError(f"{archive} was unpacked into {aside} and cannot be moved to {root}: {error}.") from error


def _move(folder: Path, root: Path) -> None:
    """Move complete files where they were asked for, and what is left of their way there out of it."""
    for entry in sorted(folder.iterdir()):
        os.replace(entry, root / entry.name)  # noqa: PTH105
    shutil.rmtree(root / _PARTIAL, ignore_errors=True)


def _by_hand(name: str, where: KaggleDataset, root: Path) -> str:
    return (
        f"By hand: open {where.url} in a browser, sign in, download the archive, and unpack it with "
        f"leukemia-dl download {name} --to {root} --archive FILE"
    )


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables, which is how kagglehub is told where to write, and put them back."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
