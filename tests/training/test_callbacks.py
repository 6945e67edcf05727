"""Callbacks of one's own; TensorBoard and MLflow for real, against a local folder."""

import dataclasses
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import grids
import leukemia_dl as ldl
from discs import IMAGES, LABELS, SMALL
from leukemia_dl.errors import SettingsError
from leukemia_dl.training import FitContext, ModelCache, Recipe, fit, load_factory
from leukemia_dl.training import callbacks as module

keras = pytest.importorskip("keras")
RECIPE = Recipe(image_size=32, head_epochs=1, epochs=2, batch_size=8)
TRAIN, VALIDATION = (IMAGES[:32], LABELS[:32]), (IMAGES[32:], LABELS[32:])


MODELS = ModelCache()  # one compiled model for all tests with this recipe


def train(**settings):
    return fit(SMALL, *TRAIN, 2, RECIPE, seed=7, validation=VALIDATION, models=MODELS, **settings)


def test_a_factory_is_called_for_each_phase_and_its_callbacks_see_validation(tmp_path):
    contexts, logs = [], []

    def factory(context):
        contexts.append(context)
        return [keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, seen: logs.append((epoch, dict(seen))))]

    result = train(callbacks=factory, folder=tmp_path)
    assert contexts == [FitContext("small", RECIPE, 7, phase, tmp_path) for phase in ("head", "full")]
    assert [epoch for epoch, _ in logs] == [0, 0, 1]
    columns = ["loss", "accuracy", "val_loss", "val_accuracy"]
    seen = pd.DataFrame([row for _, row in logs])[columns]
    pd.testing.assert_frame_equal(seen, result.history[columns], check_exact=True)


def test_the_recipe_may_name_its_callbacks(tmp_path, monkeypatch):
    (tmp_path / "named_callbacks.py").write_text(
        "seen = []\ndef make(context):\n    seen.append(context)\n    return []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = dataclasses.replace(RECIPE, callbacks="named_callbacks:make")
    fit(SMALL, *TRAIN, 2, recipe)
    import named_callbacks

    assert [context.phase for context in named_callbacks.seen] == ["head", "full"]


def test_a_callback_may_stop_a_fit_and_what_is_left_is_a_whole_model():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    recipe = Recipe(image_size=32, epochs=5, batch_size=8, ema_momentum=0.9)
    result = fit(SMALL, *TRAIN, 2, recipe, validation=VALIDATION, callbacks=lambda context: [Stop()])
    assert list(result.history["epoch"]) == [1]
    assert result.stopped
    assert result.notes[0] == "stopped by a callback: 1 of 5 epochs"
    _check_that_the_history_is_of_the_model(result)


def test_a_fit_whose_head_phase_was_stopped_counts_as_stopped():
    """20.24: a callback that stops the head phase counts as stopped, so that val gives no temperature."""
    patient = keras.callbacks.EarlyStopping("val_loss", patience=0, min_delta=100.0)
    recipe = dataclasses.replace(RECIPE, head_epochs=4, epochs=1)
    result = fit(SMALL, *TRAIN, 2, recipe, validation=VALIDATION, callbacks=[patient])
    assert result.history["phase"].tolist() == ["head", "head", "full"]
    assert result.stopped
    assert result.notes[0] == "stopped by a callback: 3 of 5 epochs"


def test_a_lambda_callback_hears_of_batches():
    """20.24: `LambdaCallback(on_train_batch_end=...)` was never called where a head was trained by the scan engine."""
    batches = []
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: batches.append(batch))
    recipe = Recipe(image_size=32, head_epochs=1, epochs=0, batch_size=8)
    fit(SMALL, *TRAIN, 2, recipe, callbacks=[callback])
    assert batches == [0, 1, 2, 3]


