"""Each tutorial as a reader runs it: a script, in an empty folder, without a network. The site runs notebooks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))
from hooks import tutorials  # noqa: E402

# Addresses at which nothing listens: whoever asks the network fails at once.
NOWHERE = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https", "HTTP", "HTTPS")}

SHORT = {"data_set_plugin"}  # in `make test`; `make test-all` and `make docs` run all
SCRIPTS = [
    pytest.param(path, id=path.stem, marks=[] if path.stem in SHORT else [pytest.mark.slow]) for path in tutorials()
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_tutorial_runs(script, tmp_path):
    pytest.importorskip("tensorflow")
    environment = {**os.environ, **NOWHERE, "MPLBACKEND": "Agg", "LEUKEMIA_DL_CACHE": str(tmp_path / "cache")}
    answer = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_every_cell_that_draws_says_what_is_seen():
    """The build refuses others; a picture's text is looked at here, where no notebook is needed."""
    for script in tutorials():
        for line in script.read_text(encoding="utf-8").splitlines():
            if line.startswith("# %%") and "alt=" in line:
                assert len(line.split("alt=")[1].strip('"')) > 30, (script.name, line)


def test_there_are_ten():
    assert len(tutorials()) >= 10
    assert {path.stem for path in tutorials()} >= SHORT
