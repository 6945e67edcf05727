"""Training and inference on a GPU: ours beside Keras's `fit` on numpy arrays and beside a PyTorch loop.

    python benchmarks/gpu.py           # every net, 224 pixels and its own size, on Keras with JAX
    python benchmarks/gpu.py --nets resnet50 --sizes 224 --batches 256,512
    python benchmarks/gpu.py --dry     # smallest sizes on a CPU: whether it runs at all

Each net and size has a process of its own for Keras (KERAS_BACKEND, jax unless it is set; TensorFlow may be missing)
and one for PyTorch, where it and torchvision are installed: a channels_last net in bfloat16, compiled by torch.compile,
with its images on the device. Epochs of ours and of `fit` are timed in turn. Batches are swept; one that does not fit
into memory says so. The table has the best batch of each; the JSON file, `results/gpu.json`, all of them.

Limits are those of one NVIDIA H200 with 790 TFLOP/s in bfloat16 and 4.3 TB/s, both measured: the lower of what the
arithmetic and what the traffic of unfused layers allow.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, Stepwise, environment, in_turn

NETS = ("vgg16", "resnet50", "inception_v3", "xception", "cnn")
NATIVE = {"vgg16": 224, "resnet50": 224, "inception_v3": 299, "xception": 299, "cnn": 128}
LIMITS = {("vgg16", 224): 8_580, ("resnet50", 224): 12_900, ("inception_v3", 299): 13_100, ("xception", 299): 5_280}
RECORD = {("resnet50", 224): 7_153}  # MLPerf Training v4.0, one of eight NVIDIA H100
_TORCHVISION = {"vgg16": "vgg16", "resnet50": "resnet50", "inception_v3": "inception_v3"}


def images_for(batch: int, size: int, dry: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return noise: as many images as an epoch of some seconds takes, in whole batches."""
    count = 4 * batch if dry else max(4096 // batch, 4) * batch
    random = np.random.default_rng(0)
    images = np.empty((count, size, size, 3), np.uint8)
    for start in range(0, count, 256):
        part = images[start : start + 256]
        part[...] = random.integers(0, 256, part.shape, dtype=np.uint8)
    return images, np.arange(count) % 2


def keras_child(net: str, size: int, batches: list[int], dry: bool) -> Iterator[dict[str, Any]]:
    import keras

    import leukemia_dl as ldl
    from leukemia_dl.models.build import build_model
    from leukemia_dl.models.classifier import predict_logits
    from leukemia_dl.training import Recipe, fit
    from leukemia_dl.training.backends import prepare

    device = prepare()
    spec, rounds = ldl.get_backbone(net), 1 if dry else 5
    yield {"device": device.name, "kind": device.kind, "precision": device.dtype_policy, "backend": device.backend}
    for batch in batches:
        images, labels = images_for(batch, size, dry)
        count = len(images)
        recipe = Recipe(image_size=size, epochs=rounds + 3, batch_size=batch, symmetries=False, dropout=0.0)
        trained: list[Any] = []

        def ours(pause: Callable[[float], None], recipe=recipe, images=images, labels=labels, t=trained) -> None:
            t.append(fit(spec, images, labels, 2, recipe, on_epoch=lambda _, row: pause(row["seconds"])).model)

        def plain(pause: Callable[[float], None], images=images, labels=labels, batch=batch) -> None:
            class Clock(keras.callbacks.Callback):
                def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                    self.started = time.perf_counter()

                def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                    pause(time.perf_counter() - self.started)

            model = build_model(spec, size, 2, dtype_policy=device.dtype_policy)
            model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
            model.fit(images, labels, batch_size=batch, epochs=rounds + 2, verbose=0, callbacks=[Clock()])

        try:
            one, other = Stepwise(ours), Stepwise(plain)
            taken = in_turn({"ours": one, "fit": other}, rounds)
            one.finish(), other.finish()
            rates = {way: count / float(np.median(seconds)) for way, seconds in taken.items()}
            yield {"what": "training", "batch": batch, **rates}
            model = trained[0]
            ways = {
                "ours": lambda m=model, i=images, b=batch: predict_logits(m, i, b),
                "fit": lambda m=model, i=images, b=batch: m.predict(i, batch_size=b, verbose=0),
            }
            taken = in_turn(ways, rounds)
            rates = {way: count / float(np.median(seconds)) for way, seconds in taken.items()}
            yield {"what": "inference", "batch": batch, **rates}
        except Exception as error:
            if not any(sign in str(error) for sign in ("RESOURCE_EXHAUSTED", "out of memory", "ran out")):
                raise
            yield {"what": "training", "batch": batch, "error": "out of memory"}


def torch_child(net: str, size: int, batches: list[int], dry: bool) -> Iterator[dict[str, Any]]:
    import torch
    import torchvision

    on_gpu = torch.cuda.is_available()
    where = torch.device("cuda" if on_gpu else "cpu")
    torch.backends.cudnn.benchmark = True
    for batch in batches:
        images, labels = images_for(batch, size, dry)
        steps, rounds = len(images) // batch, 1 if dry else 5
        try:
            extra = {"aux_logits": False, "init_weights": False} if net == "inception_v3" else {}
            model = getattr(torchvision.models, _TORCHVISION[net])(num_classes=2, **extra)
            model = model.to(where, memory_format=torch.channels_last)
            compiled = model if dry else torch.compile(model)
            optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=on_gpu)
            x = torch.from_numpy(images).permute(0, 3, 1, 2).to(where)
            y = torch.from_numpy(labels).to(where)

            def pixels(rows: Any, x=x) -> Any:
                return (x[rows].float() / 127.5 - 1).to(memory_format=torch.channels_last)

            def epoch(model=model, compiled=compiled, optimizer=optimizer, y=y, x=x, batch=batch, steps=steps) -> None:
                model.train()
                order = torch.randperm(len(x), device=where)
                for step in range(steps):
                    rows = order[step * batch : (step + 1) * batch]
                    optimizer.zero_grad(set_to_none=True)
                    with torch.autocast(where.type, torch.bfloat16, enabled=on_gpu):
                        loss = torch.nn.functional.cross_entropy(compiled(pixels(rows)), y[rows])
                    loss.backward()
                    optimizer.step()
                loss.item()

            def predict(model=model, compiled=compiled, x=x, batch=batch, steps=steps) -> None:
                model.eval()
                with torch.inference_mode(), torch.autocast(where.type, torch.bfloat16, enabled=on_gpu):
                    parts = [compiled(pixels(slice(s * batch, (s + 1) * batch))) for s in range(steps)]
                torch.cat(parts).float().cpu()

            for what, way in (("training", epoch), ("inference", predict)):
                seconds = in_turn({"torch": way}, rounds)["torch"]
                yield {"what": what, "batch": batch, "torch": len(images) / float(np.median(seconds))}
        except torch.cuda.OutOfMemoryError:
            yield {"what": "training", "batch": batch, "error": "out of memory"}
        finally:
            model = compiled = optimizer = x = y = None
            if on_gpu:
                torch.cuda.empty_cache()