WORKING = {
    "CSVLogger": lambda folder: (keras.callbacks.CSVLogger(folder / "log.csv"),),
    "Callback": lambda folder: (keras.callbacks.Callback(),),
    "EarlyStopping": lambda folder: (keras.callbacks.EarlyStopping("val_loss", patience=9),),
    "History": lambda folder: (keras.callbacks.History(),),
    "LambdaCallback": lambda folder: (keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None),),
    "ModelCheckpoint": lambda folder: (
        keras.callbacks.ModelCheckpoint(folder / "{epoch}.weights.h5", save_weights_only=True),
    ),
    "ProgbarLogger": lambda folder: (keras.callbacks.ProgbarLogger(),),
    "RemoteMonitor": lambda folder: (keras.callbacks.RemoteMonitor("http://127.0.0.1:9"),),
    "TensorBoard": lambda folder: (keras.callbacks.TensorBoard(folder / "tensorboard"),),
    "TerminateOnNaN": lambda folder: (keras.callbacks.TerminateOnNaN(),),
}
REFUSED = {
    "BackupAndRestore": lambda folder: keras.callbacks.BackupAndRestore(folder / "backup"),
    "CallbackList": lambda folder: keras.callbacks.CallbackList([keras.callbacks.ReduceLROnPlateau()]),
    "LearningRateScheduler": lambda folder: keras.callbacks.LearningRateScheduler(lambda epoch: 0.1),
    "ModelCheckpoint": lambda folder: keras.callbacks.ModelCheckpoint(folder / "x.keras"),
    "OrbaxCheckpoint": lambda folder: object.__new__(keras.callbacks.OrbaxCheckpoint),  # its package is not installed
    "ReduceLROnPlateau": lambda folder: keras.callbacks.ReduceLROnPlateau(),
    "SwapEMAWeights": lambda folder: keras.callbacks.SwapEMAWeights(),
}
EVERY = sorted(name for name, kind in vars(keras.callbacks).items() if isinstance(kind, type))


def test_every_callback_of_keras_is_in_one_of_the_two_tables():
    """20.24: a callback that a new version of Keras brings has to be looked at."""
    assert sorted(set(WORKING) | set(REFUSED)) == EVERY


def test_weights_that_a_callback_restores_were_chosen_on_the_val_side():
    """20.24: early stopping that restores the best weights, and never stops early, counts as a choice too."""
    result = train(callbacks=[keras.callbacks.EarlyStopping(patience=99, restore_best_weights=True)])
    assert result.stopped
    assert "weights chosen by a callback: 3 of 3 epochs" in result.notes


@pytest.mark.filterwarnings("ignore:Could not reach RemoteMonitor")
@pytest.mark.parametrize("name", sorted(WORKING))
def test_callbacks_that_work(name, tmp_path, recwarn):
    """20.24: every callback of Keras works in both phases, without a warning, or is refused."""
    if name == "TensorBoard":
        pytest.importorskip("tensorboard")
    result = train(callbacks=list(WORKING[name](tmp_path)))
    assert result.history["phase"].tolist() == ["head", "full", "full"]
    assert not result.stopped
    assert not [
        str(w.message) for w in recwarn if issubclass(w.category, UserWarning) and "Remote" not in str(w.message)
    ]
    if name == "CSVLogger":
        assert len(pd.read_csv(tmp_path / "log.csv")) == 2  # of the second phase, whose file replaces the first's
    if name == "ModelCheckpoint":
        assert sorted(file.name for file in tmp_path.iterdir()) == ["1.weights.h5", "2.weights.h5"]


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_callbacks_that_are_refused_before_the_first_epoch(name, tmp_path):
    """20.24: `ModelCheckpoint("x.keras")` was a RecursionError; others failed when they acted, or did nothing."""
    epochs = []
    made = {"head": [], "full": [REFUSED[name](tmp_path)]}  # the second phase's too, before the first is trained
    with pytest.raises(SettingsError, match=rf"keras\.callbacks\.{name} cannot be used in a fit: .{{20}}"):
        train(callbacks=lambda context: made[context.phase], on_epoch=lambda *epoch: epochs.append(epoch))
    assert not epochs


