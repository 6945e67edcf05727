"""What only a GPU can show: `pytest -m gpu`, on whichever backend Keras has. Skipped where there is none."""

import dataclasses

import numpy as np
import pytest

import leukemia_dl as ldl
from discs import IMAGES, LABELS
from leukemia_dl.models.build import build_model, split_at_features
from leukemia_dl.models.classifier import predict_logits
from leukemia_dl.training import FeatureCache, ModelCache, Recipe, Subset, fit
from leukemia_dl.training.backends import prepare

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.gpu
CNN = ldl.get_backbone("cnn")
PLAIN = Recipe(image_size=32, epochs=4, batch_size=8, learning_rate=3e-3, precision="float32", dropout=0.0)
VALIDATION = (IMAGES[32:], LABELS[32:])


@pytest.fixture(scope="module", autouse=True)
def device():
    found = prepare()
    if found.kind != "gpu":
        pytest.skip(f"{found.backend} sees no GPU here")
    return found


def trained(recipe=PLAIN):
    return fit(CNN, IMAGES[:32], LABELS[:32], 2, recipe, validation=VALIDATION)


def test_a_net_learns_in_the_precision_that_auto_chooses(device):
    result = trained(dataclasses.replace(PLAIN, precision="auto", epochs=6))
    assert result.device == device
    assert result.model.get_layer("logits").dtype_policy.name == "float32"
    assert (result.logits(IMAGES[32:]).argmax(axis=1) == LABELS[32:]).mean() >= 0.9
    assert np.isfinite(result.history["val_loss"]).all()


def test_folds_and_seeds_share_a_net_and_features(device):
    models, cache = ModelCache(), FeatureCache()
    recipe = dataclasses.replace(PLAIN, epochs=0, head_epochs=20, head_learning_rate=1e-2)
    for seed in (0, 1):
        for rows in (np.arange(32), np.arange(24)):
            result = fit(
                CNN, Subset(IMAGES, rows), LABELS[rows], 2, recipe, seed=seed, models=models, features=cache
            )  # fmt: skip
            test = Subset(IMAGES, np.arange(32, 48))
            np.testing.assert_allclose(result.logits(test), predict_logits(result.model, test, 16), atol=1e-2)


def test_features_are_those_of_one_image_at_a_time(device):
    extractor, _ = split_at_features(build_model(ldl.get_backbone("resnet50"), 32, 2))
    whole = FeatureCache().read(extractor, IMAGES, device, 16)[:]
    parts = np.concatenate([FeatureCache().read(extractor, IMAGES[i : i + 1], device, 16)[:] for i in range(4)])
    np.testing.assert_allclose(parts, whole[:4], rtol=1e-2, atol=1e-3)


def test_memory_that_runs_out_is_an_error_that_names_the_batch():
    size = 224
    images = np.zeros((4096, size, size, 3), np.uint8)
    recipe = Recipe(image_size=size, epochs=1, batch_size=4096, precision="float32", symmetries=False)
    with pytest.raises(ldl.errors.OutOfMemoryError, match="batch_size=4096"):
        fit(ldl.get_backbone("xception"), images, np.arange(4096) % 2, 2, recipe)
