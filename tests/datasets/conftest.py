"""What several tests of data sets share."""

import os
import random
from collections.abc import Callable

import pytest

from leukemia_dl.datasets import dataset as dataset_module


@pytest.fixture
def contents_from_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up samples have no files: what follows "#" in the path stands for the content."""
    real = dataset_module.tried_hashes

    def hashes(paths: list[str]) -> list[str]:
        return [path.split("#")[1] for path in paths] if all("#" in path for path in paths) else real(paths)

    monkeypatch.setattr(dataset_module, "tried_hashes", hashes)


class _Listing:
    """The entries of a folder, as `os.scandir` returns them."""

    def __init__(self, entries: list[os.DirEntry[str]]) -> None:
        self._entries = iter(entries)

    def __enter__(self) -> "_Listing":
        return self

    def __exit__(self, *_: object) -> None: ...

    def __iter__(self) -> "_Listing":
        return self

    def __next__(self) -> "os.DirEntry[str]":
        return next(self._entries)


@pytest.fixture
def list_folders(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that lets folders be listed in another order, or refuses to list the folder of a name.

    The administrator may read everything, so permissions alone would not show it.
    """
    real = os.scandir

    def change(seed: int = 0, refused: str = "") -> None:
        def scandir(folder: str) -> _Listing:
            if os.path.basename(folder) == refused:  # noqa: PTH119
                raise PermissionError(13, "Permission denied", folder)
            entries = sorted(real(folder), key=lambda entry: entry.name)
            random.Random(seed).shuffle(entries)
            return _Listing(entries)

        monkeypatch.setattr(os, "scandir", scandir)

    return change