def test_a_callback_that_sets_the_rate_is_told_what_cannot_be_done():
    """20.24: it was "'function' object has no attribute 'assign'"."""

    class Set(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.learning_rate = 0.1

    with pytest.raises(TypeError, match="LearningRateSchedule"):
        train(callbacks=[Set()])


def test_weights_that_a_callback_puts_back_are_the_result():
    """Keras's own, which restores the best epoch's weights: averages, as they were validated."""
    seen = []

    class Remember(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((logs["val_loss"], self.model.get_layer("small").get_layer("logits").get_weights()[0]))

    def factory(context):
        best = keras.callbacks.EarlyStopping("val_loss", patience=9, restore_best_weights=True)
        return [best, Remember()]

    recipe = Recipe(image_size=32, epochs=4, batch_size=8, ema_momentum=0.9, learning_rate=0.02)
    result = fit(SMALL, *TRAIN, 2, recipe, validation=VALIDATION, callbacks=factory, seed=3)
    best = min(range(4), key=lambda epoch: seen[epoch][0])
    np.testing.assert_array_equal(result.model.get_layer("logits").get_weights()[0], seen[best][1])
    _check_that_the_history_is_of_the_model(result)


def _check_that_the_history_is_of_the_model(result):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = float(loss(VALIDATION[1], result.model(VALIDATION[0].astype("float32"), training=False)))
    assert result.history["val_loss"].iloc[-1] == pytest.approx(found, rel=1e-4, abs=1e-6)


def test_factories_by_name(tmp_path, monkeypatch):
    (tmp_path / "my_callbacks.py").write_text("def make(context):\n    return []\nvalue = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_factory("my_callbacks:make")(None) == []
    assert load_factory(None) is None
    assert load_factory(load_factory) is load_factory
    callbacks = [keras.callbacks.History()]
    assert load_factory(callbacks)(None)[0] is callbacks[0]
    with pytest.raises(TypeError, match="pass a function of a FitContext"):
        pickle.dumps(load_factory(callbacks))
    for wrong, says in (
        ("my_callbacks", "module:function"),
        (":make", "module:function"),
        ("my_callbacks:", "module:function"),
        (3, "module:function"),
        ("my_callbacks:nothing", "has no attribute 'nothing'"),
        ("not_there_at_all:make", "No module named"),
        ("my_callbacks:value", "callbacks=3"),
    ):
        with pytest.raises(SettingsError, match=says):
            load_factory(wrong)
    with pytest.raises(SettingsError, match="No module named"):
        ldl.Benchmark(ldl.Dataset.load("synthetic", subjects=12, images=60), ["cnn"], callbacks="not_there:at_all")


def test_tensorboard_writes_below_the_folder(tmp_path):
    pytest.importorskip("tensorboard")
    result = train(callbacks=module.tensorboard, folder=tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = []
    for phase in ("head", "full"):
        events = EventAccumulator(str(tmp_path / "tensorboard" / phase / "train"), size_guidance={"tensors": 0})
        events.Reload()
        found += [float(keras.ops.convert_to_numpy(_value(e))) for e in events.Tensors("epoch_loss")]
    assert found == pytest.approx(list(result.history["loss"]), rel=1e-6)


def _value(event):
    from tensorboard.util.tensor_util import make_ndarray

    return make_ndarray(event.tensor_proto)


def test_mlflow_keeps_settings_and_epochs_in_a_local_store(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    experiment = mlflow.set_experiment("cells").experiment_id
    result = train(callbacks=load_factory("leukemia_dl.training.callbacks:mlflow"))
    assert mlflow.active_run() is None
    client = mlflow.MlflowClient()
    runs = sorted(client.search_runs([experiment]), key=lambda run: run.info.start_time)
    assert [run.info.run_name for run in runs] == ["small 7 head", "small 7 full"]
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    for run in runs:
        assert run.data.params["backbone"] == "small"
        assert run.data.params["learning_rate"] == str(RECIPE.learning_rate)
        history = result.history[result.history["phase"] == run.data.params["phase"]]
        for column in ("loss", "val_loss"):
            logged = client.get_metric_history(run.info.run_id, column)
            assert [metric.value for metric in logged] == pytest.approx(list(history[column]), rel=1e-9)
            assert [metric.step for metric in logged] == list(range(1, len(history) + 1))


def test_a_benchmark_gives_its_callbacks_a_folder_per_trial(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setitem(sys.modules, "my_factory", type(os)("my_factory"))
    sys.modules["my_factory"].make = lambda context: seen.append(context) or []
    sizes = {"subjects": 12, "images": 60, "preliminary_images": 12, "final_images": 2}
    dataset = ldl.Dataset.load("synthetic", root=tmp_path / "cells", **sizes)
    net, recipe = grids.register(grids.tiny), Recipe(image_size=32, epochs=1, batch_size=16)
    bench = ldl.Benchmark(
        dataset, net, recipe=recipe, baselines=[], store=tmp_path / "store", callbacks="my_factory:make"
    )
    frame = bench.run(executor="in-process", show_progress=False)
    assert frame["status"].tolist() == ["ok"]
    assert "callbacks: " in frame["flags"].iloc[0]
    (context,) = seen
    assert context.folder == Path(tmp_path, "store", "logs", frame["trial"].iloc[0])
    assert 'callbacks = "my_factory:make"' in (tmp_path / "store" / "settings.toml").read_text()
    assert not (tmp_path / "store" / "unfinished").exists()

    # 20.30: a plain list of callbacks serves the trials of this process; other processes would give it nothing back.
    history = keras.callbacks.History()
    bench = ldl.Benchmark(
        dataset, net, recipe=recipe, baselines=[], store=tmp_path / "list", callbacks=[history], seeds=[0, 1]
    )
    with pytest.raises(SettingsError, match=r"pass a function of a FitContext that makes it.*executor='in-process'"):
        bench.run(executor="processes", show_progress=False)
    frame = bench.run(executor="in-process", show_progress=False)
    assert frame["flags"].str.contains("callbacks: History").all()
    assert len(history.history["val_loss"]) == 2  # of both
    assert 'callbacks = "list"' in (tmp_path / "list" / "settings.toml").read_text()
