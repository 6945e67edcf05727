"""The scripts below benchmarks/ that measure speed, in their short forms: they run, and say what they are."""

import json
import os
import re
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
BACKEND = os.environ.get("KERAS_BACKEND", "tensorflow")


def run(script, *arguments, timeout=600):
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


SHORT = ("imports",)
LONG = ("inference", "evaluation", "report", "data", "preprocess", "training", "probe")


@pytest.mark.skipif(not util.find_spec("tensorflow"), reason="its other ways are TensorFlow's")
@pytest.mark.parametrize("names", [SHORT, pytest.param(LONG, marks=pytest.mark.slow)])
def test_each_benchmark_runs_and_writes_what_it_measured_and_where(names, tmp_path):
    printed = run("run.py", *names, "--short", "--results", str(tmp_path))
    for name in names:
        assert f"{name} (short form: says nothing of speed)" in printed
        said = json.loads((tmp_path / f"{name}.json").read_text())
        assert said["short"] is True
        assert {"numpy", "keras", "tensorflow"} <= set(said["environment"]["versions"])
        assert said["environment"]["cores"] >= 1
        for row in said["rows"]:
            assert row["low"] <= row["ratio"] <= row["high"]
            assert min(row["ours"], row["theirs"]) > 0
            assert row["what"] in printed


@pytest.mark.skipif(BACKEND != "jax", reason="runs on Keras with JAX")
def test_the_gpu_benchmark_runs_dry_on_a_cpu(tmp_path):
    printed = run("gpu.py", "--dry", "--results", str(tmp_path / "gpu.json"))
    (result,) = json.loads((tmp_path / "gpu.json").read_text())["results"]
    device, training, inference = result["said"]
    assert (device["backend"], device["kind"]) == ("jax", "cpu")
    assert min(training["ours"], training["fit"], inference["ours"], inference["fit"]) > 0
    assert "cnn             32 training" in printed


# Files that one run enters, and changes of file from call to call. These numbers may only fall.
FILES, CHANGES = 35, 250


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the numbers are those of TensorFlow")
def test_a_run_does_not_walk_further_through_the_code_than_before():
    command = [sys.executable, str(BENCHMARKS / "walk.py")]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False).stdout
    files, changes = (int(re.search(rf"^{what}: (\d+)", printed, re.M)[1]) for what in ("files", "changes of file"))
    assert files <= FILES, printed
    assert changes <= CHANGES, printed


@pytest.mark.parametrize("arguments", [["nonsense"], []])
def test_a_wrong_name_is_refused(arguments):
    command = [sys.executable, str(BENCHMARKS / "run.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "training" in done.stderr or "required" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="exports are written on TensorFlow")
def test_exported_nets_are_timed_beside_keras_and_compared(tmp_path):
    printed = run("export.py", "--nets", "cnn", "--seconds", "0.1", "--json", str(tmp_path / "export.json"))
    rows = json.loads((tmp_path / "export.json").read_text())
    assert {row["form"] for row in rows} == {"Keras", "predict", "onnx", "openvino", "litert", "saved_model"}
    for row in rows:
        assert row["images_per_second"] > 0
        assert (row["difference"] or 0) <= 1e-4
    assert "saved_model" in printed


def test_the_guide_shows_the_rates_that_were_measured():
    rows = json.loads((BENCHMARKS / "results/export.json").read_text())
    page = (BENCHMARKS.parent / "docs/guides/use.md").read_text()
    lines = {line.split("`")[1]: line for line in page.splitlines() if re.match(r"\| `\w+` \| \de-", line)}
    assert set(lines) == {row["net"] for row in rows}
    for row in rows:
        if row["form"] in ("onnx", "openvino", "litert"):
            assert f"| {row['images_per_second']:.1f} ({row['ratio']:.2f}) |" in lines[row["net"]]
            assert row["difference"] <= 1e-4
