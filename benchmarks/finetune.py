"""The recipe `finetune` beside ten lines of Keras: the same split, pretrained net and number of training images.

    python benchmarks/finetune.py --weights FILE --root FOLDER [--seeds 0,1,2] [--set epochs=12] [--json FILE]

`--weights` is an .npz file of EfficientNet-Lite0 (`examples/leukemia-dl-efficientnet-lite`), `--root` a folder of
images with a folder per class. Each seed draws a split of its own: 50 images of each class to train on, 75 to test. The
ten lines: pooled features, dropout of 0.2, a Dense layer; Adam at 1e-3 with a cosine decay, flips, batches of 32, 20
epochs. Keras's momentum of 0.99 leaves BatchNorm statistics unfinished after 120 steps (accuracy 0.805 where 0.9 gives
the numbers of the results), and BatchNorm in inference mode does not learn at this rate: `--momentum` is that of the
ten lines.

Rows say how many images went through the net in training steps, since seconds depend on what else a machine does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import leukemia_dl as ldl

sys.path.append(str(Path(__file__).parents[1] / "examples" / "leukemia-dl-efficientnet-lite"))
from leukemia_dl_efficientnet_lite import backbone

TRAIN, TEST, BATCH = 50, 75, 32  # images of each class; images per step


def split(labels: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return train and test rows."""
    draw = np.random.default_rng(1000 + seed)
    orders = [draw.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    train = np.concatenate([order[:TRAIN] for order in orders])
    return np.sort(train), np.concatenate([order[TRAIN : TRAIN + TEST] for order in orders])


def scores(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> tuple[float, float]:
    """Return accuracy and loss."""
    chosen = np.clip(probabilities[np.arange(len(labels)), labels], 1e-7, 1)
    return float((probabilities.argmax(axis=1) == labels).mean()), float(-np.log(chosen).mean())


def ten_lines(
    spec: ldl.BackboneSpec, images: NDArray[np.uint8], labels: NDArray[np.int64], seed: int, epochs: int,
    momentum: float,
) -> Any:  # fmt: skip
    """Train as Keras's guides do."""
    import keras

    keras.utils.set_random_seed(seed)
    inputs = keras.Input(images.shape[1:])
    x = keras.layers.Rescaling(1 / 128, -127 / 128)(keras.layers.RandomFlip("horizontal_and_vertical")(inputs))
    x = spec.build(x, "imagenet")
    x = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, keras.layers.Dense(int(labels.max()) + 1)(x))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum
    rate = keras.optimizers.schedules.CosineDecay(1e-3, len(images) // BATCH * epochs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)
    draw = np.random.default_rng(seed)
    for _ in range(epochs):
        order = draw.permutation(len(images))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            model.train_on_batch(images[rows].astype(np.float32), labels[rows])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a number of the recipe")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    from leukemia_dl.models.classifier import logits_over_symmetries, softmax
    from leukemia_dl.training import fit
    from leukemia_dl.training.backends import prepare

    prepare("float32")
    changes = {name: json.loads(value) for name, _, value in (text.partition("=") for text in arguments.set)}
    recipe = ldl.Recipe.preset("finetune", image_size=arguments.size, **changes)
    files = [sorted(folder.iterdir()) for folder in sorted(arguments.root.iterdir()) if folder.is_dir()]
    labels = np.repeat(np.arange(len(files)), [len(names) for names in files])
    load = ldl.Pipeline.default(arguments.size, canvas=None).load
    pixels = np.stack([load(path) for names in files for path in names])
    spec, rows = backbone(arguments.weights), []
    for seed in map(int, arguments.seeds.split(",")):
        train, test = split(labels, seed)
        for what in ("ten lines of Keras", "finetune"):
            started = time.process_time()
            if what == "finetune":
                model = fit(spec, pixels[train], labels[train], len(files), recipe, seed=seed).model
            else:
                model = ten_lines(spec, pixels[train], labels[train], seed, recipe.epochs, arguments.momentum)
            seconds = time.process_time() - started
            views = softmax(logits_over_symmetries(model, pixels[test], BATCH))
            each = [scores(labels[test], view)[0] for view in views]
            accuracy, loss = scores(labels[test], views[0])
            mean_accuracy, mean_loss = scores(labels[test], views.mean(axis=0))
            rows.append(
                {"what": what, "seed": seed, "images": len(train) // BATCH * BATCH * recipe.epochs, "loss": loss}
                | {"accuracy": accuracy, "lowest_view": min(each), "highest_view": max(each), "cpu_seconds": seconds}
                | {"symmetry_average_accuracy": mean_accuracy, "symmetry_average_loss": mean_loss}
            )
            print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
