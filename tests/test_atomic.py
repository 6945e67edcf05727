"""Files and folders are absent or complete, also after a writer was killed."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from leukemia_dl.atomic import moved_aside, new_file, new_folder, remove_unfinished, sha256_of_file, write_file

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and limits of POSIX")
KILLED = """
import os, signal, sys
from pathlib import Path
from leukemia_dl import atomic
path, when = Path(sys.argv[1]), sys.argv[2]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if when == "between the two moves":
    real = Path.replace
    Path.replace = lambda self, to: die() if to == path else real(self, to)
if path.name == "file":
    with atomic.new_file(path) as file:
        file.write(b"new, half")
        file.flush()
        die()
with atomic.new_folder(path) as folder:
    (folder / "part").write_text("new")
    if when == "while it writes":
        die()
"""
FULL = """
import resource, sys
from pathlib import Path
from leukemia_dl import atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
atomic.write_file(Path(sys.argv[1]), bytes(2000))
"""


def run(program, *arguments):
    return subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)


def hidden(folder):
    return sorted(path for path in folder.iterdir() if path.name.startswith("."))


def make_old(path):
    os.utime(path, (time.time() - 90_000,) * 2)


def test_a_file_is_new_after_the_block_and_the_old_one_until_then(tmp_path):
    path = tmp_path / "deep" / "file"
    write_file(path, b"old")
    with new_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with pytest.raises(TypeError), new_file(path) as file:
        file.write("no bytes")
    assert path.read_bytes() == b"new"
    assert hidden(path.parent) == []


def test_a_killed_writer_of_a_file_leaves_the_old_one_and_its_rest_is_removed_after_a_day(tmp_path):
    path = tmp_path / "file"
    write_file(path, b"old")
    assert run(KILLED, path, "while it writes").returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    (rest,) = hidden(tmp_path)
    assert rest.read_bytes() == b"new, half"
    remove_unfinished(tmp_path)
    assert hidden(tmp_path) == [rest]  # its writer may be running
    make_old(rest)
    remove_unfinished(tmp_path)
    assert hidden(tmp_path) == []
    assert path.read_bytes() == b"old"


def test_a_killed_writer_of_a_folder_leaves_the_old_one(tmp_path):
    path = tmp_path / "folder"
    with new_folder(path) as folder:
        (folder / "part").write_text("old")
    assert run(KILLED, path, "while it writes").returncode == -signal.SIGKILL
    assert (path / "part").read_text() == "old"
    assert moved_aside(tmp_path) == []
    (rest,) = hidden(tmp_path)
    make_old(rest)
    remove_unfinished(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["folder"]


def test_a_writer_killed_between_the_two_moves_leaves_the_old_folder_aside_where_it_is_found(tmp_path):
    path = tmp_path / "folder"
    with new_folder(path) as folder:
        (folder / "part").write_text("old")
    assert run(KILLED, path, "between the two moves").returncode == -signal.SIGKILL
    assert not path.exists()
    ((old, place),) = moved_aside(tmp_path)
    assert place == path
    assert (old / "part").read_text() == "old"
    for item in hidden(tmp_path):
        make_old(item)
    remove_unfinished(tmp_path)
    assert hidden(tmp_path) == [old]  # the only copy is no rubbish
    old.rename(place)
    assert moved_aside(tmp_path) == []


def test_of_several_writers_of_one_folder_one_wins_and_it_is_complete(tmp_path):
    path, errors = tmp_path / "folder", []

    def write(number):
        try:
            for _ in range(5):
                with new_folder(path) as folder:
                    for name in "abc":
                        (folder / name).write_text(str(number))
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(item.name for item in path.iterdir()) == ["a", "b", "c"]
    assert len({item.read_text() for item in path.iterdir()}) == 1
    assert hidden(tmp_path) == []


def test_a_folder_takes_the_place_only_if_its_block_ends(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(FileNotFoundError), new_folder(path) as folder:
        (folder / "not there" / "part").write_text("new")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_file(path, b"old")
    answer = run(FULL, path)
    assert answer.returncode == 1
    assert "OSError" in answer.stderr
    assert path.read_bytes() == b"old"
    assert hidden(tmp_path) == []


def test_the_digest_of_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert sha256_of_file(path) == hashlib.sha256(b"content").hexdigest()
    os.mkfifo(tmp_path / "pipe")
    for wrong in (tmp_path, tmp_path / "pipe", tmp_path / "none"):
        with pytest.raises(OSError, match=r"is no regular file|No such file"):
            sha256_of_file(wrong)
