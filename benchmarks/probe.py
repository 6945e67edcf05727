"""A head on a frozen backbone beside training it through the frozen net, which Keras's guide to transfer shows.

ResNet50 with random weights from a file (those of ImageNet would take as long), noise at 128 pixels, ten epochs. The
other way takes the same head, the same batches and the same optimizer, so that the predictions can be compared. And
fifteen heads, of five folds with three seeds each, on features that are computed once, beside one head.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from harness import Row, compared, in_turn

import leukemia_dl as ldl
from leukemia_dl.models.classifier import predict_logits, softmax
from leukemia_dl.training import FeatureCache, ModelCache, Recipe, Subset, fit
from leukemia_dl.training.backends import as_fit_input, prepare
from leukemia_dl.training.batches import Batches
from leukemia_dl.training.optimizer import build_loss, build_optimizer

EPOCHS = 10


def rows(short: bool) -> Iterable[Row]:
    import keras

    name, size, count, many, rounds = ("cnn", 32, 40, 40, 1) if short else ("resnet50", 128, 1600, 1600, 3)
    folds, seeds = (3, 2) if short else (5, 3)
    spec, device = ldl.get_backbone(name), prepare()
    random = np.random.default_rng(0)
    labels = np.arange(many) % 2
    # Something to learn: one class is brighter.
    images = (random.integers(0, 200, (many, size, size, 3)) + 50 * labels[:, None, None, None]).astype(np.uint8)
    with tempfile.TemporaryDirectory() as place:
        weights = Path(place) / "backbone.weights.h5"
        inputs = keras.Input((size, size, 3))
        keras.Model(inputs, spec.build(inputs, None)).save_weights(weights)
        recipe = Recipe(
            weights=str(weights), image_size=size, head_epochs=EPOCHS, epochs=0, dropout=0.0, batch_size=32,
            head_learning_rate=1e-2,
        )  # fmt: skip
        predicted: dict[str, np.ndarray] = {}
        shown = min(count, 300)  # images whose predictions are compared, which is not timed

        def ours() -> float:
            started = time.perf_counter()
            result = fit(spec, images[:count], labels[:count], 2, recipe)
            taken = time.perf_counter() - started
            predicted["ours"] = softmax(predict_logits(result.model, images[:shown], 32))
            return taken

        def through() -> float:
            started = time.perf_counter()
            model = ModelCache().get(spec, recipe, 2, 0, device).model
            for layer in model.layers:
                layer.trainable = layer.name == "logits"
            optimizer = build_optimizer(recipe, recipe.head_learning_rate, {})
            optimizer.build(model.trainable_variables)
            batches = Batches((images[:count], labels[:count]), 32, 0)
            optimizer.start(EPOCHS * batches.steps)
            model.compile(optimizer, build_loss(recipe, 2), jit_compile=False)
            data = as_fit_input(lambda: batches.stream(0), next(batches.stream()))
            model.fit(data, epochs=EPOCHS, steps_per_epoch=batches.steps, verbose=0)
            taken = time.perf_counter() - started
            predicted["through"] = softmax(predict_logits(model, images[:shown], 32))
            return taken

        taken = in_turn({"ours": ours, "through": through}, rounds, warm=0)
        apart = float(np.abs(predicted["ours"] - predicted["through"]).max())
        spread = float(np.ptp(predicted["ours"]))
        assert apart <= 1e-3, f"the predictions differ by {apart}"
        span = f"{predicted['ours'].min():.2f} to {predicted['ours'].max():.2f}"
        note = f"predictions, from {span}, differ by {apart:.1e} at most"
        assert spread > 0.1, "nothing was learned, so equal predictions say nothing"
        what = f"{name}, {size} px, {count} images, {EPOCHS} epochs of a head"
        found = [compared(what, taken["ours"], taken["through"], 1, "fits/s", 8.0, note)]

        parts = random.permutation(many) % folds

        def heads(folds: int, seeds: int) -> None:
            with tempfile.TemporaryDirectory() as folder:
                cache, models = FeatureCache(folder), ModelCache()
                for fold in range(folds):
                    train, test = np.flatnonzero(parts != fold), np.flatnonzero(parts == fold)
                    for seed in range(seeds):
                        shared = {"features": cache, "models": models}
                        result = fit(spec, Subset(images, train), labels[train], 2, recipe, seed=seed, **shared)
                        result.logits(Subset(images, test))

        taken = in_turn({"all": lambda: heads(folds, seeds), "one": lambda: heads(1, 1)}, rounds, warm=0)
        what = f"{name}, {size} px, {many} images: {folds} folds x {seeds} seeds beside one head"
        found.append(compared(what, taken["all"], taken["one"], 1, "runs/s", 0.5))
    return found
