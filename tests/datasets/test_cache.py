"""The cache folder, its limit, and the hashes that are remembered in it."""

import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from leukemia_dl.datasets import Dataset, PixelStore
from leukemia_dl.datasets import cache as module
from leukemia_dl.datasets.cache import HASH_FILE, cache_limit, cache_use, in_use, make_room, tried_hashes
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.preprocess import Pipeline

DAY = 86_400


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEUKEMIA_DL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_SETTLED_NS", 0)
    return tmp_path / "cache"


def store(size: int) -> PixelStore:
    images = np.random.default_rng(0).integers(0, 256, (6, 20, 20, 3), dtype=np.uint8)
    return Dataset.from_arrays(images, np.arange(6) % 2, ("a", "b")).pixel_store(Pipeline.default(size))


def age(path: Path, days: float) -> None:
    os.utime(path, (time.time() - days * DAY,) * 2)


def test_what_was_not_used_for_longest_makes_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20.42: the cache had no limit: pixels of every size and features of every net stayed for ever."""
    first, second, third = store(16).path, store(17).path, store(18).path
    written = cache / "features" / "net-0a1b.npy"
    written.parent.mkdir(parents=True)
    np.save(written, np.ones((10, 3), np.float32))
    for path, days in ((first, 5), (written, 4), (second, 3), (third, 0.5)):
        age(path, days)
    assert [place for _, _, place in cache_use()] == [first, written, second, third]
    sizes = {place: size for _, size, place in cache_use()}
    assert sizes[first] == first.stat().st_size
    total = sum(sizes.values())
    needed = 6 * 19 * 19 * 3
    monkeypatch.setenv("LEUKEMIA_DL_CACHE_LIMIT", str((total + needed) / 1e9))
    fourth = store(19).path
    assert first.exists()  # it fits to the byte
    in_use(written)
    monkeypatch.setenv("LEUKEMIA_DL_CACHE_LIMIT", str((total + needed) / 1e9))
    fifth = store(20).path
    assert not first.exists()
    assert written.exists()
    assert second.exists() is (sizes[first] >= 6 * 20 * 20 * 3 + 128)  # with the header of the fourth
    monkeypatch.setenv("LEUKEMIA_DL_CACHE_LIMIT", "0")
    sixth = store(21).path
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
        age(opened.path, 9)
        again()
        assert time.time() - opened.path.stat().st_mtime < DAY / 2


def test_nothing_is_deleted_for_what_lies_elsewhere(cache: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LEUKEMIA_DL_CACHE_LIMIT", "0")
    old = store(16).path
    age(old, 9)
    make_room(tmp_path / "pixels" / "other", 10**9)
    assert old.exists()


def test_the_limit_is_a_size_in_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, limit in (("", 20e9), ("1.5", 1.5e9), ("0", 0.0), ("inf", float("inf"))):
        monkeypatch.setenv("LEUKEMIA_DL_CACHE_LIMIT", text)
        assert cache_limit() == limit
    for text in ("-1", "nan", "20 GB"):
        monkeypatch.setenv("LEUKEMIA_DL_CACHE_LIMIT", text)
        with pytest.raises(SettingsError, match=r"LEUKEMIA_DL_CACHE_LIMIT must be a number in \[0, inf\]"):
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


def file_hash(path: str) -> str | DataError:
    return tried_hashes([path])[0]


def old(path: Path, content: bytes, age: int = 60) -> Path:
    path.write_bytes(content)
    os.utime(path, ns=(time.time_ns() - age * 10**9,) * 2)
    return path


def remembered(cache: Path) -> int:
    return len(json.loads((cache / HASH_FILE).read_bytes()))


def test_hashes_are_those_of_hashlib_in_order(tmp_path: Path) -> None:
    paths = [old(tmp_path / f"{i}", bytes([i]) * 1000) for i in (3, 1, 2)]
    expected = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert tried_hashes([str(path) for path in paths]) == expected
    assert file_hash(str(paths[0])) == expected[0]


def test_the_next_process_does_not_read_again(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old(tmp_path / "a", b"one")
    first = file_hash(str(path))
    monkeypatch.setattr(module, "sha256_of_file", lambda key: pytest.fail(f"read {key} again"))
    assert file_hash(str(path)) == first
    assert remembered(cache) == 1


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_file_that_changed_is_read_again(tmp_path: Path, change: str) -> None:
    path = old(tmp_path / "a", b"one")
    first = file_hash(str(path))
    old(path, b"other" if change == "size" else b"two", age=60 if change == "size" else 30)
    assert file_hash(str(path)) == hashlib.sha256(path.read_bytes()).hexdigest() != first


def test_a_file_that_is_still_warm_is_not_remembered_on_disk(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_hash(str(old(tmp_path / "old", b"y")))
    monkeypatch.setattr(module, "_SETTLED_NS", 2 * 10**9)
    file_hash(str(old(tmp_path / "warm", b"x")))
    assert remembered(cache) == 1


def test_files_that_change_places_are_noticed(tmp_path: Path) -> None:
    """Same size and same time of change, as an archive may give to all its files."""
    one, two = old(tmp_path / "one", b"one"), old(tmp_path / "two", b"two")
    os.utime(two, ns=(one.stat().st_mtime_ns,) * 2)
    paths = [str(one), str(two)]
    before = tried_hashes(paths)
    time.sleep(0.05)  # longer than a tick of the file system's clock
    one.rename(tmp_path / "aside")
    two.rename(one)
    (tmp_path / "aside").rename(two)
    assert tried_hashes(paths) == before[::-1]


def test_a_name_need_not_be_utf_8(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.bmp")
    old(Path(name), b"z")
    first = file_hash(name)
    assert (file_hash(name), remembered(cache)) == (first, 1)


@pytest.mark.parametrize("damage", [b"\xff{}", b"[1]", b'{"/a": [1, 2, 3', b'{"/a": 1}', "folder"])
def test_a_damaged_memory_is_an_aid_that_is_missing(tmp_path: Path, cache: Path, damage: bytes | str) -> None:
    cache.mkdir()
    if isinstance(damage, str):
        (cache / HASH_FILE).mkdir()
    else:
        (cache / HASH_FILE).write_bytes(damage)
    path = old(tmp_path / "a", b"one")
    for _ in range(2):
        assert file_hash(str(path)) == hashlib.sha256(b"one").hexdigest()


def test_a_cache_folder_that_cannot_be_made_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEUKEMIA_DL_CACHE", str(tmp_path / "file" / "below"))
    assert file_hash(str(old(tmp_path / "a", b"one"))) == hashlib.sha256(b"one").hexdigest()


def test_what_is_no_regular_file_is_refused_and_the_rest_is_kept(tmp_path: Path, cache: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, match in ((tmp_path / "pipe", "no regular file"), (tmp_path, "no regular"), (tmp_path / "gone", "moved")):
        assert match in str(file_hash(str(path)))
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for name in (str(loop), "a\0b"):
        assert str(file_hash(name)).startswith("Cannot read")


def test_tried_hashes_have_the_error_in_the_place_of_the_hash(tmp_path: Path) -> None:
    good = [old(tmp_path / name, name.encode()) for name in "abc"]
    paths = [str(good[0]), str(tmp_path / "gone"), str(good[1]), str(tmp_path), str(good[2])]
    found = tried_hashes(paths)
    assert [found[i] for i in (0, 2, 4)] == tried_hashes([str(path) for path in good])
    assert [type(found[i]) for i in (1, 3)] == [DataError, DataError]
