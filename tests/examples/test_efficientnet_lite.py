"""EfficientNet-Lite0 from an npz file: its arrays become the net's weights, or an error names those that do not fit."""

import os
from pathlib import Path

import numpy as np
import pytest

import leukemia_dl as ldl
from leukemia_dl import plugins
from leukemia_dl.errors import WeightsError
from leukemia_dl.testing import check_backbone
from packages import installed

NAME = "efficientnet_lite0"
DATA = Path(os.environ.get("LEUKEMIA_DL_TEST_DATA", "../shared/data"), NAME)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    with installed("leukemia-dl-efficientnet-lite", tmp_path_factory.mktemp("package")) as module:
        yield module


@pytest.fixture(scope="module")
def arrays(package):
    """An array for each weight, of random values, with the classifier that a file may hold too."""
    keras = pytest.importorskip("keras")
    inputs, rng = keras.Input((32, 32, 3)), np.random.default_rng(0)
    net = keras.Model(inputs, package.features(inputs))
    names = {f"{layer.name}/{weight.name}": weight.shape for layer in net.layers for weight in layer.weights}
    assert len(names) == 245
    names |= {"classifier/kernel": (1280, 1000), "classifier/bias": (1000,)}
    return {name: rng.uniform(0.1, 1, shape).astype(np.float32) for name, shape in names.items()}


def built(package, file):
    spec = package.backbone(file)
    return ldl.models.build_model(spec, 32, 2, weights=spec.weights[0])


def test_it_is_listed_with_weights_only_if_the_file_is_there(package, tmp_path, monkeypatch, caplog):
    file = tmp_path / "weights.npz"
    monkeypatch.setenv(package.VARIABLE, str(file))
    plugins.forget()
    assert ldl.get_backbone(NAME).weights == ()
    assert f"{file} is no file" in caplog.text
    file.write_bytes(b"")
    plugins.forget()
    assert ldl.get_backbone(NAME).weights == ("sha256-e3b0c44298fc1c14",)  # of an empty file
    monkeypatch.delenv(package.VARIABLE)
    plugins.forget()
    row = ldl.backbone_table().set_index("backbone").loc[NAME]
    assert (row["plugin"], row["version"], row["weights"]) == ("leukemia-dl-efficientnet-lite", "0.1.0", "")
    with pytest.raises(FileNotFoundError, match=r"gone\.npz is no file"):
        package.backbone("gone.npz")


def test_each_array_becomes_the_weight_of_its_name(package, arrays, tmp_path):
    np.savez(tmp_path / "weights.npz", **arrays)
    model = built(package, tmp_path / "weights.npz")
    assert model.get_layer("scaling").name == "scaling"
    found = {f"{layer.name}/{weight.name}": weight for layer in model.layers for weight in layer.weights}
    for name in set(arrays) - package.TOP:
        np.testing.assert_array_equal(np.asarray(found[name]), arrays[name])


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("bn1/gamma", None, r"1 arrays are missing and 0 unknown, such as \['bn1/gamma'\]"),
        ("bn2/gamma", np.ones(3, np.float32), r"0 arrays are missing and 1 unknown, such as \['bn2/gamma'\]"),
        ("conv_stem/kernel", np.ones((32, 3, 3, 3), np.float32), r"conv_stem/kernel must have \(3, 3, 3, 32\)"),
        ("bn1/beta", np.full(1280, np.nan, np.float32), "bn1/beta must have .* finite values"),
        ("bn1/beta", np.array([{}], dtype=object), "allow_pickle=False"),
    ],
    ids=["missing", "unknown", "shape", "nan", "pickled"],
)
def test_another_file_is_an_error_that_names_what_is_wrong(package, arrays, tmp_path, name, value, says):
    changed = {key: part for key, part in {**arrays, name: value}.items() if part is not None}
    np.savez(tmp_path / "weights.npz", **changed)
    with pytest.raises(WeightsError, match=says):
        built(package, tmp_path / "weights.npz")


def test_the_published_weights_give_the_features_that_they_are_known_by(package):
    """20.14: with the real weights, if they are here, to the reference's digits; the spec scales raw pixels."""
    pytest.importorskip("keras")
    if not DATA.is_dir():
        pytest.skip(f"no weights in {DATA}")
    spec = package.backbone(DATA / "weights.npz")
    model = ldl.models.build_model(spec, 224, 2, weights=spec.weights[0])
    assert model.count_params() == spec.parameters + 1280 * 2 + 2
    features, _ = ldl.models.build.split_at_features(model)
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    expected = np.load(DATA / "reference.npz")["pooled_features"]
    np.testing.assert_allclose(np.asarray(features.predict_on_batch(images)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_it_holds_every_check(package):
    pytest.importorskip("keras")
    check_backbone(package.backbone())
