"""Fetch a data set, or unpack one that was fetched by hand, and check that it is what its authors declare."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import importlib
import lzma
import os
import re
import shutil
import stat
import tarfile
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from leukemia_dl.atomic import new_folder
from leukemia_dl.datasets.cache import user_path
from leukemia_dl.datasets.columns import differing_counts
from leukemia_dl.datasets.dataset import Dataset
from leukemia_dl.datasets.verify import VerifyReport, verify
from leukemia_dl.errors import DataError, LeukemiaDLError, unknown_name_error
from leukemia_dl.progress import track

__all__ = ["DOWNLOADS", "Download", "check_counts", "download", "unpack"]

DOWNLOADS = {"c_nmc_2019": ("andrewmvd/leukemia-classification", 10_400_000_000)}
"""Owner and name on Kaggle, and size of all files in bytes. The archive takes no more."""
_PARTIAL = ".kagglehub"  # files that are not complete yet, in the folder that was asked for
_MOST_BYTES, _MOST_FILES, _BLOCK = 2**36, 200_000, 2**20  # of an archive; in one read of a tar
_PACKED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_MOST_RATIO, _FREE_RATIO = 200, 2**26  # below 64 MiB no ratio is too high: a few blank images compress a thousandfold
_FORBIDDEN = re.compile(r"^/|(^|/)\.\.(/|$)|[\\:\x00-\x1f\x7f]")


class Download(NamedTuple):
    """The folder and the data set that `download` fetched, and the comparison with the manifest, if one was given."""

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
    """Fetch a data set from Kaggle, unless it is there already, and check it. Nothing else fetches data.

    Args:
        name: A key of `DOWNLOADS`.
        to: A folder that is new, empty, holds the data set, or the rest of an interrupted download, which goes on.
        archive: An archive fetched by hand, to be unpacked instead of downloading.
        manifest: Hashes of the files to compare with, see `leukemia_dl.datasets.verify.read_manifest`.
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
    try:
        others = sorted(path.name for path in root.iterdir() if path.name != _PARTIAL) if root.exists() else []
    except (OSError, ValueError) as error:
        raise DataError(f"{root} cannot be used: {error}. Choose another folder.") from error
    if not others:
        folder = _fetch(name, root) if archive is None else _unpacked(name, archive, root, show_progress)
        for entry in sorted(folder.iterdir()):
            entry.replace(root / entry.name)
        shutil.rmtree(root / _PARTIAL, ignore_errors=True)
    try:
        dataset = Dataset.load(name, root=root)
    except DataError as error:
        held = f"{', '.join(map(ascii, others[:5]))}{', ...' if len(others) > 5 else ''}"
        raise DataError(f"{root} holds other things ({held}) and not {name}. Choose a new or empty folder.") from error
    check_counts(dataset)
    return Download(root, dataset, None if manifest is None else verify(root, manifest, show_progress))


def check_counts(dataset: Dataset) -> None:
    """Raise DataError if the numbers of images and subjects, or those per fold and side, are not the declared ones."""
    if wrong := differing_counts(dataset.table, dataset.info.declared):
        raise DataError(
            f"{dataset.info.title} is not complete, or not the published one ({'; '.join(wrong)}). "
            "Delete it and fetch it again, or see which files differ: leukemia-dl verify ROOT --manifest FILE."
        )


def unpack(archive: str | Path, to: str | Path, show_progress: bool = True) -> Path:
    """Unpack a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz (recognised by its content) into a new or empty folder.

    All members are checked before the first is written. After an error or Ctrl-C there is nothing.

    Args:
        archive: The file.
        to: The folder.
        show_progress: Whether to show progress.

    Returns:
        The folder, absolute.

    Raises:
        DataError: If it is no such archive or damaged, has more than 200,000 members or 64 GiB, unpacks to more than
            200 times its size, or has a member that is a link, a device or encrypted, or whose name leads out of it.
    """
    archive, to = user_path(archive, "archive"), Path(os.path.realpath(user_path(to, "to")))
    try:
        if not archive.is_file():
            raise DataError("there is no such file. Allowed: .zip, .tar, .tar.gz, .tar.bz2, .tar.xz.")
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise DataError(f"{to} is there already and not empty. Name a new folder to unpack into.")
        with _opened(archive) as opened, new_folder(to) as folder:
            safe: Any = {"filter": "data"} if isinstance(opened, tarfile.TarFile) else {}
            members = _checked_members(opened, archive.stat().st_size)
            _require_space(to, sum(size for _, size in members))
            for member, _ in track(members, len(members), "Unpacking", show_progress):
                opened.extract(member, folder, **safe)
    except Exception as error:  # damaged archives make the readers raise almost anything
        damaged = f"it is no archive that can be read, damaged, or cannot be written ({type(error).__name__}: {error})"
        reason = str(error) if isinstance(error, DataError) else damaged
        raise DataError(f"{archive} was not unpacked: {reason:.500}") from error
    return to


