"""How a worker process is started, and what travels to it."""

import os
import pickle
import subprocess
import sys

import pytest

import grids
import leukemia_dl as ldl
from command import FAST, SIZES
from leukemia_dl.benchmark.runner import Task
from leukemia_dl.benchmark.worker import packed_task, prepare_elsewhere
from leukemia_dl.errors import BackendError, SettingsError
from leukemia_dl.training import ComputeConfig


def test_a_backbone_of_a_script_is_one_for_all_its_tasks(synthetic_root, tmp_path):
    """Its function is sent by value; by equal bytes the worker knows it again, and builds its net once."""
    data = grids.dataset(synthetic_root)
    made = ldl.Benchmark(data, ["cnn"], recipe=grids.RECIPE, seeds=[0, 1], baselines=[], store=tmp_path)
    spec = ldl.BackboneSpec(name="here", build=lambda *given: given, scaling="unit", native_size=32, min_size=8)
    tasks = [packed_task(Task(cell.trial, cell.split, spec, 32)) for cell in made.planned.trials]
    assert len({pickle.loads(task)[0] for task in tasks}) == 1 < len({*tasks})


def test_nothing_in_the_current_folder_is_run(tmp_path, hostile_folder):
    """20.36: workers, and the process that looks for a device, import no module of the current folder."""
    folder, seen = hostile_folder
    script = tmp_path / "bin" / "leukemia-dl.py"  # as the installed command: its own folder is first on the path
    script.parent.mkdir()
    script.write_text("from leukemia_dl.cli import main; main()")
    store = tmp_path / "store"
    arguments = [*FAST, *SIZES, "--executor", "processes", "--store", str(store)]
    ran = subprocess.run([sys.executable, script, "benchmark", *arguments], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert seen() == []


def test_a_child_that_prints_breaks_no_answer(tmp_path, monkeypatch):
    """20.28: lines that a module prints when a process starts are no part of its answer."""
    (tmp_path / "sitecustomize.py").write_text("print('welcome', flush=True)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    prepare_elsewhere("float32", ComputeConfig("cpu"))
    with pytest.raises(SettingsError, match="mixed_bfloat16"):
        prepare_elsewhere("mixed_bfloat16", ComputeConfig("cpu"))


@pytest.mark.parametrize("end", ["import os; os._exit(0)", "import os; os._exit(3)", "raise SystemError('no luck')"])
def test_a_child_without_an_answer_is_an_error(tmp_path, monkeypatch, end):
    """20.28: a process that ends without an answer does not count as success, whatever its status is."""
    (tmp_path / "sitecustomize.py").write_text(end if "exit" in end else "")
    (tmp_path / "keras.py").write_text(end)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(BackendError, match=r"ended with status \d and no answer: .*leukemia-dl doctor"):
        prepare_elsewhere("float32", ComputeConfig("cpu"))
