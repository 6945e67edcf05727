"""Our `cnn` with the recipe `from_scratch` beside the published CNN trained the usual way, in the same wall time.

    python benchmarks/from_scratch.py --dataset all_aria --root FOLDER [--seeds 0,1,2] [--json FILE]
    python benchmarks/from_scratch.py --dataset synthetic

The usual way: `keras.utils.image_dataset_from_directory` at 180 pixels, pixels / 255, Adam at 1e-4, batches of 32, ten
epochs. Each seed draws a split of its own: at random where nothing is known of patients (which says nothing of new
patients), by patients on synthetic cells. Every fit is a process of its own, one after the other. The published CNN
comes first; ours gets as many epochs as end in the time that it took, decoding included, by the time of an epoch that
is measured before. TensorFlow, on the CPU or a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

import leukemia_dl as ldl

EPOCHS = 10
MARGIN = 0.9  # share of the published CNN's time that ours is planned for; epochs are not all of one length


def split(dataset: ldl.Dataset, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return train and test rows."""
    if dataset.has_subjects:
        from sklearn.model_selection import StratifiedGroupKFold

        draw = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        return next(draw.split(np.zeros(len(dataset)), dataset.labels, dataset.table["group"]))
    order = np.random.default_rng(seed).permutation(len(dataset))
    count = len(dataset) // 5
    return order[count:], order[:count]


def scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    chosen = np.clip(probabilities[np.arange(len(labels)), labels], 1e-7, 1)
    return {"accuracy": float((probabilities.argmax(1) == labels).mean()), "loss": float(-np.log(chosen).mean())}


def published(dataset: ldl.Dataset, train: np.ndarray, test: np.ndarray, seed: int) -> dict[str, object]:
    """Train the published CNN as its notebook and Keras's tutorial do."""
    import keras

    from leukemia_dl.training.backends import prepare

    prepare("float32")
    keras.utils.set_random_seed(seed)
    classes = len(dataset.class_names)
    with tempfile.TemporaryDirectory() as folder:
        for side, rows in (("train", train), ("test", test)):
            for row in rows:
                target = Path(folder, side, f"{dataset.labels[row]:02d}", f"{row}{Path(dataset.paths[row]).suffix}")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(Path(dataset.paths[row]).absolute())
        started = time.perf_counter()
        common = {"image_size": (180, 180), "batch_size": 32, "label_mode": "int", "verbose": False}
        read = keras.utils.image_dataset_from_directory
        images = read(Path(folder, "train"), seed=seed, **common)
        held = read(Path(folder, "test"), shuffle=False, **common)
        layers = keras.layers
        model = keras.Sequential(
            [
                keras.Input((180, 180, 3)),
                layers.Rescaling(1 / 255),
                *[part for _ in range(3) for part in (layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D())],
                layers.Flatten(),
                layers.Dense(64, activation="relu"),
                layers.Dropout(0.5),
                layers.Dense(classes, activation="softmax"),
            ]
        )
        model.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", metrics=["accuracy"])
        history = model.fit(images, validation_data=held, epochs=EPOCHS, verbose=0)
        seconds = time.perf_counter() - started
        # By the names of the files, which the folder's order goes by.
        rows = [int(Path(path).stem) for path in held.file_paths]
        found = scores(dataset.labels[rows], model.predict(held, verbose=0))
    best = max(history.history["val_accuracy"])
    return {"what": "published CNN", "epochs": EPOCHS, "seconds": seconds, "best_epoch": best} | found


def ours(dataset: ldl.Dataset, train: np.ndarray, test: np.ndarray, seed: int, epochs: int) -> dict[str, object]:
    """Train `cnn` with `from_scratch`."""
    from leukemia_dl.models.classifier import predict_logits, softmax
    from leukemia_dl.training import fit

    started = time.perf_counter()
    recipe = ldl.Recipe.preset("from_scratch", epochs=epochs)
    pipeline = ldl.Pipeline.default(recipe.image_size, canvas=dataset.info.canvas)
    pixels = dataset.to_numpy(pipeline, show_progress=False)
    sides = [(pixels[rows], dataset.labels[rows]) for rows in (train, test)]
    spec = ldl.get_backbone("cnn")
    result = fit(spec, *sides[0], len(dataset.class_names), recipe, seed=seed, validation=sides[1])
    seconds = time.perf_counter() - started
    found = scores(sides[1][1], softmax(predict_logits(result.model, sides[1][0], 32)))
    # The first epoch has the compilation in it.
    per_epoch = float(result.history["seconds"].iloc[1:].mean()) if epochs > 1 else 0.0
    before = seconds - per_epoch * (epochs - 1)
    row = {"what": "cnn, from_scratch", "epochs": epochs, "seconds": seconds, "per_epoch": per_epoch, "before": before}
    return row | {"best_epoch": float(result.history["val_accuracy"].max())} | found


def alone(arguments: argparse.Namespace, which: str, seed: int, epochs: int = 0) -> dict[str, object]:
    """Run one fit in a process of its own."""
    command = [sys.executable, __file__, "--dataset", arguments.dataset, "--one", which, "--seeds", str(seed)]
    command += ["--epochs", str(epochs)] + (["--root", str(arguments.root)] if arguments.root else [])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {"seed": seed, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=["published", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    if arguments.one:
        dataset = ldl.Dataset.load(arguments.dataset, root=arguments.root)
        dataset = dataset.subset(dataset.labels >= 0)
        sides = split(dataset, seeds[0])
        more = (seeds[0],) if arguments.one == "published" else (seeds[0], arguments.epochs)
        print(json.dumps((published if arguments.one == "published" else ours)(dataset, *sides, *more)))
        return
    pilot = alone(arguments, "ours", seeds[0], 3)
    rows = []
    for seed in seeds:
        theirs = alone(arguments, "published", seed)
        left = MARGIN * float(theirs["seconds"]) - float(pilot["before"])
        mine = alone(arguments, "ours", seed, 1 + max(int(left / float(pilot["per_epoch"])), 0))
        for row in (theirs, mine):
            rows.append({k: v for k, v in row.items() if k not in ("per_epoch", "before")})
            print(rows[-1], flush=True)
    frame = pd.DataFrame(rows)
    columns = ["accuracy", "loss", "best_epoch", "epochs", "seconds"]
    print(frame.groupby("what", sort=False)[columns].agg(["mean", "min", "max"]).round(3).to_string())
    if arguments.json:
        said = {"dataset": arguments.dataset, "rows": rows}
        arguments.json.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
