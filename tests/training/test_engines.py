"""The engines: the same losses whichever trains, one compiled program for all folds and seeds, callbacks of epochs."""

import dataclasses
import gc

import numpy as np
import pytest
from typer.testing import CliRunner

from discs import IMAGES, LABELS, SMALL, counting
from leukemia_dl.cli import app
from leukemia_dl.errors import BackendError, SettingsError
from leukemia_dl.training import ComputeConfig, Nets, Recipe, Subset, fit
from leukemia_dl.training.backends import Device
from leukemia_dl.training.engines import KerasFit, choose_engine

keras = pytest.importorskip("keras")
BACKEND = keras.backend.backend()
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="looks into JAX")
not_on_torch = pytest.mark.skipif(BACKEND == "torch", reason="it is not there on torch")
QUICK = Recipe(image_size=32, epochs=2, batch_size=8, learning_rate=3e-3)
VALIDATION = (IMAGES[40:], LABELS[40:])
SETTINGS = {
    "all": {},
    "everything": {
        "rotation": 20.0, "ema_momentum": 0.9, "class_balance": "weights", "label_smoothing": 0.1, "batch_size": 12,
    },
    "drawn in equal numbers": {"class_balance": "batches", "stain": 0.2},
    "head": {"head_epochs": 3, "epochs": 0},
    "head on symmetries": {"head_epochs": 3, "epochs": 0, "head_symmetries": True},
}  # fmt: skip


def trained(engine, recipe=QUICK, rows=40, seed=1, **settings):
    compute = ComputeConfig(engine=engine)
    images = Subset(IMAGES, np.arange(rows))
    return fit(SMALL, images, LABELS[:rows], 2, recipe, seed=seed, validation=VALIDATION, compute=compute, **settings)


@not_on_torch
@pytest.mark.parametrize("name", SETTINGS)
def test_both_engines_give_the_same_losses(name):
    recipe = dataclasses.replace(QUICK, **SETTINGS[name])
    scan, plain = (trained(engine, recipe) for engine in ("scan", "keras"))
    assert set(scan.history["engine"]) == {"scan"}
    assert set(plain.history["engine"]) == {"keras"}
    for column in ("loss", "accuracy", "val_loss"):
        np.testing.assert_allclose(scan.history[column], plain.history[column], rtol=1e-3, atol=1e-4)
    for mine, other in zip(scan.model.get_weights(), plain.model.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-2, atol=1e-2)


@on_jax
def test_one_compiled_program_serves_folds_of_any_length_and_all_seeds(monkeypatch):
    import jax

    compiled = []
    plain = jax.jit

    def counting(function, **settings):
        made = plain(function, **settings)
        compiled.append(made)
        return made

    nets = Nets()
    monkeypatch.setattr(jax, "jit", counting)
    for seed, rows in ((0, 40), (1, 40), (0, 32), (1, 24)):
        trained("scan", rows=rows, seed=seed, nets=nets)
    epochs = [made for made in compiled if getattr(made, "__name__", "") == "epoch"]
    assert [made._cache_size() for made in epochs] == [1]


@not_on_torch
def test_images_are_copied_to_the_device_once(monkeypatch):
    from leukemia_dl.training import scan

    scan._copied.clear()
    sent = []
    plain = scan._on_device

    def counting(base):
        before = scan._copied[0][1] if scan._copied else None
        sent.append(plain(base) is not before)
        return scan._copied[0][1]

    monkeypatch.setattr(scan, "_on_device", counting)
    nets, fixed = Nets(), IMAGES.copy()
    fixed.flags.writeable = False  # what may be changed is copied for each fit
    for rows in (40, 32, 40):
        compute = ComputeConfig(engine="scan")
        fit(SMALL, Subset(fixed, np.arange(rows)), LABELS[:rows], 2, QUICK, nets=nets, compute=compute)
    assert sent == [True, False, False]


