"""Steps per execution, callbacks of epochs, interruptions: the same bits after `kill -9`. Runs on JAX too."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from discs import IMAGES, LABELS, SMALL, counting
from leukemia_dl.cli import app
from leukemia_dl.errors import BackendError, SettingsError
from leukemia_dl.training import ComputeConfig, ModelCache, Recipe, Subset, batches, fit

keras = pytest.importorskip("keras")
BACKEND = keras.backend.backend()
QUICK = Recipe(image_size=32, epochs=2, batch_size=8, learning_rate=3e-3)
VALIDATION = (IMAGES[40:], LABELS[40:])
HELPERS = Path(__file__).parents[1] / "helpers"
HEADS = {
    "plain": {},
    "weights": {"class_balance": "weights", "label_smoothing": 0.1, "batch_size": 12},
}


def trained(recipe=QUICK, rows=40, seed=1, **settings):
    """Train with one group of each class: there are no inner folds, whose heads would be trained too."""
    side = (Subset(IMAGES, np.arange(rows)), LABELS[:rows])
    return fit(SMALL, *side, 2, recipe, seed=seed, groups=LABELS[:rows], validation=VALIDATION, **settings)


class Steps(keras.callbacks.Callback):
    """A callback of steps: each is an execution then."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def on_train_batch_end(self, batch, logs=None):
        self.count += 1


@pytest.mark.parametrize("name", HEADS)
def test_a_head_has_the_same_losses_step_by_step_and_in_groups_of_steps(name, monkeypatch):
    recipe = dataclasses.replace(QUICK, head_epochs=3, epochs=0, **HEADS[name])
    whole, steps = trained(recipe), Steps()
    single = trained(recipe, callbacks=[steps])
    monkeypatch.setattr(batches, "_GROUP_BYTES", 1)  # one step each
    parts = trained(recipe)
    assert steps.count == 3 * (40 // recipe.batch_size)
    for other in (single, parts):
        for column in ("loss", "accuracy", "val_loss"):
            np.testing.assert_allclose(whole.history[column], other.history[column], rtol=1e-5, atol=1e-6)
        for mine, theirs in zip(whole.model.get_weights(), other.model.get_weights(), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_callbacks_of_epochs_are_called_and_may_stop():
    seen = []

    class Epochs(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.append("begin")

        def on_epoch_end(self, epoch, logs=None):
            seen.append((epoch, sorted(logs)))
            self.model.stop_training = epoch == 1

        def on_train_end(self, logs=None):
            seen.append("end")

    for phase in ("head_epochs", "epochs"):
        seen.clear()
        recipe = dataclasses.replace(QUICK, **{"head_epochs": 0, "epochs": 0} | {phase: 5})
        result = trained(recipe, callbacks=lambda context: [Epochs()])
        names = ["accuracy", "loss", "val_accuracy", "val_loss"]
        assert seen == ["begin", (0, names), (1, names), "end"]
        assert result.stopped
        assert len(result.history) == 2


@pytest.mark.parametrize("phases", [(0, 2), (2, 0)])
def test_an_interrupted_epoch_does_not_spoil_the_model_for_the_next_fit(phases):
    models, recipe = ModelCache(), dataclasses.replace(QUICK, head_epochs=phases[0], epochs=phases[1])

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(recipe, callbacks=lambda context: [Interrupt()], models=models)
    again, new = trained(recipe, models=models), trained(recipe)
    np.testing.assert_array_equal(again.history["loss"], new.history["loss"])


@pytest.mark.parametrize("phases", [(0, 3), (3, 0)])
def test_an_interrupted_fit_continues_to_the_same_bits(tmp_path, phases):
    def stop(epoch, row):
        raise KeyboardInterrupt

    recipe = dataclasses.replace(QUICK, head_epochs=phases[0], epochs=phases[1], ema_momentum=0.9)
    with pytest.raises(KeyboardInterrupt):
        trained(recipe, checkpoints=tmp_path, on_epoch=stop)
    epochs = []
    again = trained(recipe, checkpoints=tmp_path, on_epoch=lambda epoch, row: epochs.append(epoch))
    assert epochs == [2, 3]
    whole = trained(recipe)
    np.testing.assert_array_equal(again.history["loss"], whole.history["loss"])
    for mine, other in zip(again.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="counts traces of TensorFlow")
def test_one_trace_serves_folds_of_any_length():
    traced = []
    spec, models, counts, recipe = counting(traced), ModelCache(), [], dataclasses.replace(QUICK, epochs=3)
    for rows in (40, 32):
        before = len(traced)
        fit(spec, Subset(IMAGES, np.arange(rows)), LABELS[:rows], 2, recipe, models=models)
        counts.append(len(traced) - before)
    # The passes for the statistics of BatchNorm, which are not compiled, are counted too.
    assert counts[1] < counts[0] <= counts[1] + 2


def test_a_head_of_a_fold_that_is_smaller_than_a_batch_is_that_of_a_new_model():
    recipe, models = dataclasses.replace(QUICK, head_epochs=2, epochs=0, batch_size=16), ModelCache()
    new = {rows: trained(recipe, rows).history["loss"] for rows in (40, 10)}
    for rows in (40, 10, 40):
        again = trained(recipe, rows, models=models)
        np.testing.assert_array_equal(again.history["loss"], new[rows])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "tpu"}, "device must be 'auto', 'cpu', 'gpu' or 'gpu:N'. Received: device='tpu'"),
        ({"threads": 0}, "threads must be a whole number from 1 to 4,096. Received: threads=0"),
        ({"threads": 1.0}, "threads must be a whole number from 1 to 4,096. Received: threads=1.0"),
        ({"threads": True}, "threads must be a whole number"),
    ],
)
def test_values_that_are_not_allowed_are_named(settings, message):
    with pytest.raises(SettingsError, match=message):
        ComputeConfig(**settings)


