import dataclasses
import math
import re
import time

import numpy as np
import pytest

import leukemia_dl as ldl
from discs import IMAGES, LABELS
from leukemia_dl.errors import DataError, SettingsError, TrainingError
from leukemia_dl.models.classifier import predict_logits
from leukemia_dl.training import Recipe, fit
from leukemia_dl.training.fit import _unconverged

keras = pytest.importorskip("keras")
RECIPE = Recipe(image_size=32, epochs=3, batch_size=8, learning_rate=3e-3)
CNN = ldl.get_backbone("cnn")


EPOCHS = []


@pytest.fixture(scope="module")
def result():
    images = IMAGES[:32].copy()
    images.flags.writeable = False
    return fit(
        CNN,
        images,
        LABELS[:32],
        2,
        RECIPE,
        seed=1,
        validation=(IMAGES[32:], LABELS[32:]),
        on_epoch=lambda *epoch: EPOCHS.append(epoch),
    )


def test_it_learns(result):
    assert (predict_logits(result.model, IMAGES[32:], 16).argmax(axis=1) == LABELS[32:]).mean() >= 0.9
    assert result.batchnorm_layers == 12
    assert result.device.kind in ("cpu", "gpu")


def test_the_history_is_that_of_the_model(result):
    history = result.history
    assert list(history) == ["epoch", "phase", "loss", "accuracy", "val_loss", "val_accuracy", "seconds"]
    assert list(history["epoch"]) == [1, 2, 3]
    logits = predict_logits(result.model, IMAGES[32:], 16)
    losses = [math.log(np.exp(row - row[k]).sum()) for row, k in zip(logits, LABELS[32:], strict=True)]
    assert history["val_loss"].iloc[-1] == pytest.approx(np.mean(losses), rel=1e-5)
    assert history["val_accuracy"].iloc[-1] == (logits.argmax(axis=1) == LABELS[32:]).mean()


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(result):
    again = fit(CNN, IMAGES[:32], LABELS[:32], 2, RECIPE, seed=1, validation=(IMAGES[32:], LABELS[32:]))
    other = fit(CNN, IMAGES[:32], LABELS[:32], 2, dataclasses.replace(RECIPE, epochs=1), seed=2)
    for mine, theirs in zip(result.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    columns = ["loss", "accuracy", "val_loss", "val_accuracy"]
    np.testing.assert_array_equal(result.history[columns], again.history[columns])
    assert not np.array_equal(result.model.get_weights()[0], other.model.get_weights()[0])
    assert "val_loss" not in other.history


def test_epochs_are_reported(result):
    assert [epoch for epoch, _ in EPOCHS] == [1, 2, 3]
    assert [row["val_loss"] for _, row in EPOCHS] == list(result.history["val_loss"])


def test_a_loss_that_is_no_number_is_an_error():
    def explode(inputs, weights):
        features = keras.layers.Conv2D(4, 3)(inputs)
        return keras.ops.log(keras.ops.relu(features) - 1e9)

    with pytest.raises(TrainingError, match=r"became nan in epoch 1\. Lower learning_rate"):
        fit(dataclasses.replace(CNN, build=explode), IMAGES[:16], LABELS[:16], 2, RECIPE)


def test_running_out_of_memory_names_the_batch_size():
    class Hungry(keras.layers.Layer):
        def call(self, inputs):
            raise MemoryError("RESOURCE_EXHAUSTED: out of memory")

        def compute_output_shape(self, shape):
            return shape

    with pytest.raises(TrainingError, match=r"batch_size=8 at 32 pixels\. Try batch_size=4"):
        fit(dataclasses.replace(CNN, build=lambda i, w: Hungry()(i)), IMAGES[:16], LABELS[:16], 2, RECIPE)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (IMAGES.astype(float), LABELS),
        (IMAGES[:, :16], LABELS),
        (IMAGES[:0], LABELS[:0]),
        (IMAGES, LABELS[:3]),
        (IMAGES, LABELS + 1),
        (IMAGES, LABELS - 1),
    ],
)
def test_data_that_do_not_fit_are_refused(images, labels):
    with pytest.raises(DataError, match="Received"):
        fit(CNN, images, labels, 2, RECIPE)


