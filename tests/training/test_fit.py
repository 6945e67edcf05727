"""A fit and what the settings of a recipe do to it: phases, folds, balance, averages, memory, callbacks."""

import dataclasses
import math
import re
import time

import numpy as np
import pandas as pd
import pytest

import leukemia_dl as ldl
from discs import IMAGES, LABELS, SMALL
from leukemia_dl.errors import DataError, OutOfMemoryError, SettingsError, TrainingError
from leukemia_dl.evaluation import fit_temperature
from leukemia_dl.models.build import split_at_features
from leukemia_dl.models.classifier import predict_logits, softmax
from leukemia_dl.training import ModelCache, Recipe, fit, loop
from leukemia_dl.training.fit import _unconverged

keras = pytest.importorskip("keras")
RECIPE = Recipe(image_size=32, epochs=3, batch_size=8, learning_rate=3e-3)
CNN = ldl.get_backbone("cnn")
QUICK = Recipe(image_size=32, epochs=2, batch_size=8, learning_rate=3e-3)
TRAIN, VALIDATION = (IMAGES[:32], LABELS[:32]), (IMAGES[32:], LABELS[32:])
GROUPS = np.arange(32) // 4 * 2 + LABELS[:32]  # sixteen groups of two, each of one class
ONE = LABELS[:32]  # one group of each class: there are no inner folds, whose heads would be trained too


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
    models = ModelCache()
    again = fit(CNN, *TRAIN, 2, RECIPE, seed=1, validation=VALIDATION, models=models)
    for mine, theirs in zip(result.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    columns = ["loss", "accuracy", "val_loss", "val_accuracy"]
    np.testing.assert_array_equal(result.history[columns], again.history[columns])
    other = fit(CNN, *TRAIN, 2, RECIPE, seed=2, models=models)
    assert not np.array_equal(result.model.get_weights()[0], other.model.get_weights()[0])
    assert "val_loss" not in other.history


def test_epochs_are_reported(result):
    assert [epoch for epoch, _ in EPOCHS] == [1, 2, 3]
    assert [row["val_loss"] for _, row in EPOCHS] == list(result.history["val_loss"])


def test_a_loss_that_is_no_number_is_an_error():
    def explode(inputs, weights):
        features = keras.layers.Conv2D(4, 3)(inputs)
        return keras.ops.log(keras.ops.relu(features) - 1e9)

    with pytest.raises(TrainingError, match=r"became nan in epoch 1\. Lower the learning rate"):
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
    (note,) = (note for note in fit(scaled(1e-5), IMAGES, LABELS, 2, probe, groups=LABELS).notes if "converged" in note)
    assert re.fullmatch(r"not converged: the training loss \(0\.69\d\) is no better than guessing \(0\.693\)", note)
    converged = dataclasses.replace(probe, head_epochs=60, head_learning_rate=0.1)
    result = fit(scaled(10.0), IMAGES, LABELS, 2, converged, groups=LABELS)
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
        ([0.71, 0.69], [0.9, 0.1], "weights", "is no better than guessing (0.693)"),
        ([1.2, 1.1, 1.09], [0.5, 0.25, 0.25, 0.0], "weights", "is no better than guessing (1.099)"),
        ([0.02, 0.01, 0.001], [0.5, 0.5], "none", ""),
    ],
)
def test_when_a_training_curve_is_not_converged(losses, shares, balance, says):
    """20.6: the rule, on curves."""
    found = _unconverged(np.array(losses), dataclasses.replace(RECIPE, class_balance=balance), np.array(shares))
    assert [says in note for note in found] == ([True] if says else [])


