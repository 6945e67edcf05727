"""Drivers as whole programs: interrupted, killed, two at a time, what they keep in memory, and what they show."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import grids
import leukemia_dl as ldl

HELPERS = Path(__file__).parents[1] / "helpers"
PROGRAM = f"""
import sys
sys.path.insert(0, {str(HELPERS)!r})
import dataclasses, signal
import grids
import leukemia_dl as ldl
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
names = grids.register(*(getattr(grids, name) for name in sys.argv[4].split(",")))
recipe = dataclasses.replace(grids.RECIPE, epochs=int(sys.argv[5]))
bench = ldl.Benchmark(grids.dataset(sys.argv[1]), names, recipe=recipe, store=sys.argv[2], seeds=[0, 1])
try:
    frame = bench.run(executor=sys.argv[3])
    print(*frame["status"])
except KeyboardInterrupt:
    print("stopped")
"""


@contextlib.contextmanager
def driver(root, store, executor="processes", names="tiny", epochs=2):
    arguments = [sys.executable, "-c", PROGRAM, str(root), str(store), executor, names, str(epochs)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def workers_of(store):
    """The processes that logs of a store name, as far as they live."""
    found = []
    for log in Path(store).glob("logs/*/log.txt"):
        for line in log.read_text().splitlines():
            if "begins in process" in line:
                number = int(line.split()[-1])
                with contextlib.suppress(OSError):
                    os.kill(number, 0)
                    found.append(number)
    return found


# In one process tests/cli/test_cli.py does the same.
@pytest.mark.parametrize("executor", ["processes", pytest.param("in-process", marks=pytest.mark.slow)])
def test_ctrl_c_once_ends_after_the_epoch_and_the_next_run_goes_on_from_there(synthetic_root, tmp_path, executor):
    with driver(synthetic_root, tmp_path, executor, epochs=400) as process:
        for line in process.stderr:
            if "epoch 3/400" in line:
                break
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert output.split() == ["stopped"]
    assert "Stopping after this epoch; Ctrl-C again stops at once." in errors
    assert "Traceback" not in errors
    table = pd.read_csv(tmp_path / "results.csv")
    assert set(table["backbone"]) == {"majority", "cell_size", "cell_colour"}
    (checkpoint,) = tmp_path.glob("unfinished/*/fit.npz")
    assert not workers_of(tmp_path) or executor == "in-process"
    epochs = [line for line in next(tmp_path.glob("logs/*/log.txt")).read_text().splitlines() if " epoch " in line]
    assert 3 <= len(epochs) < 400
    assert checkpoint.stat().st_size > 0
    with driver(synthetic_root, tmp_path, executor, epochs=400) as process:
        line = next(line for line in process.stderr if "epoch " in line)
        assert f"epoch {len(epochs) + 1}/400" in line


def test_ctrl_c_twice_stops_at_once_and_ends_what_hangs(synthetic_root, tmp_path):
    with driver(synthetic_root, tmp_path, names="hangs") as process:
        while not workers_of(tmp_path):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0].split() == ["stopped"]
    assert not workers_of(tmp_path)


def children_of(store):
    """Programs that hanging trials have started, as far as they live."""
    found = []
    for log in Path(store).glob("logs/*/log.txt"):
        numbers = [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("child")]
        for number in numbers:
            with contextlib.suppress(OSError):
                os.kill(number, 0)
                found.append(number)
    return found


def test_nothing_outlives_its_driver(synthetic_root, tmp_path):
    with driver(synthetic_root, tmp_path, names="hangs") as process:
        while not children_of(tmp_path):
            assert process.poll() is None
            time.sleep(0.05)
        assert list(tmp_path.glob("unfinished/run-*"))
        process.kill()
        end = time.monotonic() + 20
        while workers_of(tmp_path) or children_of(tmp_path):
            assert time.monotonic() < end, "something lives on"
            time.sleep(0.05)
        assert not list(tmp_path.glob("unfinished/run-*"))


@pytest.mark.slow
def test_two_drivers_on_one_store_lose_nothing_and_count_nothing_twice(dataset, synthetic_root, tmp_path):
    with (
        driver(synthetic_root, tmp_path / "two", names="tiny,talks") as one,
        driver(synthetic_root, tmp_path / "two", names="tiny,talks") as other,
    ):
        for process in (one, other):
            output, errors = process.communicate(timeout=300)
            assert output.split() == ["ok"] * 7, errors
    names = grids.register(grids.tiny, grids.talks)
    alone = ldl.Benchmark(dataset, names, recipe=grids.RECIPE, store=tmp_path / "alone", seeds=[0, 1])
    alone.run(executor="in-process", show_progress=False)
    tables = [(tmp_path / name / "results.csv").read_bytes() for name in ("two", "alone")]
    assert tables[0] == tables[1]
    assert len(list((tmp_path / "two" / "trials").iterdir())) == 7


MEMORY = f"""
import sys
sys.path.insert(0, {str(HELPERS)!r})
from pathlib import Path
import grids
import leukemia_dl as ldl
from leukemia_dl.benchmark.grid_runner import GridProgress
ends = GridProgress.end
def end(self, *arguments, **keywords):
    ends(self, *arguments, **keywords)
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(line.split()[1] for line in lines if line.startswith("RssAnon")), flush=True)
GridProgress.end = end
bench = ldl.Benchmark(grids.dataset(sys.argv[1]), grids.register(grids.tiny), recipe=grids.RECIPE, store=sys.argv[2],
    seeds=range(int(sys.argv[3])), baselines=[])