def test_bfloat16_needs_a_gpu_that_has_it(result):
    if result.device.kind == "gpu":
        pytest.skip("this machine has a GPU")
    with pytest.raises(SettingsError, match=r"mixed_bfloat16.*This runs on"):
        fit(CNN, IMAGES, LABELS, 2, dataclasses.replace(RECIPE, precision="mixed_bfloat16"))


@pytest.mark.parametrize("phases", [(0, 2), (2, 0), (1, 1)])
def test_building_and_compiling_count_as_preparing(phases):
    """20.5: `fit_seconds` held building and compiling for the first trial of a process only (2.6 : 1 : 1)."""
    slept = []

    class Slow(keras.layers.Layer):
        def call(self, inputs):
            time.sleep(0.5)  # when it is built and traced; a compiled step does not come here
            slept.append(0.5)
            return inputs

    def build(inputs, weights):
        return Slow()(keras.layers.Conv2D(4, 5, strides=2)(inputs))

    spec = ldl.BackboneSpec(name="slow", build=build, scaling="unit", native_size=32, min_size=8)
    recipe = dataclasses.replace(RECIPE, head_epochs=phases[0], epochs=phases[1])
    validation = (IMAGES[32:], LABELS[32:])
    found = fit(spec, IMAGES[:32], LABELS[:32], 2, recipe, validation=validation)
    assert sum(slept) >= 1.0
    assert sum(slept) <= found.prepare_seconds < found.seconds


def scaled(factor):
    """Return a spec whose features are as small as those of an untrained net may be."""

    def build(inputs, weights):
        return keras.layers.Rescaling(factor)(keras.layers.Conv2D(4, 5, strides=2, activation="relu")(inputs))

    return ldl.BackboneSpec(name="scaled", build=build, scaling="unit", native_size=32, min_size=8)


def test_a_head_that_has_not_converged_is_flagged():
    """20.6: a linear probe on features of a small scale ended at the loss of guessing, with status ok."""
    probe = Recipe(image_size=32, head_epochs=12, epochs=0, batch_size=8, head_learning_rate=1e-2, dropout=0.0)
    (note,) = (note for note in fit(scaled(1e-5), IMAGES, LABELS, 2, probe).notes if "converged" in note)
    assert re.fullmatch(r"not converged: the training loss \(0\.69\d\) is no better than guessing \(0\.693\)", note)
    converged = dataclasses.replace(probe, head_epochs=60, head_learning_rate=0.1)
    result = fit(scaled(10.0), IMAGES, LABELS, 2, converged)
    assert result.history["loss"].iloc[-1] < 0.6
    assert not [note for note in result.notes if "converged" in note]


@pytest.mark.parametrize(
    ("losses", "shares", "balance", "says"),
    [
        ([0.705, 0.691, 0.691], [0.5, 0.5], "none", "(0.691) is no better than guessing (0.693)"),
        ([0.6, 0.5, 0.4], [0.5, 0.5], "none", "still fell (0.600, 0.500, 0.400)"),
        ([0.69, 0.4, 0.31, 0.30, 0.299], [0.5, 0.5], "none", ""),
        ([0.4, 0.324], [0.9, 0.1], "none", "(0.324) is no better than guessing (0.325)"),
        ([0.4, 0.324], [0.9, 0.1], "weights", ""),
        ([0.71, 0.69], [0.9, 0.1], "batches", "is no better than guessing (0.693)"),
        ([1.2, 1.1, 1.09], [0.5, 0.25, 0.25, 0.0], "weights", "is no better than guessing (1.099)"),
        ([0.02, 0.01, 0.001], [0.5, 0.5], "none", ""),
    ],
)
def test_when_a_training_curve_is_not_converged(losses, shares, balance, says):
    """20.6: the rule, on curves."""
    found = _unconverged(np.array(losses), dataclasses.replace(RECIPE, class_balance=balance), np.array(shares))
    assert [says in note for note in found] == ([True] if says else [])
