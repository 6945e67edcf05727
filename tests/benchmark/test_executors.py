"""A process per trial: what a trial does to itself happens to no other, and its results are those of any executor."""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import grids
import leukemia_dl as ldl
from command import FAST, SIZES
from leukemia_dl.benchmark import ProcessExecutor, SerialExecutor, SubmitExecutor
from leukemia_dl.benchmark.executors import _environments, choose_executor, visible_gpus
from leukemia_dl.errors import BackendError, SettingsError
from leukemia_dl.models import backbones as registry
from leukemia_dl.training.backends import ComputeConfig, core_count

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(autouse=True)
def _backbones(_own_registry):
    grids.register(grids.tiny, grids.raises, grids.exits, grids.killed, grids.hangs, grids.talks, grids.interrupts)


def bench(dataset, store, backbones=("tiny",), **settings):
    return ldl.Benchmark(dataset, list(backbones), **{"recipe": grids.RECIPE, "store": store, **settings})


@pytest.fixture(scope="module")
def expected(dataset, tmp_path_factory):
    """The results.csv of a run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_registered", {})
        grids.register(grids.tiny)
        made = bench(dataset, tmp_path_factory.mktemp("in-process"), folds=[0, 2])
        made.run(executor="in-process", show_progress=False)
    return (made.store.root / "results.csv").read_bytes()


@pytest.fixture(scope="module")
def broken(dataset, tmp_path_factory):
    """A run with a backbone for each thing that can go wrong, and some that are well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_registered", {})
        names = grids.register(
            grids.raises, grids.exits, grids.killed, grids.interrupts, grids.leaves, grids.starts_a_daemon, grids.talks
        )
        made = bench(dataset, tmp_path_factory.mktemp("broken"), names, baselines=["majority"])
        started = time.monotonic()
        frame = made.run(show_progress=False)
        assert time.monotonic() - started < 280, "the program that starts_a_daemon leaves was waited for"
        late = bench(dataset, made.store.root, grids.register(grids.hangs), baselines=[])
        frame = pd.concat([frame, late.run(executor="processes", time_limit=12, show_progress=False)])
    return made, frame.set_index("backbone")


def test_each_failure_is_a_row_and_takes_no_other_trial_with_it(broken):
    _, frame = broken
    well = ["starts_a_daemon", "talks", "majority"]
    assert list(frame.index[frame["status"] == "ok"]) == well
    assert dict(frame["exception"].drop(well)) == {
        "raises": "PluginError", "exits": "WorkerError", "killed": "WorkerError", "interrupts": "WorkerError",
        "leaves": "SystemExit", "hangs": "TimeLimitError",
    }  # fmt: skip
    message = frame["message"]
    assert message["raises"].endswith("raised ZeroDivisionError: the plugin's own fault")
    assert "EXIT(7)" in message["exits"]
    assert "SIGKILL(-9)" in message["killed"]
    assert message["interrupts"] == "KeyboardInterrupt"
    assert message["leaves"] == "half a character: \\ud800"
    assert message["hangs"] == "It took longer than 12 s and was killed."


def test_a_failure_has_its_traceback_and_its_log(broken):
    made, frame = broken
    for name in ("raises", "exits", "killed", "hangs"):
        text = (made.store.root / frame.loc[name, "traceback"]).read_text()
        assert frame.loc[name, "message"] in " ".join(text.split())
        assert "begins in process" in (made.store.root / "logs" / frame.loc[name, "trial"] / "log.txt").read_text()
    assert "in raises" in (made.store.root / frame.loc["raises", "traceback"]).read_text()


def test_what_a_plugin_prints_is_in_the_log(broken):
    made, frame = broken
    log = (made.store.root / "logs" / frame.loc["talks", "trial"] / "log.txt").read_text()
    assert "\na plugin that prints\n" in log
    assert "\nand starts programs that do\n" in log
    assert "Z epoch 2, phase full, loss" in log
    assert log.rstrip().endswith("ends")


def test_a_process_ends_by_itself_after_its_last_trial(broken):
    """20.28: what a plugin registered with atexit runs after a trial that succeeded, and no line is cut off."""
    made, frame = broken
    log = (made.store.root / "logs" / frame.loc["starts_a_daemon", "trial"] / "log.txt").read_text()
    assert log.rstrip().endswith("goodbye at exit")


def test_nothing_of_a_run_is_left_outside_its_store(broken):
    made, _ = broken
    assert not (made.store.root / "unfinished").exists()
    assert not [path for path in made.store.trials.iterdir() if path.name.startswith(".")]