def test_a_head_alone_leaves_the_backbone_as_it_was():
    recipe = dataclasses.replace(QUICK, head_epochs=30, epochs=0, head_learning_rate=3e-2)
    still = dataclasses.replace(recipe, head_epochs=1, head_learning_rate=1e-12)
    untrained = fit(SMALL, *TRAIN, 2, still, seed=4, groups=ONE)
    result = fit(SMALL, *TRAIN, 2, recipe, seed=4, groups=ONE, validation=VALIDATION)
    extractors = [split_at_features(r.model)[0] for r in (untrained, result)]
    for mine, other in zip(*(extractor.get_weights() for extractor in extractors), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert list(result.history["phase"]) == ["head"] * 30
    assert result.history["loss"].iloc[-1] < result.history["loss"].iloc[0]
    # The validation curve of the head is that of the whole model.
    logits = predict_logits(result.model, VALIDATION[0], 32)
    loss = -np.log(softmax(logits)[np.arange(16), VALIDATION[1]]).mean()
    assert result.history["val_loss"].iloc[-1] == pytest.approx(loss, rel=1e-4)


def test_out_of_fold_logits_are_of_heads_that_did_not_see_the_group(monkeypatch):
    recipe = dataclasses.replace(QUICK, head_epochs=20, epochs=0, head_learning_rate=1e-2)
    random = np.random.default_rng(0).integers(0, 2, 8).repeat(4)  # labels of groups of four, by chance
    groups = np.arange(8).repeat(4)
    images = IMAGES[:32].copy()
    images[:, 0, 0] = (groups * 30)[:, None]  # a mark by which a head could know the group
    result = fit(SMALL, images, random, 2, recipe, groups=groups)
    assert result.out_of_fold.shape == (32, 2)
    assert np.isfinite(result.out_of_fold).all()
    assert 0.02 < fit_temperature(random, softmax(result.out_of_fold)) < 1000
    again = fit(SMALL, images, random, 2, recipe, groups=groups)
    np.testing.assert_array_equal(result.out_of_fold, again.out_of_fold)
    starts = []
    real = loop.Trainer._train_head

    def watched(trainer, *arguments):
        starts.append(trainer.models.head.get_weights()[0].copy())
        real(trainer, *arguments)

    monkeypatch.setattr(loop.Trainer, "_train_head", watched)
    trained = split_at_features(fit(SMALL, images, random, 2, recipe, groups=groups).model)[1].get_weights()[0]
    assert len(starts) > 2
    assert not any(np.array_equal(start, trained) for start in starts), "a head begins with what another has learned"
    assert len({start.tobytes() for start in starts[1:]}) == 1
    # A net with a second phase, a flat head, or one group of a class have none.
    for change, ids in (({"epochs": 1}, groups), ({"head": "flatten"}, groups), ({}, random)):
        assert fit(SMALL, images, random, 2, dataclasses.replace(recipe, **change), groups=ids).out_of_fold is None


def test_the_head_goes_on_from_where_the_first_phase_left_it():
    result = fit(SMALL, *TRAIN, 2, dataclasses.replace(QUICK, head_epochs=2, epochs=1), validation=VALIDATION)
    assert list(result.history["epoch"]) == [1, 2, 3]
    assert list(result.history["phase"]) == ["head", "head", "full"]


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_finetuning_goes_on_from_the_head_under_the_statistics_of_the_weights(tmp_path, shift):
    """20.14: BatchNorm of loaded weights stays as it is, so that the second phase begins where the first one ended."""
    inputs = keras.Input((32, 32, 3))
    bare = keras.Model(inputs, SMALL.build(inputs, None))
    mean, variance = np.linspace(-0.4, 0.4, 8), np.linspace(0.02, 3.0, 8)  # of no images of ours
    bare.layers[-1].moving_mean.assign(mean)
    bare.layers[-1].moving_variance.assign(variance)
    bare.save_weights(tmp_path / "small.weights.h5")
    recipe = Recipe(
        image_size=32, weights=str(tmp_path / "small.weights.h5"), head_epochs=20, head_learning_rate=0.03, epochs=2,
        learning_rate=1e-6, batch_size=8, dropout=0.0, shift=shift,
    )  # fmt: skip
    result = fit(SMALL, *TRAIN, 2, recipe, validation=VALIDATION)
    head, last = result.history[result.history["phase"] == "head"], result.history.iloc[-1]
    assert last["val_loss"] == pytest.approx(head["val_loss"].iloc[-1], rel=1e-2)
    (norm,) = (layer for layer in result.model.layers if isinstance(layer, keras.layers.BatchNormalization))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(norm.moving_mean), mean.astype(np.float32))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(norm.moving_variance), variance.astype(np.float32))


