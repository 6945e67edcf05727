"""Progress, and the processes that work beside it."""

import io
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from leukemia_dl import progress


@pytest.mark.parametrize("show", [True, False])
def test_without_a_terminal_there_is_a_line_every_ten_seconds(monkeypatch, capsys, show):
    clock = iter(range(0, 100, 3))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert "".join(progress.track("abcdefgh", 8, "Working", show)) == "abcdefgh"
    lines = capsys.readouterr().err.splitlines()
    assert lines == (["Working: 4 of 8", "Working: 8 of 8"] if show else [])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert progress.parallel_map(str, range(3), "Working") == ["0", "1", "2"]
    assert "Working" in sys.stderr.getvalue()


def test_threads_keep_the_order_and_the_first_error_is_raised():
    assert progress.parallel_map(abs, range(-50, 0), "Working") == list(range(50, 0, -1))
    with pytest.raises(ZeroDivisionError):
        progress.parallel_map(lambda number: 1 / number, [2, 1, 0, 1], "Working", workers=2)


def test_processes_import_nothing_from_the_current_folder(tmp_path, hostile_folder):
    """20.36: neither the processes of `process_map` nor their helper process import modules of the current folder."""
    folder, seen = hostile_folder
    script = tmp_path / "script.py"
    script.write_text("from leukemia_dl.progress import process_map; print(process_map(abs, [-1, -2, 3], 'Working'))")
    ran = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True)
    assert (ran.stdout, seen()) == ("[1, 2, 3]\n", []), ran.stderr


def test_processes_that_decode_keep_their_memory(monkeypatch):
    """A choice of the user is kept."""
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    assert progress.process_map(os.getenv, ["MALLOC_MMAP_MAX_", "PYTHONSAFEPATH"], "Working") == ["0", "1"]
    assert not os.environ["PYTHONSAFEPATH"]
    monkeypatch.setenv("MALLOC_ARENA_MAX", "3")
    assert progress.kept_memory() == {}