def test_the_table_is_that_of_a_run_in_this_process_to_the_byte(dataset, tmp_path, expected):
    frame = bench(dataset, tmp_path, folds=[0, 2]).run(executor="processes", workers=2, show_progress=False)
    assert (frame["status"] == "ok").all()
    assert (tmp_path / "results.csv").read_bytes() == expected


def test_an_executor_of_concurrent_futures_gives_the_same_table(dataset, tmp_path, expected):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        made = bench(dataset, tmp_path, folds=[0, 2])
        made.run(executor=pool, show_progress=False)
    assert (tmp_path / "results.csv").read_bytes() == expected
    assert not (tmp_path / "unfinished").exists()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or core_count() < 2, reason="needs two cores to choose from")
def test_threads_are_those_of_the_machine_of_the_trial(dataset, tmp_path):
    """20.13: the number of cores of this process is neither sent to workers nor written into the settings."""
    one_core = {min(os.sched_getaffinity(0))}
    made = bench(dataset, tmp_path, folds=[2], baselines=[])
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=os.sched_setaffinity, initargs=(0, one_core)
    ) as pool:
        frame = made.run(executor=pool, show_progress=False)
    assert list(frame["threads"]) == [1]
    assert "\nthreads =" not in (tmp_path / "settings.toml").read_text()


def test_a_pool_that_breaks_is_a_failed_row(dataset, tmp_path):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        frame = bench(dataset, tmp_path, ["killed"], baselines=[]).run(executor=pool, show_progress=False)
    assert list(frame["exception"]) == ["WorkerError"]
    assert frame["message"][0].startswith("BrokenProcessPool: ")


def test_a_trial_that_interrupts_itself_stops_a_run_in_this_process(dataset, tmp_path):
    """There it cannot be told from the user's own Ctrl-C."""
    with pytest.raises(KeyboardInterrupt):
        bench(dataset, tmp_path, ["interrupts"], baselines=[]).run(executor="in-process", show_progress=False)


def test_whatever_a_plugin_does_is_a_row_in_this_process_too(dataset, tmp_path):
    names = grids.register(grids.leaves, grids.cannot_be_saved, grids.tiny)
    made = bench(dataset, tmp_path, names, baselines=[])
    frame = made.run(executor="in-process", show_progress=False).set_index("backbone")
    assert list(frame["exception"]) == ["SystemExit", "NotImplementedError", ""]
    assert frame.loc["leaves", "message"] == "half a character: \\ud800"
    assert "no settings" in frame.loc["cannot_be_saved", "message"]


def test_no_failure_takes_the_place_of_a_result(dataset, tmp_path, caplog):
    made = bench(dataset, tmp_path, baselines=[])
    first = made.run(executor="in-process", show_progress=False)
    frame = made.run(executor="in-process", existing="rerun", time_limit=1e-6, show_progress=False)
    pd.testing.assert_frame_equal(frame, first)
    assert "failed now; its earlier result is kept: TimeLimitError" in caplog.text
    assert len(list(tmp_path.glob("trials/*/model.keras"))) == 1


def test_functions_of_a_script_travel(dataset, synthetic_root, tmp_path):
    """A script needs neither a module of its own nor a guard against being imported by its workers."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(HELPERS)!r})
import grids
import leukemia_dl as ldl
def here(inputs, weights):
    return grids.tiny(inputs, weights)
def callbacks(context):
    import keras
    return [keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: print("called", epoch))]
grids.register(here)
bench = ldl.Benchmark(grids.dataset({str(synthetic_root)!r}), ["here"], recipe=grids.RECIPE, baselines=[],
    store={str(tmp_path / "s")!r}, seeds=[0, 1], callbacks=callbacks)
print(*bench.run(show_progress=False)["status"])
""")
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert ran.stdout.split() == ["ok", "ok"], ran.stderr
    logs = [path.read_text() for path in (tmp_path / "s" / "logs").glob("*/log.txt")]
    assert [log.count("\ncalled ") for log in logs] == [2, 2]
    settings = (tmp_path / "s" / "settings.toml").read_text()
    assert 'callbacks = "__main__:callbacks"' in settings