@not_on_torch
def test_callbacks_of_epochs_are_heard_and_may_stop():
    seen = []

    class Hear(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.append("begin")

        def on_epoch_end(self, epoch, logs=None):
            seen.append((epoch, sorted(logs)))
            self.model.stop_training = epoch == 1

        def on_train_end(self, logs=None):
            seen.append("end")

    result = trained("scan", dataclasses.replace(QUICK, epochs=5), callbacks=lambda context: [Hear()])
    names = ["accuracy", "loss", "val_accuracy", "val_loss"]
    assert seen == ["begin", (0, names), (1, names), "end"]
    assert result.stopped
    assert len(result.history) == 2


@not_on_torch
def test_an_interrupted_epoch_does_not_spoil_the_net_for_the_next_fit():
    nets = Nets()

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained("scan", callbacks=lambda context: [Interrupt()], nets=nets)
    again, new = trained("scan", nets=nets), trained("scan")
    np.testing.assert_array_equal(again.history["loss"], new.history["loss"])


@not_on_torch
def test_a_killed_fit_goes_on_to_the_same_bits(tmp_path):
    def stop(epoch, row):
        raise KeyboardInterrupt

    recipe = dataclasses.replace(QUICK, epochs=3, ema_momentum=0.9)
    with pytest.raises(KeyboardInterrupt):
        trained("scan", recipe, checkpoints=tmp_path, on_epoch=stop)
    heard = []
    again = trained("scan", recipe, checkpoints=tmp_path, on_epoch=lambda epoch, row: heard.append(epoch))
    assert heard == [2, 3]
    whole = trained("scan", recipe)
    np.testing.assert_array_equal(again.history["loss"], whole.history["loss"])
    for mine, other in zip(again.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)


class Batches(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        """Hear of a batch."""


@not_on_torch
def test_a_callback_that_hears_of_batches_needs_the_other_engine():
    with pytest.raises(SettingsError, match=r"no batches that Batches could hear of\. Use engine='keras'"):
        trained("scan", callbacks=lambda context: [Batches()])


@pytest.mark.skipif(BACKEND != "torch", reason="it is there elsewhere")
def test_whole_epochs_on_the_device_are_refused_on_torch():
    with pytest.raises(SettingsError, match="engine='scan' is for TensorFlow and JAX; this is torch"):
        trained("scan")


@pytest.mark.skipif(BACKEND != "tensorflow", reason="counts traces of TensorFlow")
def test_one_trace_serves_folds_of_any_length_and_all_seeds():
    traced = []
    spec = counting(traced)
    recipe = dataclasses.replace(QUICK, epochs=3)
    nets, counts = Nets(), []
    for rows in (40, 32):
        compute = ComputeConfig(engine="scan")
        before = len(traced)
        fit(spec, Subset(IMAGES, np.arange(rows)), LABELS[:rows], 2, recipe, nets=nets, compute=compute)
        counts.append(len(traced) - before)
    # What is left are the passes for the statistics of BatchNorm, which are not compiled.
    assert counts[1] < counts[0] <= counts[1] + 2


def test_auto_takes_the_scan_for_heads_and_for_jax_on_a_gpu(monkeypatch):
    from leukemia_dl.training import engines

    gpu = Device("jax", "gpu", "a GPU", "mixed_bfloat16", "auto", 2)
    monkeypatch.setattr(engines, "fits_on_device", lambda images: len(images) < 100)
    few, many = IMAGES[:4], np.zeros((100, 2, 2, 3), np.uint8)

    def chosen(asked="auto", device=gpu, images=few, phase="full", callbacks=()):
        return choose_engine(asked, device, images, phase, callbacks).name

    assert chosen() == "scan"
    assert chosen(callbacks=[keras.callbacks.Callback()]) == "scan"
    assert chosen(callbacks=[Batches()]) == "keras"
    assert chosen(images=many) == "keras"
    assert chosen("keras", phase="head") == "keras"
    for change in ({"kind": "cpu"}, {"backend": "tensorflow"}):
        assert chosen(device=dataclasses.replace(gpu, **change)) == "keras"
        assert chosen(device=dataclasses.replace(gpu, **change), phase="head") == "scan"
        assert chosen("scan", device=dataclasses.replace(gpu, **change)) == "scan"
    monkeypatch.setattr(engines, "_HEAD_BYTES", 1)
    assert chosen(device=dataclasses.replace(gpu, kind="cpu"), phase="head") == "keras"
    assert chosen(device=dataclasses.replace(gpu, backend="torch"), phase="head") == "keras"
    assert choose_engine("keras", gpu, few, "full") == KerasFit()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "fast"}, r"engine must be one of \('auto', 'keras', 'scan'\). Received: engine='fast'"),
        ({"device": "tpu"}, "device must be 'auto', 'cpu', 'gpu' or 'gpu:N'. Received: device='tpu'"),
        ({"threads": 0}, "threads must be a whole number from 1 to 4096. Received: threads=0"),
        ({"threads": 1.0}, "threads must be a whole number from 1 to 4096. Received: threads=1.0"),
        ({"threads": True}, "threads must be a whole number"),
    ],
)
def test_values_that_are_not_allowed_are_named(settings, message):
    with pytest.raises(SettingsError, match=message):
        ComputeConfig(**settings)


@not_on_torch
def test_a_fold_that_is_smaller_than_a_batch_has_a_program_of_its_own():
    recipe, nets = dataclasses.replace(QUICK, head_epochs=2, epochs=0, batch_size=16), Nets()
    new = {rows: trained("scan", recipe, rows).history["loss"] for rows in (40, 10)}
    for rows in (40, 10, 40):
        again = trained("scan", recipe, rows, nets=nets)
        np.testing.assert_array_equal(again.history["loss"], new[rows])


@not_on_torch
def test_images_that_were_changed_in_place_are_copied_again():
    buffer, compute = IMAGES.copy(), ComputeConfig(engine="scan")
    fit(SMALL, buffer, LABELS, 2, QUICK, compute=compute)
    buffer[:] = 255 - IMAGES
    again = fit(SMALL, buffer, LABELS, 2, QUICK, compute=compute)
    np.testing.assert_array_equal(
        again.history["loss"], fit(SMALL, buffer.copy(), LABELS, 2, QUICK, compute=compute).history["loss"]
    )


@not_on_torch
def test_images_on_the_device_live_no_longer_than_those_in_memory():
    from leukemia_dl.training import scan

    fixed = IMAGES.copy()
    fixed.flags.writeable = False
    fit(SMALL, fixed, LABELS, 2, QUICK, compute=ComputeConfig(engine="scan"))
    assert scan._copied
    del fixed
    gc.collect()
    assert not scan._copied


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
