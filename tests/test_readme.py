"""What the README shows runs: its Python on a smaller data set, its commands as far as their options go."""

import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SMALLER = {
    "subjects=40": "subjects=12, images=40, preliminary_images=12, final_images=2",
    'recipe="quick"': 'recipe=ldl.Recipe.preset("quick", image_size=32, epochs=1)',
}


def test_the_python_runs_as_printed(tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for printed, smaller in SMALLER.items():
        assert printed in block
        block = block.replace(printed, smaller)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    assert list(names["frame"].columns[:3]) == ["backbone", "accuracy", "loss"]
    assert (names["frame"]["status"] == "ok").all()
    assert "probability_all" in capsys.readouterr().out


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
    table = README[README.index("## The honest table") :]
    assert "synthetic cells (not real ones)" in table
    assert "synthetic cells, not real ones" in table
