"""A fit that was killed goes on from its last epoch to the same bits. Runs on JAX too, in the other leg."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("keras")
HELPERS = Path(__file__).parents[1] / "helpers"
PROGRAM = """
import hashlib, sys
from pathlib import Path
from discs import IMAGES, LABELS
from leukemia_dl import Recipe, get_backbone
from leukemia_dl.training import fit
recipe = Recipe(image_size=32, head_epochs=3, epochs=3, batch_size=8, average=0.9, rotation=20.0, dropout=0.5)
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


@pytest.fixture(scope="module")
def uninterrupted():
    return outcome()[0]


@pytest.mark.parametrize("epoch", [1, 4], ids=["in the first phase", "in the second"])
def test_after_kill_9_it_goes_on_to_the_same_bits(uninterrupted, tmp_path, epoch):
    process = start(tmp_path)
    while process.stdout.readline().split() != ["epoch", str(epoch)]:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "fit.npz").is_file()
    again, epochs = outcome(tmp_path)
    assert again == uninterrupted
    assert epochs == list(range(epochs[0], 7))
    assert epochs[0] > epoch, "it began from the start"
    # A fit that has ended does nothing more.
    assert outcome(tmp_path) == (uninterrupted, [])
