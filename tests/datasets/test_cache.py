"""The cache folder and its limit."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from leukemia_dl.datasets import Dataset, PixelStore
from leukemia_dl.datasets.cache import cache_limit, cache_use, in_use, make_room
from leukemia_dl.errors import SettingsError
from leukemia_dl.preprocess import Pipeline

DAY = 86_400


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEUKEMIA_DL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def store(size: int) -> PixelStore:
    images = np.random.default_rng(0).integers(0, 256, (6, 20, 20, 3), dtype=np.uint8)
    return Dataset.from_arrays(images, np.arange(6) % 2, ("a", "b")).pixel_store(Pipeline.default(size))


def age(path: Path, days: float) -> None:
    os.utime(path, (time.time() - days * DAY,) * 2)


def test_what_was_not_used_for_longest_makes_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20.42: the cache had no limit: pixels of every size and features of every net stayed for ever."""
    first, second, third = store(16).folder, store(17).folder, store(18).folder
    written = cache / "features" / "net-0a1b.npy"
    written.parent.mkdir(parents=True)
    np.save(written, np.ones((10, 3), np.float32))
    for path, days in ((first, 5), (written, 4), (second, 3), (third, 0.5)):
        age(path, days)
    assert [place for _, _, place in cache_use()] == [first, written, second, third]
    sizes = {place: size for _, size, place in cache_use()}
    assert sizes[first] == sum(file.stat().st_size for file in first.iterdir())
    total = sum(sizes.values())
    needed = 6 * 19 * 19 * 3
    monkeypatch.setenv("LEUKEMIA_DL_CACHE_LIMIT", str((total + needed) / 1e9))
    fourth = store(19).folder
    assert first.exists()  # it fits to the byte
    in_use(written)
    monkeypatch.setenv("LEUKEMIA_DL_CACHE_LIMIT", str((total + needed) / 1e9))
    fifth = store(20).folder
    assert not first.exists()
    assert written.exists()
    assert second.exists() is (sizes[first] >= 6 * 20 * 20 * 3 + fourth.joinpath("index.json").stat().st_size)
    monkeypatch.setenv("LEUKEMIA_DL_CACHE_LIMIT", "0")
    sixth = store(21).folder
    assert not second.exists()
    for kept in (third, fourth, fifth, sixth, written):
        assert kept.exists()  # used within a day
    age(written, 2)
    make_room(cache / "features" / "net-0a1c.npy", 12)
    assert not list(written.parent.iterdir())


def test_a_store_that_is_opened_counts_as_used(cache: Path) -> None:
    """20.42: opening a store, also by another process, makes it the one that was used last."""
    opened = store(16)
    for again in (lambda: store(16), lambda: opened.__reduce__()[0](*opened.__reduce__()[1])):
        age(opened.folder, 9)
        again()
        assert time.time() - opened.folder.stat().st_mtime < DAY / 2


def test_nothing_is_deleted_for_what_lies_elsewhere(cache: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LEUKEMIA_DL_CACHE_LIMIT", "0")
    old = store(16).folder
    age(old, 9)
    make_room(tmp_path / "pixels" / "other", 10**9)
    assert old.exists()


def test_the_limit_is_a_size_in_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, limit in (("", 20e9), ("1.5", 1.5e9), ("0", 0.0), ("inf", float("inf"))):
        monkeypatch.setenv("LEUKEMIA_DL_CACHE_LIMIT", text)
        assert cache_limit() == limit
    for text in ("-1", "nan", "20 GB"):
        monkeypatch.setenv("LEUKEMIA_DL_CACHE_LIMIT", text)
        with pytest.raises(SettingsError, match="LEUKEMIA_DL_CACHE_LIMIT is a size in GB, such as 20, or inf"):
            cache_limit()


def test_hidden_folders_of_the_user_stay(tmp_path: Path) -> None:
    """20.42: hidden folders with eight digits in their names, such as a date, were deleted after a day."""
    names = [".backup-20240101", ".conda-deadbeef-env", ".notes-20231224.txt", ".x-0a1b2c3d.unfinished"]
    for name in names:
        (tmp_path / name).mkdir()
        age(tmp_path / name, 3)
    Dataset.from_arrays(np.zeros((2, 16, 16, 3), np.uint8), [0, 1], ("a", "b")).pixel_store(
        Pipeline.default(8, canvas=None), folder=tmp_path, show_progress=False
    )
    assert [name for name in names if not (tmp_path / name).exists()] == [".x-0a1b2c3d.unfinished"]
