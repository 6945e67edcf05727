"""Encoders of timm beside timm itself, with random weights: nothing is downloaded."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import leukemia_dl as ldl
from leukemia_dl import plugins
from leukemia_dl.models import encoders
from packages import installed

SIZE = 160  # of timm's models for tests
IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    if "tensorflow" in sys.modules:
        sys.modules.setdefault("triton", None)  # as the package does, since these tests import timm themselves
    with installed("leukemia-dl-timm", tmp_path_factory.mktemp("package")) as module:
        yield module


def net(name, seed=1, **settings):
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    torch.manual_seed(seed)
    return timm.create_model(name, pretrained=False, **settings).eval()


def expected(model, images=IMAGES):
    """Return timm's features of images that are scaled by its own configuration, in numpy."""
    import torch

    mean, std = (np.array(model.pretrained_cfg[key]) for key in ("mean", "std"))
    pixels = ((images / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    with torch.no_grad():
        found = model.forward_features(torch.from_numpy(np.ascontiguousarray(pixels)))
        return model.forward_head(found, pre_logits=True).numpy()


def features(spec, images=IMAGES):
    return encoders.load_encoder(spec).predict_on_batch(images)


def test_encoders_are_listed_without_torch(package, tmp_path, monkeypatch):
    (tmp_path / "encoders.toml").write_text('[mine]\nmodel = "test_vit"\nfile = "vit.pth"\nimage_size = 160\n')
    monkeypatch.setenv(package.VARIABLE, str(tmp_path / "encoders.toml"))
    plugins.forget()
    row = ldl.backbone_table().set_index("backbone").loc["mine"]
    assert (row["plugin"], row["version"], row["title"]) == ("leukemia-dl-timm", "0.1.0", "test_vit")
    assert ldl.get_backbone("mine").weights == str(tmp_path / "vit.pth")
    spec = package.dinobloom("bloom.pth", "S")
    assert (spec.name, spec.image_size, spec.parameters) == ("dinobloom_s", 224, 21_628_800)
    assert "entry=teacher prefix=backbone." in spec.version
    with pytest.raises(ldl.errors.WeightsError, match=r"bloom\.pth is no file"):
        _ = spec.identity
    with pytest.raises(ValueError, match=r"pass file=\.\.\. or pretrained=True"):
        package.encoder("mine", "test_vit", "vit.pth", pretrained=True)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_features_are_those_of_timm_with_the_weights_of_the_file(package, tmp_path, name, suffix):
    model, file = net(name), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        pytest.importorskip("torch").save({"state_dict": model.state_dict()}, file)
    else:
        pytest.importorskip("safetensors.torch").save_file(model.state_dict(), file)
    spec = package.encoder("mine", name, file, SIZE, batch=2)
    np.testing.assert_allclose(features(spec), expected(model), rtol=1e-4, atol=1e-4)


def test_random_weights_are_those_of_seed_0_and_the_state_of_torch_stays(package):
    torch = pytest.importorskip("torch")
    model = net("test_vit", seed=0, num_classes=0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = features(package.encoder("mine", "test_vit", image_size=SIZE))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_allclose(found, expected(model), rtol=1e-4, atol=1e-4)


def test_pooling_and_another_size(package):
    model = net("test_vit", seed=0, img_size=96, global_pool="avg", num_classes=0)
    spec = package.encoder("mine", "test_vit", image_size=96, pooling="avg")
    images = IMAGES[:, :96, :96]
    np.testing.assert_allclose(features(spec, images), expected(model, images), rtol=1e-4, atol=1e-4)
    assert spec.identity != package.encoder("mine", "test_vit", image_size=96).identity


def test_dinobloom_reads_the_form_that_its_authors_code_reads(package, tmp_path):
    """Random weights in that form; the real ones are not here."""
    model = net("vit_small_patch14_dinov2", img_size=224, num_classes=0)
    torch = pytest.importorskip("torch")
    weights = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    weights |= {"backbone.mask_token": torch.zeros(1, 384), "dino_head.mlp.0.weight": torch.ones(2, 384)}
    torch.save({"teacher": weights}, tmp_path / "bloom.pth")
    spec = package.dinobloom(tmp_path / "bloom.pth", "s")
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    found = features(spec, images)
    assert found.shape == (2, 384)
    assert sum(value.numel() for value in model.state_dict().values()) == spec.parameters
    np.testing.assert_allclose(found, expected(model, images), rtol=1e-4, atol=1e-4)


def test_torch_may_come_after_tensorflow(package):
    """In a process of its own: where triton is loaded after TensorFlow, the process crashes."""
    pytest.importorskip("timm")
    pytest.importorskip("tensorflow")
    program = (
        f"import sys; sys.path.insert(0, {str(Path(package.__file__).parent)!r}); import tensorflow, numpy as np;"
        "import leukemia_dl_timm as package; encode = package.encoder('mine', 'test_vit', image_size=160).load();"
        "print(encode(np.zeros((2, 160, 160, 3), np.uint8)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "(2, 64)", done.stderr[-2000:]


def missing(weights):
    del weights["norm.weight"]
    return weights


@pytest.mark.parametrize(
    ("change", "settings", "says"),
    [
        (missing, {}, "norm.weight"),
        (dict, {"entry": "teacher"}, "has no entry 'teacher'"),
        (dict, {"prefix": "backbone."}, "begins with 'backbone.'"),
        (lambda weights: {**weights, "more": weights["norm.weight"]}, {}, "more"),
        (lambda weights: {**weights, "code": print}, {}, "[Ww]eights.only"),
    ],
    ids=["missing", "entry", "prefix", "unknown", "code"],
)
def test_a_file_that_does_not_fit_is_an_error(package, tmp_path, change, settings, says):
    weights = change(dict(net("test_vit").state_dict()))
    pytest.importorskip("torch").save(weights, tmp_path / "vit.pth")
    with pytest.raises(ldl.errors.PluginError, match=says):
        features(package.encoder("mine", "test_vit", tmp_path / "vit.pth", SIZE, **settings))
