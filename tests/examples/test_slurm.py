"""The two ways to a SLURM cluster, without one: an array job's tasks one after the other, submitit on this machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import leukemia_dl as ldl

FOLDER = Path(__file__).parents[2] / "examples" / "slurm"
SIZES = {"subjects": 12, "images": 60, "preliminary_images": 12, "final_images": 2}


@pytest.fixture
def settings(tmp_path):
    """A settings file of two trials and a floor."""
    pytest.importorskip("keras")
    dataset = ldl.Dataset.load("synthetic", root=tmp_path / "cells", **SIZES)
    recipe = ldl.Recipe.preset("quick", image_size=32, epochs=1)
    bench = ldl.Benchmark(
        dataset, ["cnn"], recipe=recipe, seeds=[0, 1], baselines=["majority"], threads=1, store=tmp_path / "store"
    )
    bench.to_toml(tmp_path / "cluster.toml")
    return tmp_path / "cluster.toml"


def run(*command, cwd, **environment):
    # Without what a test of the browser or a proxy may have set; with the scripts of this environment first.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    answer = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, "PATH": path, **environment},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.slow
def test_the_tasks_of_an_array_job_make_one_table(settings, tmp_path):
    for task in ("1", "2"):
        store = tmp_path / "store" / "results.csv"
        assert not store.exists() or len(pd.read_csv(store)) < 3
        script = ["bash", FOLDER / "array_job.sh", settings]
        run(*script, cwd=tmp_path, SLURM_ARRAY_TASK_ID=task, SLURM_ARRAY_TASK_COUNT="2")
    frame = pd.read_csv(store)
    assert sorted(frame["backbone"]) == ["cnn", "cnn", "majority"]
    assert set(frame["status"]) == {"ok"}
    assert (tmp_path / "store" / "report.html").is_file()


@pytest.mark.slow  # other executors with `submit` are tested in tests/benchmark
def test_submitit_runs_the_grid_on_this_machine(settings, tmp_path):
    pytest.importorskip("submitit")
    printed = run(sys.executable, FOLDER / "submitit_grid.py", settings, "--local", cwd=tmp_path)
    assert "to do" in printed
    frame = pd.read_csv(tmp_path / "store" / "results.csv")
    assert sorted(frame["backbone"]) == ["cnn", "cnn", "majority"]
    assert set(frame["status"]) == {"ok"}
