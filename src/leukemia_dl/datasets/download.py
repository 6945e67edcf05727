"""Fetch a data set from Kaggle, and check that it is what its authors declare."""

from __future__ import annotations

import importlib
import os
import shutil
import textwrap
from pathlib import Path
from typing import Any

from leukemia_dl.datasets.cache import user_path
from leukemia_dl.datasets.dataset import Dataset
from leukemia_dl.datasets.table import differing_counts
from leukemia_dl.errors import DataError, LeukemiaDLError, unknown_name_error

__all__ = ["DOWNLOADS", "download"]

DOWNLOADS = {"c_nmc_2019": ("andrewmvd/leukemia-classification", 10_400_000_000)}
"""Owner and name on Kaggle, and size of all files in bytes. The archive takes no more."""
_PARTIAL = ".kagglehub"  # files that are not complete yet, in the folder that was asked for


def download(name: str, to: str | Path) -> Dataset:
    """Fetch a data set, unless it is there already, and check its counts. Nothing else fetches data.

    Args:
        name: A key of `DOWNLOADS`.
        to: A folder that is new, empty, holds the data set, or the rest of an interrupted download, which goes on.

    Raises:
        UnknownNameError: If the data set cannot be downloaded.
        DataError: If the folder holds other things, the disk is too small, or the numbers of images and subjects are
            not those that the authors declare.
        LeukemiaDLError: If kagglehub is not installed, or the download failed; the message names the ways out.
    """
    if name not in DOWNLOADS:
        raise unknown_name_error("data set to download", name, DOWNLOADS, "Others are read from a folder of yours.")
    root = user_path(to, "to")
    if not root.exists() or (root.is_dir() and all(path.name == _PARTIAL for path in root.iterdir())):
        for entry in sorted(_fetch(name, root).iterdir()):
            entry.replace(root / entry.name)
        shutil.rmtree(root / _PARTIAL, ignore_errors=True)
    dataset = Dataset.load(name, root=root)
    if wrong := differing_counts(dataset.table, dataset.info.declared):
        raise DataError(
            f"{dataset.info.title} is not complete, or not the published one ({'; '.join(wrong)}). "
            "Delete it and fetch it again, or see which files differ: leukemia-dl verify ROOT --manifest FILE."
        )
    return dataset


def _fetch(name: str, root: Path) -> Path:
    """Return the folder with the files that kagglehub has fetched and unpacked, in its cache inside `root`."""
    (handle, size), partial = DOWNLOADS[name], root / _PARTIAL
    by_hand = (
        f"By hand: open https://www.kaggle.com/datasets/{handle} in a browser, sign in, download the archive, unpack "
        f"it into {root}, and check it with leukemia-dl download {name} --to {root}"
    )
    try:
        kagglehub: Any = importlib.import_module("kagglehub")
    except ImportError as error:
        install = f"({error}): pip install 'leukemia-dl[kaggle]'"
        raise LeukemiaDLError(f"Downloading needs kagglehub, which is not there {install}. {by_hand}") from error
    there = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    needed = max(size, 2 * size - there)  # the archive, and the files in it
    free = shutil.disk_usage(next(parent for parent in (root, *root.parents) if parent.exists())).free
    if free < needed:
        gigabytes = f"{free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are needed"
        raise DataError(f"{root} has {gigabytes}. Choose another disk.")
    settings = {"KAGGLEHUB_CACHE": str(partial), "DISABLE_KAGGLE_CACHE": "1", "DISABLE_COLAB_CACHE": "1"}
    before = {key: os.environ[key] for key in settings if key in os.environ}
    try:
        partial.mkdir(parents=True, exist_ok=True)
        os.environ.update(settings)
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
        for key in settings:
            os.environ.pop(key, None)
        os.environ.update(before)