def test_what_cannot_be_sent_is_an_error_that_says_what_to_do(dataset, tmp_path):
    lock = (tmp_path / "open").open("w")
    made = bench(dataset, tmp_path / "s", seeds=[0, 1], callbacks=lambda context: [lock])
    with lock, pytest.raises(SettingsError, match=r"cannot be sent to other processes: .*in-process"):
        made.run(show_progress=False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"executor": "procesess"}, "executor must be"),
        ({"executor": 5}, "Received: 5"),
        ({"executor": ThreadPoolExecutor()}, "uses processes, not threads"),
        ({"executor": "in-process", "workers": 2}, "workers belongs to executor='processes'"),
        ({"workers": 0}, "workers must be a whole number"),
        ({"workers": 1.5}, "workers must be a whole number"),
        ({"time_limit": 0}, "time_limit must be"),
        ({"time_limit": "soon"}, "time_limit must be"),
        ({"time_limit": np.float32("nan")}, "time_limit must be"),
        ({"workers": np.bool_(True)}, "workers must be a whole number"),
        ({"shard": "5/4"}, "shard must be 'i/n'"),
        ({"shard": "one"}, "shard must be 'i/n'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(dataset, tmp_path, arguments, says):
    with pytest.raises(SettingsError, match=says):
        bench(dataset, tmp_path / "s").run(**arguments)
    assert not (tmp_path / "s").exists()


def test_numbers_of_numpy_are_those_of_python(dataset, tmp_path):
    assert type(choose_executor("processes", np.int64(2), 2).workers) is int
    frame = bench(dataset, tmp_path).run(time_limit=np.int64(600), executor="in-process", show_progress=False)
    assert (frame["status"] == "ok").all()


@pytest.mark.skipif(bool(visible_gpus()), reason="there is a GPU")
def test_a_device_that_is_not_there_is_one_error_and_no_rows(dataset, tmp_path):
    for executor in ("processes", "in-process"):
        made = bench(dataset, tmp_path / executor, seeds=[0, 1], device="gpu")
        with pytest.raises(BackendError, match="There is no gpu"):
            made.run(executor=executor, show_progress=False)
        assert (made.plan()["status"][:2] == "to do").all()


def test_gpus_are_those_that_the_environment_names_and_workers_take_them_in_turn(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-abc")
    assert visible_gpus() == ["2", "GPU-abc"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    for workers, gpus in ((None, "567"), (2, "56"), (4, "5675")):
        found = _environments(workers, ComputeConfig())
        assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == list(gpus)
    for nothing in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        assert visible_gpus() == []


def test_executors_by_name():
    assert isinstance(choose_executor("auto", None, 1), SerialExecutor)
    assert choose_executor("auto", None, 2) == ProcessExecutor()
    assert choose_executor("auto", 3, 1) == ProcessExecutor(3)
    with ProcessPoolExecutor(1) as pool:
        assert isinstance(choose_executor(pool, None, 2), SubmitExecutor)


def test_a_time_limit_in_this_process_is_seen_after_an_epoch_and_the_fit_goes_on_later(dataset, tmp_path):
    made = bench(dataset, tmp_path, baselines=[])
    row = made.run(executor="in-process", time_limit=1e-6, show_progress=False).iloc[0]
    assert (row["status"], row["exception"]) == ("failed", "TimeLimitError")
    assert len(list(tmp_path.glob("unfinished/*/fit.npz"))) == 1
    row = made.run(executor="in-process", show_progress=False).iloc[0]
    assert row["status"] == "ok"
    log = next(tmp_path.glob("logs/*/log.txt")).read_text()
    assert log.count(" epoch 1,") == 1, "it began from the start"
    assert not (tmp_path / "unfinished").exists()


def test_shards_are_parts_of_one_grid(dataset, tmp_path, expected):
    made = bench(dataset, tmp_path, folds=[0, 2])
    counts = [len(made.run(shard=f"{i}/3", executor="in-process", show_progress=False)) for i in (1, 2, 3)]
    assert counts == [3, 6, 8]
    assert (tmp_path / "results.csv").read_bytes() == expected


def test_a_loss_that_is_no_number_is_a_failed_row(dataset, tmp_path):
    names = grids.register(grids.gives_nan)
    frame = bench(dataset, tmp_path, names, baselines=["majority"]).run(show_progress=False)
    assert list(frame["status"]) == ["failed", "ok"]
    assert frame["exception"][0] == "TrainingError"
    assert "became nan" in frame["message"][0]


def test_a_full_disk_ends_the_run_with_one_error_and_loses_no_trial(dataset, tmp_path, expected):
    import errno

    from leukemia_dl.benchmark import store

    made, real, written = bench(dataset, tmp_path, folds=[0, 2]), store.write_file, []

    def fills_up(path, content):
        if path.name == "probabilities.npz" and path.parent.name.startswith(".tiny-official_clean-fold2"):
            written.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, content)

    full = pytest.raises(ldl.errors.StoreError, match=r"cannot be written: No space left on device. Free space")
    with pytest.MonkeyPatch.context() as patch, full:
        patch.setattr(store, "write_file", fills_up)
        made.run(executor="in-process", show_progress=False)
    assert len(written) == 1
    assert made.plan().set_index(["backbone", "fold"])["status"]["tiny", 0] == "ok"
    assert made.plan().set_index(["backbone", "fold"])["status"]["tiny", 2] == "to do"
    assert [path.name[:10] for path in tmp_path.glob("unfinished/*")] == ["tiny-offic"]
    assert not [path for path in made.store.trials.iterdir() if path.name.startswith(".")]
    made.run(executor="in-process", show_progress=False)
    assert (tmp_path / "results.csv").read_bytes() == expected
    log = next(tmp_path.glob("logs/tiny-official_clean-fold2*/log.txt")).read_text()
    assert log.count(" epoch 1,") == 1, "what was trained was trained again"


def test_an_image_that_vanishes_between_scan_and_run_is_named_and_nothing_is_lost(
    synthetic_root, tmp_path, monkeypatch
):
    monkeypatch.setenv("LEUKEMIA_DL_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "data"
    shutil.copytree(synthetic_root, root)
    data = grids.dataset(root)
    once, twice, thrice = (
        bench(data, tmp_path / "s", seeds=range(count), baselines=["majority"]) for count in (1, 2, 3)
    )
    assert len(once.run(executor="in-process", show_progress=False)) == 2
    # Scanned by now: its content is part of what names a trial.
    assert list(twice.plan()["status"]) == ["ok", "to do", "ok"]
    assert list(thrice.plan()["status"]) == ["ok", "to do", "to do", "ok"]
    victim = once.dataset.paths[int(once.splits[0].train[0])]
    content = victim.read_bytes()
    victim.unlink()
    # What is decoded already needs no file.
    assert list(twice.run(executor="in-process", show_progress=False)["status"]) == ["ok"] * 3
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ldl.errors.DataError, match=victim.name):
        thrice.run(executor="in-process", show_progress=False)
    assert list(thrice.plan()["status"]) == ["ok", "ok", "to do", "ok"]
    victim.write_bytes(content)
    again = bench(grids.dataset(root), tmp_path / "s", seeds=range(3), baselines=["majority"])
    assert list(again.run(executor="in-process", show_progress=False)["status"]) == ["ok"] * 4


def process_of(made, trial):
    log = (made.store.root / "logs" / trial / "log.txt").read_text()
    return log.split("begins in process ")[-1].split()[0]


def test_trials_of_a_backbone_follow_one_another_in_one_process_until_one_fails(dataset, tmp_path):
    made = bench(dataset, tmp_path, ["talks", "raises"], folds=[2], seeds=[0, 1], baselines=[])
    frame = made.run(executor="processes", show_progress=False)
    assert list(frame["status"]) == ["ok"] * 2 + ["failed"] * 2
    processes = frame.assign(process=[process_of(made, trial) for trial in frame["trial"]])
    assert dict(processes.groupby("backbone")["process"].nunique()) == {"talks": 1, "raises": 2}
    assert processes["process"].nunique() == 3
    # What each prints is in its own log all the same.
    for trial in frame.loc[frame["backbone"] == "talks", "trial"]:
        log = (tmp_path / "logs" / trial / "log.txt").read_text()
        assert "a plugin that prints" in log
        assert "and starts programs that do" in log
        assert log.count("begins in process") == 1


def test_a_process_that_dies_while_it_waits_costs_no_trial(dataset, tmp_path):
    made = bench(dataset, tmp_path, folds=[2], seeds=[0, 1, 2], baselines=[])
    seen = []

    class Kills(ProcessExecutor):
        def run(self, trials, context, on_progress):
            for output in ProcessExecutor.run(self, trials, context, on_progress):
                seen.append(process_of(made, output[0].trial.folder))
                if len(seen) == 1:
                    os.kill(int(seen[0]), 9)
                    time.sleep(0.5)
                yield output

    frame = made.run(executor=Kills(), show_progress=False)
    assert list(frame["status"]) == ["ok"] * 3
    assert seen[0] != seen[1] == seen[2]


def test_nothing_in_the_current_folder_is_run(tmp_path, hostile_folder):
    """20.36: workers import no module of the current folder."""
    folder, seen = hostile_folder
    script = tmp_path / "bin" / "leukemia-dl.py"  # as the installed command: its own folder is first on the path
    script.parent.mkdir()
    script.write_text("from leukemia_dl.cli import main; main()")
    store = tmp_path / "store"
    arguments = [*FAST, *SIZES, "-s", "precision=float32", "--executor", "processes", "--store", str(store)]
    ran = subprocess.run([sys.executable, script, "benchmark", *arguments], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert seen() == []
