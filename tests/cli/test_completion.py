"""Completion in a shell: asked for as bash asks, of a fresh process, and the names themselves."""

import os
import subprocess
import sys

import pytest

from leukemia_dl.cli.options import completed


def tab(line):
    """Return what completes the last word of a line."""
    words = line.split(" ")
    environment = {
        **os.environ,
        "_LEUKEMIA_DL_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    program = "import sys; sys.argv[0] = 'leukemia-dl'; from leukemia_dl.cli import app; app(prog_name='leukemia-dl')"
    answer = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.split()


def test_commands_options_and_names_are_completed():
    assert {"benchmark", "backbones"} <= set(tab("leukemia-dl b"))
    assert "--backbones" in tab("leukemia-dl benchmark --ba")
    assert tab("leukemia-dl benchmark --dataset c_") == ["c_nmc_2019"]
    assert tab("leukemia-dl benchmark --backbones cnn,res") == ["cnn,resnet50"]
    assert set(tab("leukemia-dl benchmark --stain ")) == {"reinhard", "macenko"}


@pytest.mark.parametrize(
    ("module", "names", "begun", "wanted"),
    [
        ("datasets", "list_datasets", "syn", ["synthetic"]),
        ("training.presets", "PRESETS", "f", ["finetune", "from_scratch"]),
        ("datasets.protocols", "PROTOCOLS", "kfold,ho", ["kfold,holdout"]),
        ("models.registry", "list_backbones", "cnn,cn", []),  # not twice
        ("benchmark.baselines", "BASELINES", "cell_", ["cell_colour", "cell_size"]),
        ("evaluation.metrics", "METRICS", "balanced", ["balanced_accuracy", "balanced_loss"]),
    ],
)
def test_names_are_those_of_the_registries(module, names, begun, wanted):
    assert completed(module, names)(begun) == wanted