def child(way: str, net: str, size: int, batches: list[int], dry: bool) -> list[dict[str, Any]]:
    """Run one net at one size in a process of its own, and return what it said."""
    environ = {**os.environ, "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", "TF_CPP_MIN_LOG_LEVEL": "2"}
    environ.setdefault("KERAS_BACKEND", "jax")
    asked = json.dumps([way, net, size, batches, dry])
    done = subprocess.run([sys.executable, __file__, "--child", asked], capture_output=True, text=True, env=environ)
    said = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("said: ")]
    if done.returncode:
        said.append({"what": "training", "error": (done.stderr.strip().splitlines() or ["?"])[-1][:300]})
    return said


def best(said: list[dict[str, Any]], what: str, way: str) -> tuple[float, int] | None:
    found = [(row[way], row["batch"]) for row in said if row.get("what") == what and way in row]
    return max(found) if found else None


def table(results: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"{'net':<13}{'size':>5} {'':<10}{'ours':>8} {'batch':>6} {'fit':>8} {'torch':>8} {'x fit':>6} {'limit':>7} "
        f"{'share':>6}"
    ]
    for result in results:
        net, size = result["net"], result["size"]
        for what in ("training", "inference"):
            ours, fit, torch = (best(result["said"], what, way) for way in ("ours", "fit", "torch"))
            if ours is None:
                errors = [row["error"] for row in result["said"] if "error" in row]
                lines.append(f"{net:<13}{size:>5} {what:<10}{errors[0] if errors else 'not measured'}")
                continue
            limit = LIMITS.get((net, size)) if what == "training" else None
            lines.append(
                f"{net:<13}{size:>5} {what:<10}{ours[0]:>8,.0f} {ours[1]:>6} {fit[0] if fit else 0:>8,.0f} "
                f"{f'{torch[0]:,.0f}' if torch else '-':>8} {ours[0] / fit[0] if fit else 0:>6.2f} "
                f"{f'{limit:,}' if limit else '-':>7} {f'{ours[0] / limit:.2f}' if limit else '-':>6}"
            )
            if what == "training" and (net, size) in RECORD:
                lines.append(
                    f"{'':<18} beside {RECORD[net, size]:,} images/s, the record: {ours[0] / RECORD[net, size]:.2f}"
                )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--sizes", default="224,native")
    parser.add_argument("--batches", default="64,128,256,512")
    parser.add_argument("--dry", action="store_true", help="a CPU is enough: whether it runs, not how fast")
    parser.add_argument("--results", type=Path, help=f"the JSON file; {RESULTS / 'gpu.json'} unless --dry")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, net, size, batches, dry = json.loads(options.child)
        for row in (keras_child if way == "keras" else torch_child)(net, size, batches, dry):
            print("said:", json.dumps(row), flush=True)
        return 0
    nets = ["cnn"] if options.dry else options.nets.split(",")
    batches = [8] if options.dry else [int(batch) for batch in options.batches.split(",")]
    results = []
    for net in nets:
        sizes = (
            [32]
            if options.dry
            else [NATIVE[net] if size == "native" else int(size) for size in options.sizes.split(",")]
        )
        for size in sorted(set(sizes)):
            said = child("keras", net, size, batches, options.dry)
            if net in _TORCHVISION and util.find_spec("torchvision"):
                said += child("torch", net, size, batches, options.dry)
            results.append({"net": net, "size": size, "said": said})
            print("\n".join(table(results[-1:])), flush=True)
    lines = table(results)
    print("\n" + "\n".join(lines))
    place = options.results or (None if options.dry else RESULTS / "gpu.json")
    if place is not None:
        said = {
            "benchmark": "gpu",
            "dry": options.dry,
            "environment": environment(),
            "table": lines,
            "results": results,
        }
        place.write_text(json.dumps(said, indent=1) + "\n")
    return sum("error" in row and row["error"] != "out of memory" for result in results for row in result["said"])


if __name__ == "__main__":
    sys.exit(main())
