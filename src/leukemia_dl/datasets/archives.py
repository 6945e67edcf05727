"""Unpack untrusted archives: within bounds, completely or not at all. Only folders and regular files come out."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from leukemia_dl.datasets.cache import user_path
from leukemia_dl.errors import DataError
from leukemia_dl.progress import track

__all__ = ["require_space", "unpack"]

_BLOCK = 2**20
_FREE_RATIO = 2**26  # below these bytes no ratio is too high: a few blank images compress a thousandfold
_FORBIDDEN = re.compile(r'[\\:<>"|?*\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # as Windows reads these names
_MAX_NAME = 2_000  # characters; Linux allows 4,096 bytes for a whole path
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
_PACKED: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
_ALLOWED = "Allowed: .zip, .tar, .tar.gz, .tar.bz2, .tar.xz"


def unpack(
    archive: str | Path,
    to: str | Path,
    max_bytes: int = 2**36,
    max_files: int = 200_000,
    max_ratio: float = 200.0,
    show_progress: bool = True,
) -> Path:
    """Unpack a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz (told by its content) into a new folder.

    The files are written into a hidden folder beside `to`, which takes its place at the end: after an error or Ctrl-C
    there is nothing. Modes, owners and times in the archive are not taken over.

    Args:
        archive: The file.
        to: A folder that does not exist yet, or is empty.
        max_bytes: Allowed size of all files together.
        max_files: Allowed number of members.
        max_ratio: Allowed ratio of unpacked to packed size, from 64 MiB on.
        show_progress: Whether to tell how far it is.

    Returns:
        The folder, absolute.

    Raises:
        DataError: If it is no such archive or damaged, a bound is exceeded, the disk is too small, or a member is a
            link or device, encrypted, named twice (upper and lower case being the same), or has a name that is
            absolute, climbs (`..`) or cannot be a file's name on every system. Nothing is left behind.
    """
    archive, target = user_path(archive, "archive"), Path(os.path.realpath(user_path(to, "to")))
    try:
        if not archive.is_file():
            raise DataError(f"There is no archive {archive}. {_ALLOWED}.")
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise DataError(f"{to} is there already and not empty. Name a new folder to unpack into.")
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name[:50]}.", suffix=".partial", dir=target.parent))
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"Cannot unpack {archive} into {to}: {error}.") from error
    try:
        content = aside / "content"  # not `aside` itself, which only its owner may enter
        content.mkdir()
        bounds = _Bounds(max_bytes, max_files, max(_FREE_RATIO, max_ratio * archive.stat().st_size))
        with archive.open("rb") as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as opened:
                    members = _checked_zip(opened, bounds)
                    require_space(content, bounds.total)
                    for member in track(members, len(members), "Unpacking", show_progress):
                        written = Path(opened.extract(member, content))
                        if written.is_file() and written.stat().st_size != member.file_size:
                            raise DataError(f"the member {member.filename[:100]!a} is cut off. Fetch it again.")
            else:
                require_space(content, archive.stat().st_size)
                for _ in track(_tar(file, archive, content, bounds), 100, "Unpacking (percent)", show_progress):
                    pass
        if target.exists():
            target.rmdir()  # it is empty; os.replace on Windows wants it gone
        os.replace(content, target)  # noqa: PTH105
    except DataError as error:
        raise DataError(f"{archive} was not unpacked: {error}") from error
    except Exception as error:  # damaged archives make the readers raise almost anything
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise DataError(
            f"{archive} was not unpacked: it is damaged or cannot be written ({reason!s:.200}). Fetch it again."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def require_space(folder: Path, needed: int) -> None:
    """Check that a disk has room.

    Args:
        folder: Where to write; it need not exist yet.
        needed: In bytes.

    Raises:
        DataError: If fewer bytes are free.
    """
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if os.path.exists(parent))  # noqa: PTH110
    free = shutil.disk_usage(there).free
    if free < needed:
        raise DataError(
            f"{folder} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are needed. Make room or choose another "
            "disk."
        )


class _Bounds:
    """Refuses members that break a rule, before they are written."""

    def __init__(self, max_bytes: int, max_files: int, max_unpacked: float) -> None:
        self.max_bytes, self.max_files, self.max_unpacked = max_bytes, max_files, max_unpacked
        self.total = self.members = 0
        self._seen: set[str] = set()

    def check(self, name: str, size: int, is_folder: bool, is_plain: bool) -> None:
        self.members += 1
        self.total += size
        if not is_plain:
            raise DataError(f"the member {name[:100]!a} is a link or device. Only files are allowed.")
        if self.members > self.max_files:
            raise DataError(f"it holds more than {self.max_files:,} members. Raise max_files if you trust it.")
        if self.total > self.max_bytes:
            raise DataError(f"it holds more than {self.max_bytes:,} bytes. Raise max_bytes if you trust it.")
        if self.total > self.max_unpacked:
            raise DataError(f"it blows up to over {self.total:,} bytes, as bombs do. Raise max_ratio if you trust it.")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        wrong = len(name) > _MAX_NAME or name.startswith("/") or _FORBIDDEN.search(name) or not (parts or is_folder)
        if wrong or any(_folded(p) == "" or len(p.encode()) > 255 or _DEVICES.fullmatch(p) for p in parts):
            raise DataError(
                f"the member {name[:100]!a} has a name that is not allowed: no leading `/`, no `..`, no backslash, "
                'no drive letter, none of < > : " | ? *, no control characters, UTF-8 only.'
            )
        key = "/".join(map(_folded, parts))
        if key in self._seen and not is_folder:
            raise DataError(f"two members are one file on some systems, {name[:100]!a}. Rename one of them.")
        self._seen.add(key)


def _checked_zip(opened: zipfile.ZipFile, bounds: _Bounds) -> list[zipfile.ZipInfo]:
    """Return the members if all are allowed; zipfile itself never writes more than the size that is stated."""
    for member in opened.infolist():
        is_plain = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
        # The name as it is written: zipfile cuts it at a null character, and would hide one.
        bounds.check(member.orig_filename, member.file_size, member.is_dir(), is_plain)
        if member.compress_type not in _METHODS:
            raise DataError(f"the member {member.filename[:100]!a} is packed by an unknown method. {_ALLOWED}.")
    return opened.infolist()


class _InBlocks:
    """A decompressed tar, of which `tarfile` may read small pieces only: it believes the sizes that headers state."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.seek, self.tell, self.last = stream, stream.seek, stream.tell, b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _BLOCK:
            raise DataError("a header claims an impossible size.")
        self.last = self._stream.read(size)
        return self.last


