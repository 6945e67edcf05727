"""The README holds: its Python runs on other images, its options exist, its numbers stand on the pages it links to."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import stores

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALLER = {'recipe="from_scratch"': 'recipe=ldl.Recipe.preset("quick", image_size=32, epochs=1), n_folds=2'}


def test_the_python_runs_as_printed(tmp_path, monkeypatch, capsys):
    """On a table of synthetic cells, as on one of your own."""
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for printed, smaller in SMALLER.items():
        assert printed in block
        block = block.replace(printed, smaller)
    cells = stores.cells(classes=("normal", "leukemic"))
    names = [f"{row}.png" for row in range(len(cells))]
    for row, name in enumerate([*names, "new_cell.png"]):
        Image.fromarray(cells.decode(row % len(cells))).save(tmp_path / name)
    table = cells.table[["label", "subject"]].assign(path=names)
    table.to_csv(tmp_path / "cells.csv", index=False)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    assert list(names["frame"].columns[:3]) == ["backbone", "accuracy", "loss"]
    assert (names["frame"]["status"] == "ok").all()
    assert {"cnn", "mobilenet_v3_small", "cell_size"} <= set(names["board"]["backbone"])
    assert "probability_leukemic" in capsys.readouterr().out


def test_the_options_of_the_commands_exist():
    from leukemia_dl.cli import app

    runner = CliRunner()
    commands = re.findall(r"^leukemia-dl (.*)$", README, re.MULTILINE)
    assert len(commands) >= 5
    for line in commands:
        name, *arguments = shlex.split(line)
        shown = runner.invoke(app, [name, "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0
        for option in arguments:
            assert not option.startswith("--") or option in shown.output, line


def test_the_table_is_labelled_synthetic():
    assert "The cells are synthetic" in README[: README.index("```text")]
    assert "synthetic cells, not real ones" in README[README.index("```text") :]


REAL = re.findall(r"^\| .*\?.*\[.*$", README[README.index("## On real cells") :], re.MULTILINE)


@pytest.mark.parametrize("row", REAL)
def test_a_number_on_real_cells_stands_on_the_page_that_it_links_to(row):
    page = (ROOT / re.search(r"\]\(([^)#]+)", row)[1]).read_text(encoding="utf-8")
    numbers = re.findall(r"\d+\.\d+|\b\d{2,}\b", re.sub(r"\(.*?\)|\b2019\b|\b2021\b", "", row))
    assert numbers or "No." in row
    for number in numbers:
        assert number in page, number


def test_there_are_results_on_real_cells():
    assert len(REAL) == 5
