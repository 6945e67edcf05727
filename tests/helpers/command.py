"""The command, run in this process, or as a person would in a process of its own: its output and exit status."""

import contextlib
import io
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from leukemia_dl.cli import main

SIZES = ["-o", "subjects=12", "-o", "images=72", "-o", "preliminary_images=12", "-o", "final_images=2"]
FAST = ["--backbones", "cnn", "-s", "epochs=1", "--image-size", "32", "--no-report"]


def run(*arguments, cwd=None, encoding="utf-8", **environment):
    """Run the command in this process, with streams, a folder and environment variables of its own."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2))
    status = 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["leukemia-dl", *map(str, arguments)])
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(logging.root, "handlers", [])
        patch.setenv("COLUMNS", "200")
        for name, value in environment.items():
            patch.setenv(name, str(value))
        if cwd is not None:
            patch.chdir(cwd)
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
    output, errors = (stream.buffer.getvalue() for stream in (out, err))
    return SimpleNamespace(
        returncode=status, stdout=output.decode(errors="replace"), stderr=errors.decode(encoding), bytes=output
    )


def run_process(*arguments, cwd=None, **environment):
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "leukemia_dl", *map(str, arguments)]
    env = {**os.environ, "COLUMNS": "200", **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, stdin=subprocess.DEVNULL)


def fails(*arguments, cwd=None, **environment):
    """Run what must fail, and return its one error without the wrapping of lines."""
    answer = run(*arguments, cwd=cwd, **environment)
    assert answer.returncode == 1, (answer.stdout, answer.stderr)
    assert "Traceback" not in answer.stderr
    assert [line[:7] for line in answer.stderr.splitlines()].count("Error: ") == 1, answer.stderr
    return answer.stderr
