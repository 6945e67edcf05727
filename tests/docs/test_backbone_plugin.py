"""The tutorial on backbones, followed to the letter in a fresh environment: its script, then its command lines."""

import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("keras")
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "tutorials" / "backbone_plugin.py"
BLOCK = re.compile(r'^# ```console needs="a package index"\n(.*?)^# ```$', re.DOTALL | re.MULTILINE)
OFFLINE = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q"]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A fresh environment that sees the packages of this one, but for what is installed into it."""
    root = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
    (site,) = root.glob("lib/python*/site-packages") if sys.platform != "win32" else root.glob("Lib/site-packages")
    (site / "shared.pth").write_text("\n".join([sysconfig.get_path("purelib"), str(ROOT / "src")]) + "\n")
    return root / ("Scripts" if sys.platform == "win32" else "bin") / "python"


def commands():
    (block,) = BLOCK.findall(SCRIPT.read_text(encoding="utf-8"))
    return [shlex.split(line.removeprefix("# ")) for line in block.splitlines()]


@pytest.mark.slow  # tests/examples/test_tiny.py is a shorter one
def test_it_ends_with_the_new_backbone_in_the_table(python, tmp_path):
    def run(*arguments):
        answer = subprocess.run([python, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    assert "small" not in run("-m", "leukemia_dl", "backbones").split()
    run(str(SCRIPT))
    said = {}
    for command in commands():
        if command == ["pip", "install", "pytest"]:
            continue  # it is there
        program, *arguments = command
        arguments += OFFLINE if program == "pip" else []
        module = {"leukemia-dl": "leukemia_dl"}.get(program, program)
        said[" ".join(command[:2])] = run("-m", module, *arguments)
    assert list(said) == ["pip install", "leukemia-dl backbones", "leukemia-dl benchmark", "pytest leukemia-dl-small"]
    assert re.search(r"small\b.*leukemia-dl-small\b.*0\.1\.0", said["leukemia-dl backbones"])
    assert re.search(r"^│ small\b.*\bok\b", said["leukemia-dl benchmark"], re.MULTILINE)
    assert "10 passed" in said["pytest leukemia-dl-small"]
    frame = pd.read_csv(tmp_path / "runs" / "small" / "results.csv").set_index("backbone")
    assert frame.loc[["small", "cnn"], "status"].tolist() == ["ok", "ok"]
    assert frame.loc["small", ["plugin", "plugin_version"]].tolist() == ["leukemia-dl-small", "0.1.0"]