class _InBlocks:
    """A decompressed tar of which only small pieces are read: `tarfile` believes the sizes that headers state."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.seek, self.tell, self.last = stream, stream.seek, stream.tell, b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _BLOCK:
            raise DataError("a header claims an impossible size.")
        self.last = self._stream.read(size)
        return self.last


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[Any]:
    """Open a zip or a tar for reading."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield opened
        return
    with archive.open("rb") as file:
        head = file.read(6)
    unpack_stream = next((opener for magic, opener in _PACKED.items() if head.startswith(magic)), open)
    with unpack_stream(archive, "rb") as stream:
        blocks: Any = _InBlocks(stream)
        with tarfile.open(fileobj=blocks, mode="r:") as opened_tar:
            yield opened_tar


def _check_end(stream: Any) -> None:
    """Raise DataError unless a tar ends in a block of zeros, since `tarfile` takes a damaged header for the end."""
    if len(stream.last) != tarfile.BLOCKSIZE or any(stream.last):
        raise DataError("it is damaged or ends too early. Fetch it again.")
    while stream.read(_BLOCK):  # to the end, where the checksum of a compressed file is
        pass


def _checked_members(opened: Any, packed: int) -> list[tuple[Any, int]]:
    """Return the members of a zip or tar with their sizes. Raises DataError at the first that breaks a rule."""
    members: list[tuple[Any, int]] = []
    names = set[str]()
    most, total = min(_MOST_BYTES, max(_FREE_RATIO, _MOST_RATIO * packed)), 0
    for member in opened.infolist() if isinstance(opened, zipfile.ZipFile) else opened:
        if isinstance(member, zipfile.ZipInfo):
            name, size = member.filename, member.file_size
            is_plain = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
        else:
            name, size = member.name, 0 if member.isdir() else member.size
            is_plain = member.isdir() or (member.isreg() and not member.issparse())
        total += size
        members.append((member, size))
        if not name.endswith("/") and not (isinstance(member, tarfile.TarInfo) and member.isdir()):
            if name.casefold() in names:
                raise DataError(f"two members are one file on some systems, {name[:100]!a}.")
            names.add(name.casefold())
        if not is_plain or _FORBIDDEN.search(name):
            rule = "no links or devices, and only names below the archive's top are allowed"
            raise DataError(f"the member {name[:100]!a}: {rule}.")
        if size < 0 or total > most or len(members) > _MOST_FILES:
            raise DataError(f"it unpacks to more than {_MOST_FILES:,} members or {most:,} bytes, as bombs do.")
    if isinstance(opened, tarfile.TarFile):
        _check_end(opened.fileobj)
    return members


def _require_space(folder: Path, needed: int) -> None:
    """Raise DataError if a disk has less room, in bytes, for a folder that need not exist yet."""
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    if free < needed:
        free_gb, needed_gb = free / 1e9, needed / 1e9
        raise DataError(f"{folder} has {free_gb:.1f} GB free, and {needed_gb:.1f} GB are needed. Choose another disk.")


def _unpacked(name: str, archive: str | Path, root: Path, show_progress: bool) -> Path:
    """Return a folder inside `root` with the files of an archive, which hold the data set."""
    aside = root / _PARTIAL / "unpacked"  # not in `root` at once: the rest of a download may be there
    shutil.rmtree(aside, ignore_errors=True)
    unpack(archive, aside, show_progress)
    try:
        Dataset.load(name, root=aside)  # before it is moved: another archive's files would be in the way ever after
    except DataError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise DataError(f"{archive} does not hold {name}: {error}") from error
    return aside


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
    before = dict(os.environ)
    changed = {"KAGGLEHUB_CACHE": str(partial), "DISABLE_KAGGLE_CACHE": "1", "DISABLE_COLAB_CACHE": "1"}
    try:
        partial.mkdir(parents=True, exist_ok=True)
        os.environ |= changed
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
        for key in changed:
            os.environ.pop(key, None)
        os.environ |= {key: before[key] for key in changed if key in before}
