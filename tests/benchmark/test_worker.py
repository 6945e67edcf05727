"""How a worker process is started, and what travels to it."""

import os
import subprocess
import sys

import pytest

from command import FAST, SIZES
from leukemia_dl.benchmark import ProcessExecutor
from leukemia_dl.benchmark.process_executor import check_device
from leukemia_dl.errors import BackendError, SettingsError
from leukemia_dl.training import ComputeConfig


def test_nothing_in_the_current_folder_is_run(tmp_path, hostile_folder):
    """20.36: workers, and the process that looks for a device, import no module of the current folder."""
    folder, seen = hostile_folder
    script = tmp_path / "bin" / "leukemia-dl.py"  # as the installed command: its own folder is first on the path
    script.parent.mkdir()
    script.write_text("from leukemia_dl.cli import main; main()")
    store = tmp_path / "store"
    arguments = [*FAST, *SIZES, "-s", "precision=float32", "--executor", "processes", "--store", str(store)]
    ran = subprocess.run([sys.executable, script, "benchmark", *arguments], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert seen() == []


def test_a_child_that_prints_breaks_no_answer(tmp_path, monkeypatch):
    """20.28: lines that a module prints when a process starts are no part of its answer."""
    (tmp_path / "sitecustomize.py").write_text("print('welcome', flush=True)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(SettingsError, match="mixed_bfloat16"):
        check_device(ProcessExecutor(), "mixed_bfloat16", ComputeConfig("cpu"))


def test_a_child_without_an_answer_is_an_error(tmp_path, monkeypatch):
    """20.28: a process that ends without an answer does not count as success, although its status is 0."""
    (tmp_path / "keras.py").write_text("import os; os._exit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendError, match=r"ended without a result \(EXIT\(0\)\).*leukemia-dl doctor"):
        check_device(ProcessExecutor(), "float32", ComputeConfig("cpu"))
