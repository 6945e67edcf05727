"""Options that several commands share, and their completion in a shell."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from leukemia_dl import Dataset, DatasetInfo, Recipe
from leukemia_dl.cli import options
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.preprocess import Macenko


@pytest.mark.parametrize("canvas", [None, 40])
@pytest.mark.parametrize(("background", "percentile"), [(0, 50.0), (235, 99.0)])
def test_macenko_measures_whether_cells_lie_on_black(canvas, background, percentile):
    """20.12: `--stain macenko` took a canvas for cells on black, and cells without one for smears."""
    images = np.full((12, 30, 30, 3), background, np.uint8)
    images[:, 10:20, 10:20] = 120, 60, 150
    images[0] = 235 - background  # one image of another kind changes nothing
    info = DatasetInfo("one", "One", "none", "none", canvas=canvas)
    dataset = Dataset.from_arrays(images, np.arange(12) % 2, ("a", "b"), info)
    for crop in (False, True):
        pipeline = options.pipeline(dataset, Recipe.preset("quick"), 32, "macenko", crop)
        assert pipeline.steps[-1] == Macenko(percentile=percentile)


def test_embeddings_are_read_from_files_by_name(tmp_path):
    frame = pd.DataFrame({"sample": ["007", "b"], "feature_0": [1.5, 2.5]})
    frame.to_csv(tmp_path / "a=1.csv", index=False)
    np.savez(tmp_path / "b.npz", sample=["x"], features=[[3.0]])
    one, other = options.embeddings([f"dinobloom={tmp_path / 'a=1.csv'}", f"uni-2.b={tmp_path / 'b.npz'}"])
    assert (one.name, one.keys, one.features.tolist()) == ("dinobloom", ("007", "b"), [[1.5], [2.5]])
    assert (other.name, other.keys, other.features.tolist()) == ("uni-2.b", ("x",), [[3.0]])
    assert options.embeddings(None) == []


@pytest.mark.parametrize(
    ("pairs", "error", "says"),
    [
        (["file.csv"], SettingsError, "--embeddings takes NAME=FILE, each name once. Received: file.csv"),
        (["a="], SettingsError, "Received: a="),
        (["a=x.csv", "a=y.csv"], SettingsError, "Received: a=x.csv, a=y.csv"),
        (["a=none.csv"], DataError, "'a' cannot be read from none.csv: it is no file that ends in .csv"),
    ],
)
def test_embeddings_that_cannot_be_read_say_why(pairs, error, says):
    with pytest.raises(error, match=says):
        options.embeddings(pairs)


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


def test_commands_options_and_choices_are_completed():
    assert {"benchmark", "backbones"} <= set(tab("leukemia-dl b"))
    assert "--backbones" in tab("leukemia-dl benchmark --ba")
    assert set(tab("leukemia-dl benchmark --stain ")) == {"reinhard", "macenko"}


@pytest.mark.parametrize("pair", ["name=csv", "root=elsewhere"])
def test_an_option_of_a_data_set_replaces_neither_its_name_nor_its_root(pair):
    with pytest.raises(SettingsError, match="use --dataset and --root"):
        options.load_dataset("synthetic", None, [pair], None)