@pytest.mark.parametrize(
    ("name", "value", "default"),
    [
        ("image_data_format", "channels_first", "channels_last"),
        ("floatx", "float16", "float32"),
        ("max_epochs", 1, None),
        ("max_steps_per_epoch", 2, None),
    ],
)
def test_settings_of_keras_that_change_a_fit_are_refused(name, value, default):
    """20.9: channels_first of keras.json trained a wrong net under the same trial name; float16 failed cryptically."""
    change = getattr(keras.config, f"set_{name}")
    change(value)
    try:
        with pytest.raises(BackendError, match=rf"Keras is set to {name}='?{value}'?; it has to be .*set_{name}"):
            fit(SMALL, IMAGES, LABELS, 2, QUICK)
        told = CliRunner().invoke(app, ["doctor"])
    finally:
        change(default)
    assert told.exit_code == 1
    assert f"PROBLEM: Keras is set to {name}=" in told.output


PROGRAM = """
import hashlib, sys, time
from pathlib import Path
from discs import IMAGES, LABELS, SMALL
from leukemia_dl import Recipe
from leukemia_dl.training import fit
recipe = Recipe(image_size=32, head_epochs=3, epochs=3, batch_size=8, ema_momentum=0.9, rotation=20.0, dropout=0.5)
for _ in sys.argv:  # a second time where there are checkpoints
    result = fit(SMALL, IMAGES[:32], LABELS[:32], 2, recipe, seed=3, validation=(IMAGES[32:], LABELS[32:]),
        checkpoints=Path(sys.argv[1]) if len(sys.argv) > 1 else None,
        on_epoch=lambda epoch, row: (print("epoch", epoch, flush=True), time.sleep(0.2)))  # time to be killed
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
    """Return the bits of the fit, of each time that it ran, and the epochs of the first time."""
    output, errors = start(*arguments).communicate(timeout=300)
    lines, times = output.splitlines(), 1 + len(arguments)
    assert all(line.startswith("weights") for line in lines[-times:]), errors
    return lines[-times:], [int(line.split()[1]) for line in lines[:-times]]


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


@pytest.mark.slow
def test_after_kill_9_in_either_phase_it_goes_on_to_the_same_bits(tmp_path):
    uninterrupted, epochs = outcome()
    assert epochs == list(range(1, 7))
    assert killed(tmp_path, 1) == [1]  # in the first phase
    second = killed(tmp_path, 4)
    assert second == list(range(second[0], 5))
    assert second[0] > 1, "it began from the start"
    again, third = outcome(tmp_path)
    # The fit had ended the second time, and did nothing more.
    assert again == uninterrupted * 2
    assert third == list(range(third[0], 7))
    assert third[0] > 4, "it began from the start"


def test_a_file_of_weights_that_was_replaced_starts_afresh(tmp_path):
    """20, mutant 6: a checkpoint of a fit from other weights under the same name is not resumed."""
    file, sides = tmp_path / "start.weights.h5", (IMAGES[:16], LABELS[:16])
    recipe = Recipe(image_size=32, head_epochs=1, epochs=0, batch_size=8, weights=str(file), head_learning_rate=0.1)

    def trained(**where):
        result = fit(SMALL, *sides, 2, recipe, groups=sides[1], **where)
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
