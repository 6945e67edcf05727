"""Prediction on a CPU beside the bare compiled forward pass, and whether its wall time stays what it is.

`load_classifier(...).predict` on uint8 images of the net's size, batches of 32, beside a compiled function of the model
on one batch that is a tensor already; test-time averaging over eight symmetries beside a plain prediction; and twenty
calls in a row, since Keras's `predict` on numpy arrays sits idle after some of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from harness import Row, compared, in_turn

import leukemia_dl as ldl
from leukemia_dl.models import Classifier
from leukemia_dl.models.build import build_model
from leukemia_dl.training.backends import prepare

BATCH = 32


def rows(short: bool) -> Iterable[Row]:
    prepare()
    if short:
        return net("cnn", 32, 1, 2)
    found = []
    for name, size in (
        ("cnn", 128), ("vgg16", 128), ("resnet50", 128), ("inception_v3", 128), ("xception", 128), ("resnet50", 224)
    ):  # fmt: skip
        found += net(name, size, 7, 20 if name == "resnet50" and size == 128 else 0)
    return found


def net(name: str, size: int, rounds: int, calls: int) -> list[Row]:
    import keras
    import tensorflow as tf

    keras.utils.clear_session()
    batches = 4
    images = np.random.default_rng(0).integers(0, 256, (batches * BATCH, size, size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        # Steps that change nothing: what is compared is the net's work.
        built = Classifier(
            build_model(ldl.get_backbone(name), size, 2), ("hem", "all"), ldl.Pipeline.default(size, None)
        )
        classifier = ldl.load_classifier(built.save(Path(folder) / "model.keras"))
    model = classifier.model
    batch = tf.constant(images[:BATCH])
    forward = tf.function(lambda: model(batch, training=False))

    def bare() -> None:
        for _ in range(batches):
            logits = forward()
        logits.numpy()

    def predict() -> None:
        classifier.predict(images, batch_size=BATCH, show_progress=False)

    def averaged() -> None:
        classifier.predict(images, batch_size=BATCH, tta=True, show_progress=False)

    count, where = len(images), f"{name}, {size} px"
    taken = in_turn({"ours": predict, "bare": bare}, rounds)
    found = [compared(f"{where}: beside the forward pass", taken["ours"], taken["bare"], count, "images/s", 0.95)]
    if calls:
        eight = in_turn({"tta": averaged, "plain": predict}, max(rounds // 2, 1))
        what = f"{where}: mean of eight symmetries beside one"
        found.append(compared(what, eight["tta"], eight["plain"], count, "images/s", 1 / 8.5))
        seconds = in_turn({"ours": predict}, calls)["ours"]
        middle = [float(np.median(seconds))] * calls
        worst = max(seconds) / middle[0]
        what, note = f"{where}: {calls} calls beside their median", f"the slowest took {worst:.2f} of the median"
        row = compared(what, seconds, middle, count, "images/s", note=note)
        # A call that sat idle would take up to twice the time.
        found.append(Row(row.what, row.ours, row.theirs, row.unit, row.low, row.low, row.high, 0.7, row.note))
    return found