def test_the_averaged_weights_are_the_result():
    plain = fit(SMALL, *TRAIN, 2, QUICK, seed=5)
    averaged = fit(SMALL, *TRAIN, 2, dataclasses.replace(QUICK, ema_momentum=0.9), seed=5, validation=VALIDATION)
    # The steps are the same: only what is looked at, and kept, is the average.
    np.testing.assert_allclose(plain.history["loss"], averaged.history["loss"], rtol=1e-6)
    mine, other = plain.model.get_layer("logits"), averaged.model.get_layer("logits")
    assert not np.allclose(mine.kernel, other.kernel)
    logits = predict_logits(averaged.model, VALIDATION[0], 32)
    loss = -np.log(softmax(logits)[np.arange(16), VALIDATION[1]]).mean()
    assert averaged.history["val_loss"].iloc[-1] == pytest.approx(loss, rel=1e-4)


def test_a_rare_class_counts_as_much_as_a_frequent_one():
    """Features that tell nothing: what is predicted then is the share of the class in training."""
    flat = np.full((40, 32, 32, 3), 90, np.uint8)
    labels = (np.arange(40) >= 32).astype(np.int64)
    recipe = dataclasses.replace(QUICK, head_epochs=40, epochs=0, head_learning_rate=0.1, dropout=0.0)
    for balance, share in (("none", 0.2), ("weights", 0.5)):
        model = fit(SMALL, flat, labels, 2, dataclasses.replace(recipe, class_balance=balance), groups=labels).model
        assert softmax(predict_logits(model, flat[:1], 32))[0, 1] == pytest.approx(share, abs=0.03), balance


def test_an_epoch_is_selected_on_inner_folds_and_all_groups_are_trained_on():
    recipe = dataclasses.replace(QUICK, select_epoch=True, head_epochs=6, epochs=0, head_learning_rate=1.0)
    told = []
    result = fit(SMALL, *TRAIN, 2, recipe, groups=GROUPS, on_epoch=lambda epoch, row: told.append((epoch, row)))
    inner = pd.DataFrame([row for _, row in told if "inner_fold" in row])
    assert sorted(inner["inner_fold"].unique()) == [f"{i}/5" for i in range(1, 6)]
    curve = inner.groupby("epoch")["val_loss"].mean()
    chosen = int(curve.idxmin())
    assert len(result.history) == chosen
    np.testing.assert_allclose(result.history["inner_val_loss"], curve[:chosen])
    assert f"epoch {chosen} of 6 selected on 5 inner folds" in result.notes
    # The refit is the fit of the whole side, stopped there: its rates are those of six epochs.
    whole = fit(SMALL, *TRAIN, 2, dataclasses.replace(recipe, select_epoch=False), groups=ONE)
    np.testing.assert_allclose(result.history["loss"], whole.history["loss"][:chosen], rtol=1e-6)
    with pytest.raises(SettingsError, match="two groups"):
        fit(SMALL, *TRAIN, 2, recipe, groups=LABELS[:32])
    # Of a recipe with two phases, those of the second are chosen among.
    both = fit(SMALL, *TRAIN, 2, dataclasses.replace(recipe, head_epochs=2, epochs=1), groups=GROUPS)
    assert list(both.history["phase"]) == ["head", "head", "full"]


def test_the_selected_epoch_is_one_of_the_last_phase_also_where_the_head_alone_was_better():
    """Mutant 3: the second phase is spoiled by its rate, so that the lowest inner loss is one of the head's epochs."""
    spoiled = {"learning_rate": 9.0, "warmup_fraction": 0.0, "schedule": "constant"}
    recipe = dataclasses.replace(QUICK, select_epoch=True, head_epochs=2, **spoiled)
    labels, groups = np.random.default_rng(0).integers(0, 2, 16).repeat(2), np.arange(16).repeat(2)  # nothing to learn
    told = []
    result = fit(SMALL, IMAGES[:32], labels, 2, recipe, groups=groups, on_epoch=lambda epoch, row: told.append(row))
    inner = pd.DataFrame([row for row in told if "inner_fold" in row])
    curve = inner.groupby("epoch")["val_loss"].mean()
    assert curve.idxmin() <= 2
    assert result.history["epoch"].iloc[-1] == curve[curve.index > 2].idxmin()


