"""A frozen encoder, a fine-tuned one and a net from random weights on the same splits, over training images per class.

    python benchmarks/encoders.py --weights FILE --root FOLDER [--shots 5,25,50] [--seeds 0,1,2] [--json FILE]
    python benchmarks/encoders.py --json FILE --figure FILE    (draws an earlier result)

`--weights` is an .npz file of EfficientNet-Lite0 (`examples/leukemia-dl-efficientnet-lite`), `--root` a folder of
images with a folder per class. Patients are taken as unknown: splits are of images, so figures are too high for new
patients. Each seed draws its own training images; val and test side are the same for all.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

import leukemia_dl as ldl

sys.path.append(str(Path(__file__).parents[1] / "examples" / "leukemia-dl-efficientnet-lite"))
from leukemia_dl_efficientnet_lite import backbone

FACTS = ["recipe", "backbone", "shots", "seed", "accuracy", "loss", "n_train", "n_test", "flags"]


def draw(table: pd.DataFrame, file: Path) -> None:
    """Draw the mean accuracy over seeds, and the range of it, over training images per class."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    labels = {"linear_probe": "linear probe", "knn": "20 nearest neighbours", "from_scratch": "cnn from scratch"}
    for marker, (name, rows) in zip("os^D", table.groupby("recipe", sort=False), strict=False):
        spread = rows.groupby("shots")["accuracy"].agg(["mean", "min", "max"])
        ends = [spread["mean"] - spread["min"], spread["max"] - spread["mean"]]
        axes.errorbar(spread.index, spread["mean"], ends, marker=marker, capsize=3, label=labels.get(name, name))
    axes.set(xlabel="Training images per class", ylabel="Accuracy on 240 images", ylim=(0.2, 1), xscale="log")
    axes.set_xticks(sorted(set(table["shots"])), map(str, sorted(set(table["shots"]))))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--figure", type=Path, help="A .png file for accuracy over training images per class.")
    parser.add_argument("--shots", default="5,25,50")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--recipes", default="linear_probe,knn,finetune,from_scratch")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.figure and arguments.json:
        draw(pd.read_json(arguments.json), arguments.figure)
        return
    if not arguments.weights or not arguments.root:
        parser.error("--weights and --root are needed")
    shots, seeds = ([int(part) for part in text.split(",")] for text in (arguments.shots, arguments.seeds))
    dataset, frames = ldl.Dataset.from_folder(arguments.root), []
    for name in arguments.recipes.split(","):
        spec = "cnn" if name == "from_scratch" else backbone(arguments.weights)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as store:
            bench = ldl.Benchmark(
                dataset, [spec], recipe=ldl.Recipe.preset(name, image_size=arguments.size), protocol="random",
                allow_leakage=True, shots=shots, seeds=seeds, baselines=[], store=store, save_models=False,
            )  # fmt: skip
            frame = bench.run(executor="in-process", show_progress=False)
        frame = frame[frame["tta"] == "none"]
        print(name, f"{time.perf_counter() - started:.0f} s", sorted(set(frame["message"]) - {""}), flush=True)
        frames.append(frame.assign(recipe=name))
        table = pd.concat(frames, ignore_index=True)
        if arguments.json:  # after each recipe, since the last ones take long
            arguments.json.write_text(table[FACTS].to_json(orient="records", indent=1) + "\n")
    groups = table.groupby(["recipe", "shots"], sort=False)[["accuracy", "loss"]].agg(["mean", "min", "max"])
    print(groups.round(3).to_string())


if __name__ == "__main__":
    main()
