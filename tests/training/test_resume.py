"""A fit that was killed goes on from its last epoch to the same bits. Runs on JAX too, in the other leg."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from discs import IMAGES, LABELS, SMALL
from leukemia_dl.training import Recipe, fit

keras = pytest.importorskip("keras")
HELPERS = Path(__file__).parents[1] / "helpers"
PROGRAM = """
import hashlib, sys
from pathlib import Path
from discs import IMAGES, LABELS
from leukemia_dl import Recipe, get_backbone
from leukemia_dl.training import fit
recipe = Recipe(image_size=32, head_epochs=3, epochs=3, batch_size=8, ema_momentum=0.9, rotation=20.0, dropout=0.5)
result = fit(get_backbone("cnn"), IMAGES[:32], LABELS[:32], 2, recipe, seed=3, validation=(IMAGES[32:], LABELS[32:]),
    checkpoints=Path(sys.argv[1]) if len(sys.argv) > 1 else None,
    on_epoch=lambda epoch, row: print("epoch", epoch, flush=True))
weights = b"".join(array.tobytes() for array in result.model.get_weights())
history = result.history.drop(columns="seconds").to_json(double_precision=15)
print("weights", hashlib.sha256(weights).hexdigest(), hashlib.sha256(history.encode()).hexdigest())
"""


def start(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def outcome(*arguments):
    output, errors = start(*arguments).communicate(timeout=300)
    lines = output.splitlines() or [""]
    assert lines[-1].startswith("weights"), errors
    return lines[-1], [int(line.split()[1]) for line in lines[:-1]]


def killed(folder, epoch):
    """Start it, kill it when it has told of `epoch`, and return the epochs that it has told of."""
    process, epochs = start(folder), []
    while epochs[-1:] != [epoch]:
        line = process.stdout.readline()
        assert line.startswith("epoch"), process.communicate()[1]
        epochs.append(int(line.split()[1]))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (folder / "fit.npz").is_file()
    return epochs


def test_after_kill_9_in_either_phase_it_goes_on_to_the_same_bits(tmp_path):
    uninterrupted, epochs = outcome()
    assert epochs == list(range(1, 7))
    assert killed(tmp_path, 1) == [1]  # in the first phase
    second = killed(tmp_path, 4)
    assert second == list(range(second[0], 5))
    assert second[0] > 1, "it began from the start"
    again, third = outcome(tmp_path)
    assert again == uninterrupted
    assert third == list(range(third[0], 7))
    assert third[0] > 4, "it began from the start"
    # A fit that has ended does nothing more.
    assert outcome(tmp_path) == (uninterrupted, [])


def test_a_file_of_weights_that_was_replaced_starts_afresh(tmp_path):
    """20, mutant 6: a checkpoint of a fit from other weights under the same name is not resumed."""
    file, sides = tmp_path / "start.weights.h5", (IMAGES[:16], LABELS[:16])
    recipe = Recipe(image_size=32, head_epochs=1, epochs=0, batch_size=8, weights=str(file), head_learning_rate=0.1)

    def trained(**where):
        result = fit(SMALL, *sides, 2, recipe, **where)
        return result.history["loss"].tolist(), result.model.get_weights()

    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, SMALL.build(inputs, None))
    model.save_weights(file)
    first, _ = trained(checkpoints=tmp_path / "checkpoints")
    model.set_weights([array + 0.5 for array in model.get_weights()])
    model.save_weights(file)
    (expected, expected_weights), (found, weights) = trained(), trained(checkpoints=tmp_path / "checkpoints")
    assert found == expected != first
    for array, wanted in zip(weights, expected_weights, strict=True):
        np.testing.assert_array_equal(array, wanted)