def hungry(most, of_tensorflow=False):
    """Return a backbone that asks for more memory than there can be where a batch has more images than `most`.

    TensorFlow waits ten seconds before it says that there is none. Python, which is asked otherwise, says so at once,
    and TensorFlow's error for a step in which that happens is the same.
    """
    import tensorflow as tf

    def ask_python(count):
        return np.frombuffer(bytearray(1 << 60 if count > most else 1), np.uint8)

    class Hungry(keras.layers.Layer):
        def call(self, inputs):
            count = tf.shape(inputs)[0]
            if of_tensorflow:
                wanted = tf.where(count > most, tf.constant(1 << 44, tf.int64), tf.constant(1, tf.int64))
                found = tf.random.uniform(wanted[None])
            else:
                found = tf.cast(tf.numpy_function(ask_python, [count], tf.uint8), tf.float32)
            return inputs + tf.reduce_max(found) * 0.0

        def compute_output_shape(self, shape):
            return shape

    return dataclasses.replace(SMALL, build=lambda inputs, weights: SMALL.build(Hungry()(inputs), None))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="its layer asks TensorFlow for memory")
@pytest.mark.parametrize("of_tensorflow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_running_out_of_memory_is_an_error(of_tensorflow):
    spec = hungry(8, of_tensorflow)  # batches of BatchNorm are four times as large, those of prediction twice
    with pytest.raises(OutOfMemoryError, match=r"batch_size=8 at 32 pixels\. Try batch_size=4"):
        fit(spec, *TRAIN, 2, QUICK)


def test_settings_without_weights_are_said():
    recipe = dataclasses.replace(QUICK, weights="imagenet", head_epochs=3, if_no_weights={"epochs": 1, "batch_size": 4})
    result = fit(SMALL, *TRAIN, 2, recipe)
    assert (result.recipe.head_epochs, result.recipe.epochs, result.recipe.batch_size) == (0, 1, 4)
    assert result.notes[0] == "no imagenet weights: from random ones"
    assert list(result.history["phase"]) == ["full"]


def test_the_checkpoint_of_another_training_side_is_not_used(tmp_path):
    """The first fit is finished: a fit of its checkpoint would train no more."""
    images, labels = TRAIN
    fit(SMALL, images, labels, 2, QUICK, checkpoints=tmp_path)
    for side in ((images, 1 - labels), (images[::-1], labels)):
        found = fit(SMALL, *side, 2, QUICK, checkpoints=tmp_path).model.get_weights()
        for one, other in zip(found, fit(SMALL, *side, 2, QUICK).model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_damaged_and_foreign_checkpoints_are_not_used(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(loop._log, "warning", lambda text, *values: said.append(text % values))
    models = ModelCache()
    first = [
        array.copy() for array in fit(SMALL, *TRAIN, 2, QUICK, checkpoints=tmp_path, models=models).model.get_weights()
    ]
    file = tmp_path / "fit.npz"
    whole = file.read_bytes()
    for damaged in (b"", b"x" * 100, whole[:1000], whole[:-50]):
        file.write_bytes(damaged)
        said.clear()
        again = fit(SMALL, *TRAIN, 2, QUICK, checkpoints=tmp_path, models=models)
        assert "cannot be read and is not used" in said[0]
        for mine, other in zip(first, again.model.get_weights(), strict=True):
            np.testing.assert_array_equal(mine, other)
    sharper = dataclasses.replace(SMALL, build=lambda i, w: keras.layers.ReLU(max_value=6.0)(SMALL.build(i, None)))
    edited = fit(sharper, *TRAIN, 2, QUICK, checkpoints=tmp_path)
    alone = fit(sharper, *TRAIN, 2, QUICK)
    np.testing.assert_array_equal(edited.model.get_weights()[0], alone.model.get_weights()[0])
    for arguments in ((TRAIN, {"seed": 1}), ((IMAGES[:32], 1 - LABELS[:32]), {})):
        other = fit(SMALL, *arguments[0], 2, QUICK, checkpoints=tmp_path, models=models, **arguments[1])
        assert not np.array_equal(other.model.get_weights()[-2], first[-2])
    assert [path.name for path in tmp_path.iterdir()] == ["fit.npz"]
