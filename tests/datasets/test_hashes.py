import hashlib
import os
import time
from pathlib import Path

import pytest

from leukemia_dl.datasets import hashes
from leukemia_dl.datasets.hashes import file_hashes, tried_hashes
from leukemia_dl.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEUKEMIA_DL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "_SETTLED_NS", 0)
    hashes._warn_once.cache_clear()
    return tmp_path / "cache"


def file_hash(path: str) -> str:
    return file_hashes([path])[0]


def old(path: Path, content: bytes, age: int = 60) -> Path:
    path.write_bytes(content)
    os.utime(path, ns=(time.time_ns() - age * 10**9,) * 2)
    return path


def remembered(cache: Path) -> int:
    return len((cache / hashes.HASH_FILE).read_text().splitlines())


def test_hashes_are_those_of_hashlib_in_order(tmp_path: Path) -> None:
    paths = [old(tmp_path / f"{i}", bytes([i]) * 1000) for i in (3, 1, 2)]
    expected = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert file_hashes([str(path) for path in paths]) == expected
    assert file_hash(str(paths[0])) == expected[0]


def test_the_next_process_does_not_read_again(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old(tmp_path / "a", b"one")
    first = file_hash(str(path))
    hashes._remembered.cache_clear()  # as in a new process
    monkeypatch.setattr(hashes, "sha256_of_file", lambda key: pytest.fail(f"read {key} again"))
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
    monkeypatch.setattr(hashes, "_SETTLED_NS", 2 * 10**9)
    file_hash(str(old(tmp_path / "warm", b"x")))
    assert remembered(cache) == 1


def test_files_that_change_places_are_noticed(tmp_path: Path) -> None:
    """Same size and same time of change, as an archive may give to all its files."""
    one, two = old(tmp_path / "one", b"one"), old(tmp_path / "two", b"two")
    os.utime(two, ns=(one.stat().st_mtime_ns,) * 2)
    paths = [str(one), str(two)]
    before = file_hashes(paths)
    time.sleep(0.05)  # longer than a tick of the file system's clock
    one.rename(tmp_path / "aside")
    two.rename(one)
    (tmp_path / "aside").rename(two)
    assert file_hashes(paths) == before[::-1]


def test_a_name_need_not_be_utf_8(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.bmp")
    old(Path(name), b"z")
    first = file_hash(name)
    assert (file_hash(name), remembered(cache)) == (first, 1)


@pytest.mark.parametrize("damage", ["garbage", "folder", "half a line"])
def test_a_damaged_memory_is_an_aid_that_is_missing(tmp_path: Path, cache: Path, damage: str) -> None:
    cache.mkdir()
    if damage == "folder":
        (cache / hashes.HASH_FILE).mkdir()
    else:
        (cache / hashes.HASH_FILE).write_bytes(b"\xff{}\n[1]\nnull" * 10 if damage == "garbage" else b'["/a", 1, 2, 3')
    path = old(tmp_path / "a", b"one")
    for _ in range(2):
        assert file_hash(str(path)) == hashlib.sha256(b"one").hexdigest()
        hashes._remembered.cache_clear()


def test_a_cache_folder_that_cannot_be_made_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEUKEMIA_DL_CACHE", str(tmp_path / "file" / "below"))
    assert file_hash(str(old(tmp_path / "a", b"one"))) == hashlib.sha256(b"one").hexdigest()


def test_what_is_no_regular_file_is_refused_and_the_rest_is_kept(tmp_path: Path, cache: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, match in ((tmp_path / "pipe", "no regular file"), (tmp_path, "no regular"), (tmp_path / "gone", "moved")):
        with pytest.raises(DataError, match=match):
            file_hashes([str(path)])
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(DataError, match="Cannot read"):
        file_hash(str(loop))
    with pytest.raises(DataError, match="Cannot read"):
        file_hash("a\0b")


def test_tried_hashes_have_the_error_in_the_place_of_the_hash(tmp_path: Path) -> None:
    good = [old(tmp_path / name, name.encode()) for name in "abc"]
    paths = [str(good[0]), str(tmp_path / "gone"), str(good[1]), str(tmp_path), str(good[2])]
    found = tried_hashes(paths)
    assert [found[i] for i in (0, 2, 4)] == file_hashes([str(path) for path in good])
    assert [type(found[i]) for i in (1, 3)] == [DataError, DataError]
