"""What Keras's tutorials show, in a process of its own: `image_dataset_from_directory`, `compile`, `fit`.

    python benchmarks/plain_fit.py FOLDER BACKBONE SIZE STEPS EPOCHS

`training.py` starts it. It waits for a line on its standard input before each epoch, so that epochs of two processes
take turns, and prints the seconds of each; STEPS 0 takes all images, and times whole calls, one for each line.
"""

import sys
import time

folder, name, size, steps, epochs = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])

import keras  # noqa: E402

import leukemia_dl as ldl  # noqa: E402
from leukemia_dl.models.build import build_model  # noqa: E402

BATCH = 32
spec = ldl.get_backbone(name)


class Clock(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        sys.stdin.readline()
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        print(time.perf_counter() - self.started, flush=True)


def train(callbacks):
    images = keras.utils.image_dataset_from_directory(
        folder, image_size=(size, size), batch_size=BATCH, seed=0, verbose=False
    )
    model = build_model(spec, size, 2)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(images.take(steps) if steps else images, epochs=epochs, verbose=0, callbacks=callbacks)


if steps:
    train([Clock()])
else:
    while sys.stdin.readline():
        began = time.perf_counter()
        train([])
        print(time.perf_counter() - began, flush=True)
