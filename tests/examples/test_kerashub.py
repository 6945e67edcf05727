"""Backbones of keras-hub beside keras-hub itself: small configurations with random weights, saved as presets."""

import subprocess
import sys

import numpy as np
import pytest

import leukemia_dl as ldl
from leukemia_dl.testing import check_backbone
from packages import installed

SIZE = 64
SCALE, OFFSET = [1 / 50, 1 / 60, 1 / 70], [-2.0, -1.5, -1.0]
SMALL = {
    "dinov2": ("DINOV2", {"num_layers": 2, "hidden_dim": 16, "num_heads": 2, "intermediate_dim": 32, "patch_size": 8,
                          "position_embedding_shape": (SIZE, SIZE, 3)}),
    "vit": ("ViT", {"num_layers": 2, "hidden_dim": 16, "num_heads": 2, "mlp_dim": 32, "patch_size": 8}),
    "swin": ("SwinTransformer", {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}),
}  # fmt: skip
POOLING = {"dinov2": "cls", "vit": "cls", "swin": "mean"}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    with installed("leukemia-dl-kerashub", tmp_path_factory.mktemp("package")) as module:
        yield module


@pytest.fixture(scope="module", params=SMALL)
def small(request, package, tmp_path_factory):
    """Return a small net of keras-hub, and the backbone of the preset that it was saved as."""
    hub = pytest.importorskip("keras_hub")
    folder, (kind, settings) = tmp_path_factory.mktemp(request.param), SMALL[request.param]
    net = getattr(hub.models, f"{kind}Backbone")(image_shape=(SIZE, SIZE, 3), **settings)
    net.save_to_preset(folder)
    converter = getattr(hub.layers, f"{kind}ImageConverter")
    converter(image_size=(SIZE, SIZE), scale=SCALE, offset=OFFSET).save_to_preset(folder)
    return net, package.backbone(request.param, str(folder), SIZE, pooling=POOLING[request.param])


def test_presets_are_listed_without_keras_hub(package):
    table = ldl.backbone_table().set_index("backbone")
    names = [name for name, *_ in package.PRESETS]
    assert set(table.loc[names, "plugin"]) == {"leukemia-dl-kerashub"}
    assert set(table.loc[names, "weights"]) == {"preset"}
    assert ldl.get_backbone("dinov2_base").pooling == "cls"
    program = "import sys, leukemia_dl_kerashub; sys.exit('keras_hub' in sys.modules)"
    path = str(sys.modules["leukemia_dl_kerashub"].__file__).rpartition("leukemia_dl_kerashub")[0]
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {path!r}); {program}"], check=True)


def test_presets_are_those_of_keras_hub(package):
    hub = pytest.importorskip("keras_hub")
    for _, preset, _, _ in package.PRESETS:
        assert preset in hub.models.Backbone.presets


def test_features_are_those_of_keras_hub_with_the_scaling_of_the_preset(small):
    net, spec = small
    model = ldl.models.build_model(spec, SIZE, 2, weights="preset")
    features, _ = ldl.models.build.split_at_features(model)
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    tokens = np.asarray(net((images * np.array(SCALE) + np.array(OFFSET)).astype(np.float32)))
    expected = tokens[:, 0] if spec.pooling == "cls" else tokens.mean(axis=1)
    np.testing.assert_allclose(np.asarray(features.predict_on_batch(images)), expected, rtol=1e-4, atol=1e-4)


def test_images_of_another_size_are_resized_inside_the_net(small):
    net, spec = small
    model = ldl.models.build_model(spec, 40, 2, weights="preset")
    assert model.get_layer("resizing").output.shape == (None, SIZE, SIZE, 3)
    assert model.count_params() == net.count_params() + 16 * 2 + 2


def test_a_saved_net_loads_in_a_new_process(small, tmp_path):
    _, spec = small
    model = ldl.models.build_model(spec, SIZE, 2)
    file = ldl.Classifier(model, ("one", "other"), ldl.Pipeline.default(SIZE)).save(tmp_path / "net.keras")
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    program = (
        "import numpy as np, leukemia_dl as ldl; model = ldl.load_classifier('net.keras').model;"
        "np.save('logits.npy', model.predict_on_batch(np.load('images.npy')))"
    )
    assert file.name == "net.keras"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    expected = np.asarray(model.predict_on_batch(images))
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_it_holds_every_check(small):
    check_backbone(small[1])
