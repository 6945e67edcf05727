"""The command, run as a person would: a fresh process, its output and its exit status."""

import os
import subprocess
import sys

SIZES = ["-o", "subjects=12", "-o", "images=72", "-o", "preliminary_images=12", "-o", "final_images=2"]
FAST = ["--backbones", "cnn", "-s", "epochs=1", "--image-size", "32", "--no-report"]


def run(*arguments, cwd=None, **environment):
    command = [sys.executable, "-m", "leukemia_dl", *map(str, arguments)]
    env = {**os.environ, "COLUMNS": "200", **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, stdin=subprocess.DEVNULL)


def fails(*arguments, cwd=None, **environment):
    """Run what must fail, and return its one error without the wrapping of lines."""
    answer = run(*arguments, cwd=cwd, **environment)
    assert answer.returncode == 1, (answer.stdout, answer.stderr)
    assert "Traceback" not in answer.stderr
    assert answer.stderr.count("Error: ") == 1, answer.stderr
    return answer.stderr
