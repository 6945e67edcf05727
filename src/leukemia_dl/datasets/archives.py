"""Unpack archives of strangers: member by member, within bounds, completely or not at all.

Only folders and regular files come out, so nothing is left for the filters of `tarfile` to mend; and the bytes are
counted as they are written, since what a header says of its size may be a lie.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from leukemia_dl.datasets.cache import user_path
from leukemia_dl.errors import DataError
from leukemia_dl.progress import track

__all__ = ["require_space", "unpack"]

_BLOCK = 2**20
_TAR_BLOCK = 512
_FREE_RATIO = 2**26  # below these bytes no ratio is too high: a few blank images compress a thousandfold
_FORBIDDEN = re.compile(r'[\\:<>"|?*\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # what Windows takes them for
_MAX_NAME = 2_000  # characters; Linux allows 4,096 bytes for a whole path
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
_ENCRYPTED = 0x1 | 0x40 | 0x2000
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
        writer = _Writer(content, max_bytes, max_files, max(_FREE_RATIO, max_ratio * archive.stat().st_size))
        with archive.open("rb") as file:
            for _ in track(_percents(_members(file, archive, writer)), 100, "Unpacking (percent)", show_progress):
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


class _Writer:
    """Writes members below a folder, and refuses what breaks a rule."""

    def __init__(self, folder: Path, max_bytes: int, max_files: int, max_unpacked: float) -> None:
        self.folder, self.max_bytes, self.max_files, self.max_unpacked = folder, max_bytes, max_files, max_unpacked
        self.written = self.members = 0
        self._seen: dict[tuple[str, ...], tuple[tuple[str, ...], bool]] = {}

    def check_bytes(self, count: int) -> None:
        if count > self.max_bytes:
            raise DataError(f"it holds more than {self.max_bytes:,} bytes. Raise max_bytes if you trust it.")
        if count > self.max_unpacked:
            raise DataError(f"it blows up to over {count:,} bytes, as bombs do. Raise max_ratio if you trust it.")

    def place(self, name: str, folder: bool) -> Path:
        """Return where a member goes, or raise; folders above it are made."""
        self.members += 1
        if self.members > self.max_files:
            raise DataError(f"it holds more than {self.max_files:,} members. Raise max_files if you trust it.")
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        wrong = len(name) > _MAX_NAME or name.startswith("/") or _FORBIDDEN.search(name) or (not parts and not folder)
        if wrong or any(map(_is_no_name, parts)):
            raise DataError(
                f"the member {name[:100]!a} has a name that is not allowed: no leading `/`, no `..`, no backslash, "
                'no drive letter, none of < > : " | ? *, no control characters, UTF-8 only.'
            )
        for depth in range(1, len(parts) + 1):
            here, is_file = parts[:depth], depth == len(parts) and not folder
            key = tuple(map(_folded, here))
            # A folder may come as often as it likes, under one spelling; a file once.
            old = self._seen.setdefault(key, (here, is_file))
            if old[0] is not here and (is_file or old != (here, False)):
                raise DataError(f"the members {'/'.join(old[0])!a} and {name[:100]!a} collide.")
        return self.folder.joinpath(*parts)

    def write(self, name: str, size: int, source: IO[bytes]) -> Iterator[None]:
        """Write a file, yielding after each block."""
        path, done = self.place(name, folder=False), 0
        self.check_bytes(self.written + size)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            while block := source.read(_BLOCK):
                done += len(block)
                self.written += len(block)
                self.check_bytes(self.written)
                file.write(block)
                yield
        if done != size:
            raise DataError(f"the member {name[:100]!a} has {done:,} bytes instead of {size:,}. Fetch it again.")


class _Bounded(io.RawIOBase):
    """A decompressed tar: read forwards only, in small pieces, and never more than the writer allows.

    `tarfile` reads the long names in its headers at once and believes the sizes that they state, negative ones too.
    """

    def __init__(self, stream: IO[bytes], writer: _Writer) -> None:
        self._stream, self._writer, self.position, self.last = stream, writer, 0, b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _BLOCK:
            raise DataError("a header claims an impossible size.")
        self.last = self._stream.read(size)
        self._advance(self.position + len(self.last))
        return self.last

    def seek(self, position: int, whence: int = 0) -> int:
        if whence != 0 or position < self.position:
            raise DataError("a header leads backwards.")
        while self.position < position and self.read(min(_BLOCK, position - self.position)):
            pass
        return self.position

    def tell(self) -> int:
        return self.position

    def _advance(self, position: int) -> None:
        self.position = position
        # Headers and padding take up to three blocks for each member, as a rule; long names some more.
        self._writer.check_bytes(max(0, position - 8 * _TAR_BLOCK * (self._writer.members + 64)))


def _percents(fractions: Iterator[float]) -> Iterator[int]:
    shown = 0
    for fraction in fractions:
        while shown < min(100, int(100 * fraction)):
            shown += 1
            yield shown


def _members(file: IO[bytes], archive: Path, writer: _Writer) -> Iterator[float]:
    """Write all members, yielding the fraction that is done."""
    head = file.read(_TAR_BLOCK)
    file.seek(0)
    opened: Any
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        yield from _zip(file, writer)
        return
    if head.startswith(b"\x1f\x8b"):
        opened = gzip.GzipFile(fileobj=file)
    elif head.startswith(b"BZh"):
        opened = bz2.BZ2File(file)
    elif head.startswith(b"\xfd7zXZ\x00"):
        opened = lzma.LZMAFile(file)  # noqa: SIM115
    elif head[257:262] == b"ustar" or archive.suffix.lower() == ".tar":
        opened = file
    else:
        raise DataError(f"it is no archive that can be read. {_ALLOWED}.")
    yield from _tar(file, opened, writer)


def _zip(file: IO[bytes], writer: _Writer) -> Iterator[float]:
    with zipfile.ZipFile(file) as opened:
        members = opened.infolist()
        declared = sum(member.file_size for member in members)
        writer.check_bytes(declared)
        require_space(writer.folder, declared)
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(f"the member {member.filename[:100]!a} is a link or device. Only files are allowed.")
            if member.flag_bits & _ENCRYPTED:
                raise DataError(f"the member {member.filename[:100]!a} is encrypted. Unpack it yourself.")
            if member.compress_type not in _METHODS:
                raise DataError(f"the member {member.filename[:100]!a} is packed by an unknown method. {_ALLOWED}.")
            # The name as it is written: zipfile cuts it at a null character, and would hide one.
            name = member.orig_filename
            if name.endswith("/"):
                writer.place(name, folder=True).mkdir(parents=True, exist_ok=True)
                continue
            with opened.open(member) as source:
                for _ in writer.write(name, member.file_size, source):
                    yield writer.written / max(1, declared)


def _tar(file: IO[bytes], stream: IO[bytes], writer: _Writer) -> Iterator[float]:
    total = max(1, os.fstat(file.fileno()).st_size)
    require_space(writer.folder, total)
    bounded: Any = _Bounded(stream, writer)
    opened: Any
    with tarfile.open(fileobj=bounded, mode="r:", encoding="utf-8") as opened:
        for member in opened:
            opened.members.clear()  # or it keeps every header in memory
            if member.isdir():
                writer.place(member.name, folder=True).mkdir(parents=True, exist_ok=True)
                continue
            source = opened.extractfile(member) if member.isreg() and not member.issparse() else None
            if source is None:
                raise DataError(f"the member {member.name[:100]!a} is a link or device. Only files are allowed.")
            for _ in writer.write(member.name, member.size, source):
                yield file.tell() / total
        # tarfile takes a damaged header for the end, in silence; the end is a block of zeros.
        if len(bounded.last) != _TAR_BLOCK or any(bounded.last):
            raise DataError("it is damaged or ends too early. Fetch it again.")
        while bounded.read(_BLOCK):  # to the end, where the checksum of a compressed file is
            pass


def _is_no_name(part: str) -> bool:
    """Say whether a folder or file can't be called so on some system; dots alone, such as `..`, fold to nothing."""
    return _folded(part) == "" or len(part.encode()) > 255 or _DEVICES.fullmatch(part) is not None


def _folded(part: str) -> str:
    """Return what names have in common that are one file on some system: case, accents' spelling, dots at the end."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", part).casefold()).rstrip(". ")