def _tar(file: IO[bytes], archive: Path, content: Path, bounds: _Bounds) -> Iterator[int]:
    """Write the members of a tar, yielding once per percent."""
    file.seek(0)
    head, size, shown = file.read(512), archive.stat().st_size, 0
    file.seek(0)
    unpacked = next((opener(file) for magic, opener in _PACKED.items() if head.startswith(magic)), None)
    if unpacked is None and head[257:262] != b"ustar" and archive.suffix.lower() != ".tar":
        raise DataError(f"it is no archive that can be read. {_ALLOWED}.")
    stream: Any = _InBlocks(unpacked or file)
    with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8") as opened:
        for member in opened:
            opened.members.clear()  # type: ignore[attr-defined]  # or it keeps every header in memory
            is_plain = member.isdir() or (member.isreg() and not member.issparse())
            bounds.check(member.name, 0 if member.isdir() else member.size, member.isdir(), is_plain)
            opened.extract(member, content, set_attrs=False, filter="data")
            while shown < 100 * file.tell() // max(1, size):
                shown += 1
                yield shown
        # tarfile takes a damaged header for the end, in silence; the end is a block of zeros.
        if len(stream.last) != tarfile.BLOCKSIZE or any(stream.last):
            raise DataError("it is damaged or ends too early. Fetch it again.")
        while stream.read(_BLOCK):  # to the end, where the checksum of a compressed file is
            pass


def _folded(part: str) -> str:
    """Return what names have in common that are one file on some system: case, accents' spelling, dots at the end."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", part).casefold()).rstrip(". ")
