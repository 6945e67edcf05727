"""Small backbones, good and bad, for grids whose trials run in other processes, and a data set for them."""

import atexit
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np

import leukemia_dl as ldl

SIZES = {"subjects": 12, "images": 72, "preliminary_images": 12, "final_images": 2}
RECIPE = ldl.Recipe(name="tiny", image_size=32, epochs=2, batch_size=8)


def dataset(root):
    return ldl.Dataset.load("synthetic", root=root, **SIZES)


def elsewhere(root):
    """Cells of other subjects, more of them, by other names, some without a label."""
    drawn = ldl.Dataset.load(
        "synthetic", root=root / "cells", subjects=14, images=56, preliminary_images=12, final_images=2, seed=7
    )
    table = drawn.table
    table["label"] = table["label"].map({"hem": "healthy", "all": "blast"})
    table.loc[[3, 10], "label"] = None
    table.loc[[5, 6], "label"] = "smudge"
    frame = table[["path", "label", "subject", "sample"]]
    return ldl.Dataset.from_dataframe(frame, class_names=("blast", "healthy", "smudge"))


def tiny(inputs, weights):
    import keras

    x = keras.layers.Conv2D(8, 5, strides=2, activation="relu")(inputs)
    return keras.layers.BatchNormalization()(x)


def encode(images):
    """Return mean and deviation of each colour in 16 blocks: an encoder of 96 features for images of 32 pixels."""
    parts = images.reshape(len(images), 4, 8, 4, 8, 3).astype(np.float32) / 255
    return np.concatenate([parts.mean(axis=(2, 4)), parts.std(axis=(2, 4))], axis=-1).reshape(len(images), -1)


def raises(inputs, weights):
    raise ZeroDivisionError("the plugin's own fault")


def exits(inputs, weights):
    os._exit(7)


def killed(inputs, weights):
    os.kill(os.getpid(), signal.SIGKILL)  # what the system does to who takes too much memory


def hangs(inputs, weights):
    child = subprocess.Popen(["sleep", "3600"])
    print("child", child.pid, flush=True)
    time.sleep(3600)


def talks(inputs, weights):
    print("a plugin that prints", flush=True)
    os.system("echo and starts programs that do")
    return tiny(inputs, weights)


def gives_nan(inputs, weights):
    import keras

    return keras.layers.Rescaling(float("nan"))(tiny(inputs, weights))


def leaves(inputs, weights):
    raise SystemExit("half a character: \ud800")


def cannot_be_saved(inputs, weights):
    import keras

    class Mute(keras.layers.Layer):
        def call(self, x):
            return x

        def get_config(self):
            raise NotImplementedError("no settings")

    return Mute()(tiny(inputs, weights))


def starts_a_daemon(inputs, weights):
    atexit.register(lambda: print("goodbye at exit", flush=True))
    if os.fork() == 0:
        os.setsid()
        time.sleep(300)
        os._exit(0)
    return tiny(inputs, weights)


def interrupts(inputs, weights):
    raise KeyboardInterrupt


def register(*builders):
    for build in builders:
        spec = ldl.BackboneSpec(name=build.__name__, build=build, scaling="unit", native_size=32, min_size=8)
        ldl.register_backbone(spec, replace=True)
    return [build.__name__ for build in builders]


def wait_for(path: Path, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.02)
