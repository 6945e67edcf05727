"""Write files and folders aside, flush them to the disk, and move them in place: absent or complete at any moment."""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_OLD, _UNFINISHED = ".old", ".unfinished"
_ATTEMPTS = 100


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside `path` to be written, and put it in the place of `path` unless the block raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _beside(path, _UNFINISHED)
    try:
        with aside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Write bytes to `path`."""
    with new_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to be filled, and put it in the place of `path` unless the block raises; the last one stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _beside(path, _UNFINISHED)
    try:
        aside.mkdir()
        yield aside
        _sync(aside)
        _move_folder(aside, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def moved_aside(parent: Path) -> list[tuple[Path, Path]]:
    """Return folders that a writer had moved out of the way when it was killed, each with its place, which is free."""
    moved = [(old, parent / old.name[1 : -len(_OLD) - 9]) for old in parent.glob(f".*{_OLD}")]
    return [(old, place) for old, place in moved if not place.exists()]


def remove_unfinished(parent: Path) -> None:
    """Remove what killed writers left in a folder, if it is older than a day."""
    left = {path for end in (_UNFINISHED, _OLD) for path in parent.glob(f".*-{8 * '[0-9a-f]'}{end}")}
    for path in left - {old for old, _ in moved_aside(parent)}:  # which is the only copy
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime > 86_400:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a regular file as 64 hexadecimal digits; OSError for anything else."""
    if not stat.S_ISREG(path.stat().st_mode):  # asked first, since opening a pipe would wait for ever
        raise OSError(f"{path} is no regular file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}{suffix}")


def _move_folder(aside: Path, path: Path) -> None:
    """Put a folder in the place of another, which has to be moved out of the way first if it holds files."""
    old = _beside(path, _OLD)
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            with contextlib.suppress(FileNotFoundError):
                path.replace(old)
            aside.replace(path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not attempts_left:
                raise  # otherwise another writer was faster
            time.sleep(0.005)
        finally:
            with contextlib.suppress(OSError):
                old.rename(path)  # fails if there is a new one, and then the old one is out of date
            shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    if os.name != "nt":  # Windows cannot flush the names in a folder
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
