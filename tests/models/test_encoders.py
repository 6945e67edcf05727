import hashlib

import numpy as np
import pytest

import leukemia_dl as ldl
from leukemia_dl.errors import PluginError, WeightsError
from leukemia_dl.models.backbones import source_version
from leukemia_dl.models.encoders import load_encoder

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


def means(images):
    return images.mean(axis=(1, 2)).astype(np.float32)


def spec(encode=means, **changes):
    return ldl.EncoderSpec(**({"name": "means", "load": lambda: encode, "image_size": 8} | changes))


@pytest.mark.parametrize(
    ("field", "value"), [("name", "Big Name"), ("load", "function"), ("image_size", 0), ("image_size", "large")]
)
def test_a_field_that_cannot_be_used_is_named(field, value):
    with pytest.raises(PluginError, match=f"{field} must be .*Received: {field}={value!r}"):
        spec(**{field: value})


def test_its_identity_is_its_version_and_the_checksum_of_its_weights(tmp_path):
    file = tmp_path / "weights.bin"
    file.write_bytes(b"weights")
    # sha256sum of the seven bytes
    checksum = "sha256:" + hashlib.sha256(b"weights").hexdigest()
    assert spec(weights=file, version="1.2").identity == f"1.2 {checksum}"
    assert spec(weights=str(file)).identity == checksum
    assert spec(version="1.2").identity == "1.2"
    assert spec().identity == "own"
    with pytest.raises(WeightsError, match=r"weights of means are not there: .*none\.bin is no file"):
        _ = spec(weights=tmp_path / "none.bin").identity


def test_another_file_of_weights_is_another_encoder_in_the_same_process_too(tmp_path):
    def load():
        factor = np.load(tmp_path / "w.npy")
        return lambda images: means(images) * factor

    names = []
    for factor in (1, 2):
        np.save(tmp_path / "w.npy", np.float32(factor))
        one = spec(load=load, weights=tmp_path / "w.npy")
        names.append(one.identity)
        np.testing.assert_array_equal(load_encoder(one).predict_on_batch(IMAGES), means(IMAGES) * factor)
    assert len(set(names)) == 2


def test_what_its_function_holds_is_part_of_its_version():
    def made(*held):
        return spec(load=lambda: lambda images: (means(images), held)[0])

    weights = np.zeros((64, 32))
    changed = weights.copy()
    changed[30, 10] = 1e-9
    kinds = [(True, False), (False, True), (weights,), (changed,), ({"w": weights},), ({"w": changed},), ()]
    versions = [source_version(made(*held)) for held in kinds]
    assert len(set(versions)) == len(kinds)
    assert versions == [source_version(made(*held)) for held in kinds]


def test_it_is_loaded_once_and_its_features_are_its_functions():
    loads = []

    def load():
        loads.append(1)
        return means

    one = spec(load=load)
    for _ in range(3):
        encoder = load_encoder(one)
    assert loads == [1]
    assert encoder.output_shape == (None, 3)
    np.testing.assert_array_equal(encoder.predict_on_batch(IMAGES), means(IMAGES))


@pytest.mark.parametrize(
    ("encode", "problem"),
    [
        (
            lambda images: means(images).astype(float),
            r"features \(2, 3\)\. Received: float64 \(2, 3\)",
        ),
        (
            lambda images: images.astype(np.float32),
            r"features \(2, d\)\. Received: float32 \(2, 8, 8, 3\)",
        ),
        (lambda images: means(images)[:1], r"features \(2, 3\)\. Received: float32 \(1, 3\)"),
        (lambda images: means(images).tolist(), r"must return float32 features \(2, d\)\. Received: list"),
        (lambda images: means(images) * np.nan, "gave NaN or infinite features for 2 of 2 images"),
        (lambda images: 1 / 0, "raised ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_no_matrix_of_features_is_an_error(encode, problem):
    with pytest.raises(PluginError, match=problem):
        load_encoder(spec(encode))


def test_features_of_other_images_are_checked_too():
    encoder = load_encoder(
        spec(lambda images: np.where(images[:, 0, 0, :1] == images[:, 0, 1, :1], np.inf, 1).astype(np.float32))
    )
    with pytest.raises(PluginError, match="infinite features for 1 of 1 images"):
        encoder.predict_on_batch(np.full((1, 8, 8, 3), 9, np.uint8))


def test_it_is_registered_beside_backbones(monkeypatch):
    one = ldl.register_backbone(spec(version="1", title="Means"))
    assert ldl.get_backbone("means") is one
    row = ldl.backbone_table().set_index("backbone").loc["means"]
    assert row[["title", "native_size", "min_size", "scaling", "plugin"]].tolist() == [
        "Means",
        8,
        8,
        "own",
        "this process",
    ]
    assert row["version"].startswith("source ")
    with pytest.raises(PluginError, match="'cnn' is provided by leukemia-dl"):
        ldl.register_backbone(spec(name="cnn"))
