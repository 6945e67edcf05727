"""Fetch a data set, or unpack one that was fetched by hand, and check that it is what its authors declare."""

from __future__ import annotations

import importlib
import os
import shutil
import textwrap
import zipfile
from pathlib import Path
from typing import Any

from leukemia_dl.atomic import new_folder
from leukemia_dl.datasets.cache import user_path
from leukemia_dl.datasets.dataset import Dataset
from leukemia_dl.datasets.table import differing_counts
from leukemia_dl.errors import DataError, LeukemiaDLError, unknown_name_error
from leukemia_dl.progress import track

__all__ = ["DOWNLOADS", "check_counts", "download", "unpack"]

DOWNLOADS = {"c_nmc_2019": ("andrewmvd/leukemia-classification", 10_400_000_000)}
"""Owner and name on Kaggle, and size of all files in bytes. The archive takes no more."""
_PARTIAL = ".kagglehub"  # files that are not complete yet, in the folder that was asked for
_MOST_FILES, _MOST_RATIO, _FREE_BYTES = 200_000, 200, 2**26  # a few blank images compress a thousandfold


def download(name: str, to: str | Path, archive: str | Path | None = None, show_progress: bool = True) -> Dataset:
    """Fetch a data set from Kaggle, unless it is there already, and check its counts. Nothing else fetches data.

    Args:
        name: A key of `DOWNLOADS`.
        to: A folder that is new, empty, holds the data set, or the rest of an interrupted download, which goes on.
        archive: An archive fetched by hand, to be unpacked instead of downloading.
        show_progress: Whether to show progress.

    Raises:
        UnknownNameError: If the data set cannot be downloaded.
        DataError: If the folder holds other things, the disk is too small, `unpack` refuses the archive, or the files
            are not those that the authors declare.
        LeukemiaDLError: If kagglehub is not installed, or the download failed; the message names the ways out.
    """
    if name not in DOWNLOADS:
        raise unknown_name_error("data set to download", name, DOWNLOADS, "Others are read from a folder of yours.")
    root = user_path(to, "to")
    partial = root / _PARTIAL
    if not root.exists() or (root.is_dir() and all(path == partial for path in root.iterdir())):
        if archive is None:
            folder = _fetch(name, root)
        else:
            shutil.rmtree(partial / "unpacked", ignore_errors=True)
            folder = unpack(archive, partial / "unpacked", show_progress)
        Dataset.load(name, root=folder)  # before it is moved: another archive's files would be in the way ever after
        for entry in sorted(folder.iterdir()):
            entry.replace(root / entry.name)
        shutil.rmtree(partial, ignore_errors=True)
    dataset = Dataset.load(name, root=root)
    check_counts(dataset)
    return dataset


def check_counts(dataset: Dataset) -> None:
    """Raise DataError if the numbers of images and subjects, or those per fold and side, are not the declared ones."""
    if wrong := differing_counts(dataset.table, dataset.info.declared):
        raise DataError(
            f"{dataset.info.title} is not complete, or not the published one ({'; '.join(wrong)}). "
            "Delete it and fetch it again, or see which files differ: leukemia-dl verify ROOT --manifest FILE."
        )


def unpack(archive: str | Path, to: str | Path, show_progress: bool = True) -> Path:
    """Unpack a zip archive into a new or empty folder, which is returned; after an error or Ctrl-C there is nothing.

    Names that lead out of the folder are cut, and links become small files.

    Args:
        archive: The file.
        to: The folder.
        show_progress: Whether to show progress.

    Raises:
        DataError: If it is no zip archive, damaged or encrypted, has more than 200,000 members, or unpacks to more than
            200 times its size or than the disk holds.
    """
    archive, to = user_path(archive, "archive"), user_path(to, "to")
    try:
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise DataError(f"{to} is there already and not empty. Name a new folder to unpack into.")
        with zipfile.ZipFile(archive) as opened, new_folder(to) as folder:
            members = opened.infolist()
            size, most = sum(member.file_size for member in members), _MOST_RATIO * archive.stat().st_size
            if len(members) > _MOST_FILES or size > max(most, _FREE_BYTES):
                raise DataError(f"it has {len(members):,} members of {size:,} bytes, as decompression bombs do.")
            _require_space(to, size)
            for member in track(members, len(members), "Unpacking", show_progress):
                opened.extract(member, folder)
    except Exception as error:  # damaged archives make the reader raise almost anything
        damaged = f"it is no zip archive that can be read, or cannot be written ({type(error).__name__}: {error})"
        reason = str(error) if isinstance(error, DataError) else damaged
        raise DataError(f"{archive} was not unpacked: {reason:.500}") from error
    return to


def _require_space(folder: Path, needed: int) -> None:
    """Raise DataError if a disk has less room, in bytes, for a folder that need not exist yet."""
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    if free < needed:
        free_gb, needed_gb = free / 1e9, needed / 1e9
        raise DataError(f"{folder} has {free_gb:.1f} GB free, and {needed_gb:.1f} GB are needed. Choose another disk.")


def _fetch(name: str, root: Path) -> Path:
    """Return the folder with the files that kagglehub has fetched and unpacked, in its cache inside `root`."""
    (handle, size), partial = DOWNLOADS[name], root / _PARTIAL
    by_hand = (
        f"By hand: open https://www.kaggle.com/datasets/{handle} in a browser, sign in, download the archive, and "
        f"unpack it with leukemia-dl download {name} --to {root} --archive FILE"
    )
    try:
        kagglehub: Any = importlib.import_module("kagglehub")
    except ImportError as error:
        install = f"({error}): pip install 'leukemia-dl[kaggle]'"
        raise LeukemiaDLError(f"Downloading needs kagglehub, which is not there {install}. {by_hand}") from error
    _require_space(root, max(size, 2 * size - sum(p.stat().st_size for p in partial.rglob("*") if p.is_file())))
    kagglehub_reads = {"KAGGLEHUB_CACHE": str(partial), "DISABLE_KAGGLE_CACHE": "1", "DISABLE_COLAB_CACHE": "1"}
    before = {key: os.environ.get(key) for key in kagglehub_reads}
    try:
        partial.mkdir(parents=True, exist_ok=True)
        os.environ.update(kagglehub_reads)
        return Path(kagglehub.dataset_download(handle))
    except Exception as error:  # kagglehub, its client and requests each have their own; all mean the same to a user
        said = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise LeukemiaDLError(
            f"{name} could not be downloaded ({type(error).__name__}: {said}). The fetched part is kept in {partial}, "
            "and the same command goes on from there: check the network, HTTPS_PROXY and the free space. If it fails "
            "in the same way again, delete that folder. If Kaggle asks who you are, create a token on the page of your "
            f"account and save it as ~/.kaggle/kaggle.json. {by_hand}"
        ) from error
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            os.environ.update({} if value is None else {key: value})
