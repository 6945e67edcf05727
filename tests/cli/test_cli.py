"""The command as a process: help, streams, signals and exit status."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from command import SIZES, run, run_process


def test_help_answers_at_once():
    started = time.monotonic()
    answer = run_process("--help")
    assert time.monotonic() - started < 5  # well under a second on a quiet machine; see benchmarks/
    assert answer.returncode == 0
    for name in ("benchmark", "predict", "backbones", "datasets", "doctor"):
        assert name in answer.stdout
    assert run("--version").stdout.startswith("leukemia-dl 0.")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(synthetic_root, tmp_path):
    import signal

    arguments = ["benchmark", "--root", str(synthetic_root), *SIZES, "--store", str(tmp_path / "s")]
    arguments += ["--backbones", "cnn", "--image-size", "32", "-s", "epochs=2000"]
    with subprocess.Popen(
        [sys.executable, "-m", "leukemia_dl", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A shell's background job ignores Ctrl-C, and so would this process, for ever.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        for line in process.stderr:
            if "epoch 2/" in line:
                break
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Stopped. Finished trials are kept" in rest
    assert rest.count("from there") == 2  # at once, and when the epoch has ended
    assert "Traceback" not in rest
    assert not list((tmp_path / "s" / "trials").glob("cnn-*"))
    assert "3 records, 3 ok" in run("runs", "list", tmp_path / "s").stdout.splitlines()[-1]
    assert [path.name[:4] for path in (tmp_path / "s" / "unfinished").iterdir()] == ["cnn-"]


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m leukemia_dl backbones --format csv | head -1"
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert answer.stdout.startswith("backbone,")
    assert answer.stderr == ""


def test_module_and_script_are_the_same():
    script = Path(sys.executable).with_name("leukemia-dl")
    assert subprocess.run([script, "--version"], capture_output=True, text=True).stdout == run("--version").stdout
