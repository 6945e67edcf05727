"""Exported nets beside Keras: the largest difference in a probability, and images per second in batches of 1 and 32.

    python benchmarks/export.py [--nets cnn,resnet50] [--seconds 3] [--json FILE]

Nets have random weights and three classes, at their native size; the last layer is scaled so that logits of noise have
a standard deviation of 2, since differences between probabilities of 0 and 1 would show nothing. "Keras" is
`model.predict_on_batch`, compiled once; "predict" is `model.predict`, which most scripts call. Times are medians of
calls in turn, within `--seconds` each.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pandas as pd

import leukemia_dl as ldl
from leukemia_dl.models.exported import FORMS, read_exported, settings_file

NETS = "cnn,vgg16,resnet50,inception_v3,xception"


def seconds_of(calls: dict, images: np.ndarray, seconds: float) -> dict[str, float]:
    """Return the median time of a call of each of `calls`, one after the other in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(images)  # to warm up
    until = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < until or not all(len(each) > 2 for each in times.values()):
        for name, call in calls.items():
            started = time.perf_counter()
            call(images)
            times[name].append(time.perf_counter() - started)
    return {name: float(np.median(each)) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=NETS)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    import keras

    rows = []
    for name in arguments.nets.split(","):
        spec = ldl.get_backbone(name)
        keras.utils.set_random_seed(0)
        net = ldl.models.build_model(spec, spec.native_size, 3)
        noise = np.random.default_rng(2).integers(0, 256, (8, *net.input_shape[1:])).astype(np.float32)
        noise *= np.linspace(0, 1, len(noise), dtype=np.float32)[:, None, None, None]
        last = net.layers[-1]
        last.kernel.assign(last.kernel * (2 / np.asarray(net.predict_on_batch(noise)).std()))
        classifier = ldl.Classifier(net, ("a", "b", "c"), ldl.Pipeline.default(spec.native_size), {}, 1.5)
        with tempfile.TemporaryDirectory() as folder:
            plain = keras.models.load_model(classifier.save(Path(folder) / "net.keras"))
            calls = {"Keras": plain.predict_on_batch, "predict": lambda x, net=plain: net.predict(x, verbose=0)}
            differences = {}
            for form, (ending, *_) in FORMS.items():
                path = classifier.export(Path(folder) / f"net{ending}", form)
                calls[form] = read_exported(path)[0].run
                differences[form] = json.loads(settings_file(path).read_text())["largest_difference"]
            for batch in (1, 32):
                size = spec.native_size
                images = np.random.default_rng(1).integers(0, 256, (batch, size, size, 3)).astype(np.float32)
                found = seconds_of(calls, images, arguments.seconds)
                for form, taken in found.items():
                    row = {"net": name, "form": form, "batch": batch, "images_per_second": batch / taken}
                    rows.append(row | {"ratio": found["predict"] / taken, "difference": differences.get(form)})
        keras.utils.clear_session(free_memory=True)
        table = pd.DataFrame(rows)
        print(
            table[table["net"] == name].round({"images_per_second": 1, "ratio": 2}).to_string(index=False), flush=True
        )
        if arguments.json:
            arguments.json.write_text(table.to_json(orient="records", indent=1) + "\n")


if __name__ == "__main__":
    main()
