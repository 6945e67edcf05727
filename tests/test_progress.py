"""Progress, and the processes that work beside it."""

import os
import subprocess
import sys


def test_processes_import_nothing_from_the_current_folder(tmp_path, hostile_folder):
    """20.36: neither the processes of `process_map` nor their helper process import modules of the current folder."""
    folder, seen = hostile_folder
    script = tmp_path / "script.py"
    script.write_text("from leukemia_dl.progress import process_map; print(process_map(abs, [-1, -2, 3], 'Working'))")
    ran = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True)
    assert (ran.stdout, seen()) == ("[1, 2, 3]\n", []), ran.stderr


def test_processes_that_decode_keep_their_memory(monkeypatch):
    """A choice of the user is kept."""
    from leukemia_dl.progress import kept_memory, process_map

    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    assert process_map(os.getenv, ["MALLOC_MMAP_MAX_", "PYTHONSAFEPATH"], "Working") == ["0", "1"]
    assert not os.environ["PYTHONSAFEPATH"]
    monkeypatch.setenv("MALLOC_ARENA_MAX", "3")
    assert kept_memory() == {}
