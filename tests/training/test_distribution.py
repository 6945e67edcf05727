"""Several devices for one fit: virtual ones of a CPU, in a process of their own. The same losses as one device has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import leukemia_dl as ldl
from discs import IMAGES, LABELS
from leukemia_dl.errors import BackendError
from leukemia_dl.training import Compute, Recipe, fit
from leukemia_dl.training.backends import Device
from leukemia_dl.training.distribution import check_share, distributed

keras = pytest.importorskip("keras")
BACKEND = keras.backend.backend()
HELPERS = Path(__file__).parents[1] / "helpers"
PROGRAM = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
if os.environ["KERAS_BACKEND"] == "tensorflow":
    import tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import leukemia_dl as ldl
from discs import IMAGES, LABELS
from leukemia_dl.errors import BackendError, SettingsError
from leukemia_dl.training import Compute, Recipe, fit

found = []
plain = {"image_size": 32, "batch_size": 8, "dropout": 0.0, "learning_rate": 3e-3}
for name, change in json.loads(sys.argv[2]):
    for replicas in (1, 2):
        result = fit(
            ldl.get_backbone(name), IMAGES[:32], LABELS[:32], 2, Recipe(**plain | change), seed=1,
            validation=(IMAGES[32:], LABELS[32:]), compute=Compute(replicas=replicas),
        )
        curves = [result.history[column].tolist() for column in ("loss", "val_loss")]
        found.append([result.device.replicas, *curves, result.logits(IMAGES[32:]).tolist()])
refused = []
for settings, replicas in (({"batch_size": 7}, 2), ({"batch_size": 9}, 3)):
    try:
        fit(ldl.get_backbone("cnn"), IMAGES, LABELS, 2, Recipe(**plain | settings), compute=Compute(replicas=replicas))
    except (BackendError, SettingsError) as error:
        refused.append(str(error))
print("\\n" + json.dumps([found, refused]))
"""


@pytest.fixture(scope="module")
def outcome():
    # A net without BatchNorm, since TensorFlow normalises share by share; and on JAX one with it.
    grids = [["source_cnn", {"epochs": 2, "average": 0.9, "rotation": 10.0}], ["cnn", {"head_epochs": 3, "epochs": 0}]]
    grids += [["cnn", {"epochs": 2}]] if BACKEND == "jax" else []
    environment = os.environ | {
        "KERAS_BACKEND": BACKEND, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "TF_CPP_MIN_LOG_LEVEL": "3",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(HELPERS), json.dumps(grids)],
        capture_output=True, text=True, env=environment, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_two_devices_give_the_losses_of_one(outcome):
    found, _ = outcome
    for one, two in zip(found[::2], found[1::2], strict=True):
        assert (one[0], two[0]) == (1, 2)
        for mine, other in zip(one[1:], two[1:], strict=True):
            np.testing.assert_allclose(mine, other, rtol=2e-3, atol=1e-4)
    assert len({json.dumps(one[1]) for one in found[::2]}) == len(found) // 2  # different nets, different losses


def test_what_cannot_be_shared_is_refused(outcome):
    _, refused = outcome
    assert refused[0] == "A batch of 7 images cannot be shared evenly by 2 devices. Use batch_size=6."
    assert refused[1].startswith(f"replicas=3 needs as many CPUs; {BACKEND} sees 2.")


def test_one_device_is_not_two():
    with pytest.raises(BackendError, match="replicas=2 needs as many CPUs"):
        fit(ldl.get_backbone("cnn"), IMAGES, LABELS, 2, Recipe(image_size=32), compute=Compute(replicas=2))


def test_torch_says_what_to_do_instead():
    device = Device("torch", "gpu", "a GPU", "float32", False, 2, replicas=2)
    with pytest.raises(BackendError, match="On torch give each trial a GPU of its own"):
        distributed(device)
    check_share(device, 32)