bench.run(executor="processes", workers=2, show_progress=False)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to measure memory")
@pytest.mark.parametrize("trials", [10, 50])
@pytest.mark.slow
def test_trials_leave_no_memory_behind_in_the_driver(synthetic_root, tmp_path, trials):
    command = [sys.executable, "-c", MEMORY, str(synthetic_root), str(tmp_path), str(trials)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=900)
    kilobytes = [int(word) for word in ran.stdout.split()]
    assert len(kilobytes) == trials, ran.stderr
    assert kilobytes[-1] <= 1.1 * kilobytes[4], kilobytes


@pytest.fixture(autouse=True)
def _backbones(_own_registry):
    grids.register(grids.tiny, grids.raises)


def test_the_plan_says_what_is_to_be_run(dataset, tmp_path, caplog):
    bench = ldl.Benchmark(dataset, ["tiny"], recipe=grids.RECIPE, store=tmp_path, baselines=["majority"], seeds=[0])
    bench.run(executor="in-process", show_progress=False)
    more = ldl.Benchmark(dataset, ["tiny"], recipe=grids.RECIPE, store=tmp_path, baselines=["majority"], seeds=[0, 1])
    plan = more.plan()
    assert list(plan["status"]) == ["ok", "to do", "ok"]
    assert plan["digest"].str.fullmatch("[0-9a-f]{64}").all()
    assert [digest[:12] == trial[-12:] for digest, trial in zip(plan["digest"], plan["trial"], strict=True)] == [
        True
    ] * 3
    (tmp_path / "trials" / plan["trial"][0] / "record.json").write_text("")
    assert list(more.plan()["status"]) == ["to do", "to do", "ok"]
    assert "is damaged" in caplog.text
    assert list((tmp_path / "trials").iterdir()), "a plan changes nothing"


def test_the_time_left_follows_from_finished_trials(dataset, tmp_path, capsys):
    bench = ldl.Benchmark(dataset, ["tiny"], recipe=grids.RECIPE, store=tmp_path, baselines=[], seeds=[0, 1])
    left = tmp_path / "unfinished" / "run-of-yesterday"  # as a stopped run of `submit` leaves it
    left.mkdir(parents=True)
    (left / "stop").touch()
    os.utime(left, (0, 0))
    bench.run(executor="in-process")
    first = capsys.readouterr().err.splitlines()
    assert not left.exists()
    assert re.fullmatch(r"tiny-.*-fold2-seed0 \.\.\.", first[0])
    ends = [line for line in first if "accuracy" in line and line.startswith("[")]
    assert re.search("; about .* left\\)$", ends[0])
    assert "left" not in ends[1]
