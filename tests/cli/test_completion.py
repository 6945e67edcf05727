"""What a shell gets when a person presses Tab: asked for as bash asks, of a fresh process."""

import os
import subprocess
import sys

import pytest

from leukemia_dl.cli import completion


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


@pytest.mark.parametrize(
    ("complete", "begun", "wanted"),
    [
        (completion.datasets, "syn", ["synthetic"]),
        (completion.recipes, "f", ["finetune", "from_scratch"]),
        (completion.protocols, "kfold,ho", ["kfold,holdout"]),
        (completion.backbones, "cnn,cn", []),  # not twice
        (completion.baselines, "cell_", ["cell_size", "cell_colour"]),
        (completion.metrics, "balanced", ["balanced_accuracy", "balanced_loss"]),
        (completion.stains, "", ["reinhard", "macenko"]),
        (completion.devices, "c", ["cpu"]),
        (completion.executors, "r", ["ray"]),
    ],
)
def test_names_are_those_of_the_registries(complete, begun, wanted):
    assert sorted(complete(begun)) == sorted(wanted)
