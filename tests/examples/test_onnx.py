"""Encoders from ONNX files: nets of a few nodes beside numpy, exported Keras nets beside Keras."""

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

import leukemia_dl as ldl
from leukemia_dl import plugins
from leukemia_dl.models import encoders
from packages import installed

DATA = Path(os.environ.get("LEUKEMIA_DL_TEST_DATA", "../shared/data"), "efficientnet_lite0")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 9, 9, 3), dtype=np.uint8)
KERNEL = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)  # out, in, height, width
MEAN, STD = (120.0, 100.0, 80.0), (60.0, 50.0, 40.0)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    with installed("leukemia-dl-onnx", tmp_path_factory.mktemp("package")) as module:
        yield module


def feature_map(images=IMAGES):
    """Return relu(convolution) as (n, 4, 4, 4), channels last, by numpy alone."""
    scaled = (images - np.array(MEAN)) / np.array(STD)
    windows = sliding_window_view(scaled, (3, 3), axis=(1, 2))[:, ::2, ::2]
    return np.maximum(np.einsum("nhwcij,ocij->nhwo", windows, KERNEL), 0)


# What the file gives for a feature map (n, height, width, channels), and the features that the encoder makes of it.
FORMS = {
    "map": lambda maps: maps.mean(axis=(1, 2)),
    "tokens": lambda maps: maps.mean(axis=(1, 2)),
    "cls": lambda maps: maps[:, 0, 0],
    "vector": lambda maps: maps.mean(axis=(1, 2)),
}


def write(path, form="map", layout="nchw", batch="n", half=False, outputs=1):
    """Write a convolution with ReLU as an ONNX file."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    weights = [numpy_helper.from_array(KERNEL.astype(np.float16 if half else np.float32), "kernel")]
    nodes, last, nhwc = [], "pixels", layout == "nhwc"

    def add(kind, *more, **attributes):
        nonlocal last
        nodes.append(helper.make_node(kind, [last, *more], [f"x{len(nodes)}"], **attributes))
        last = f"x{len(nodes) - 1}"

    if nhwc:
        add("Transpose", perm=[0, 3, 1, 2])
    add("Conv", "kernel", strides=[2, 2])
    add("Relu")
    if form in ("tokens", "cls"):
        weights.append(numpy_helper.from_array(np.array([0, 4, -1]), "shape"))
        add("Reshape", "shape")
        add("Transpose", perm=[0, 2, 1])
    elif form == "vector":
        add("GlobalAveragePool")
        add("Flatten")
    elif nhwc:
        add("Transpose", perm=[0, 2, 3, 1])
    sides = [batch, 9, 9, 3] if nhwc else [batch, 3, 9, 9]
    taken = helper.make_tensor_value_info("pixels", kind, sides)
    ranks = {last: {"map": 4, "vector": 2}.get(form, 3), "x0": 4}
    made = [helper.make_tensor_value_info(name, kind, [None] * ranks[name]) for name in (last, "x0")[:outputs]]
    graph = helper.make_graph(nodes, "net", [taken], made, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def features(package, file, images=IMAGES, **settings):
    pytest.importorskip("onnxruntime")
    spec = package.encoder("mine", file, images.shape[1], MEAN, STD, **settings)
    return encoders.load_encoder(spec).predict_on_batch(images)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("form", FORMS)
def test_features_are_those_of_numpy(package, tmp_path, form, layout):
    pooling = "cls" if form == "cls" else "mean"
    found = features(package, write(tmp_path / "net.onnx", form, layout), layout=layout, pooling=pooling)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, FORMS[form](feature_map()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("fixed", "batch"), [("n", 2), ("n", 1), (2, 32), (1, 32), (8, 3)])
def test_batches_change_nothing(package, tmp_path, fixed, batch):
    file = write(tmp_path / "net.onnx", batch=fixed)
    expected = features(package, write(tmp_path / "free.onnx"), threads=1)
    np.testing.assert_allclose(features(package, file, batch=batch, threads=2), expected, rtol=0, atol=1e-6)


def test_half_precision(package, tmp_path):
    found = features(package, write(tmp_path / "net.onnx", half=True))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, FORMS["map"](feature_map()), rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    ("form", "settings", "says"),
    [
        ({}, {"layout": "nhwc"}, r"'pixels' is tensor\(float\) \['n', 3, 9, 9\]; image_size=9 and layout='nhwc'"),
        ({}, {"images": IMAGES[:, :8, :8]}, r"give float \(n, 3, 8, 8\)"),
        ({"outputs": 2}, {}, r"output must be one of \['x1', 'x0'\]. Received: output=None"),
        ({}, {"output": "gone"}, "output='gone'"),
        ({}, {"pooling": "cls"}, r"shape \(2, 4, 4, 4\) cannot be pooled by 'cls'"),
    ],
    ids=["layout", "size", "outputs", "output", "pooling"],
)
def test_a_model_that_does_not_fit_is_an_error_that_says_how(package, tmp_path, form, settings, says):
    with pytest.raises(ldl.errors.PluginError, match=says):
        features(package, write(tmp_path / "net.onnx", **form), **settings)


def test_one_of_two_outputs_is_chosen_by_name(package, tmp_path):
    file = write(tmp_path / "net.onnx", outputs=2)
    np.testing.assert_allclose(features(package, file, output="x1"), FORMS["map"](feature_map()), rtol=1e-4, atol=1e-4)
    assert features(package, file, output="x0").min() < 0  # before ReLU
    with pytest.raises(ValueError, match="layout is nchw or nhwc"):
        package.encoder("mine", file, layout="chw")
    with pytest.raises(ValueError, match="multiply by 255"):
        package.encoder("one", "one.onnx", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def test_the_identity_changes_with_the_file_and_with_each_setting(package, tmp_path):
    file, other = write(tmp_path / "net.onnx"), write(tmp_path / "other.onnx", form="vector")
    settings = [{}, {"mean": MEAN}, {"std": STD}, {"layout": "nhwc"}, {"output": "x1"}, {"pooling": "cls"}]
    specs = [package.encoder("mine", file, **changed) for changed in settings] + [package.encoder("mine", other)]
    assert len({spec.identity for spec in specs}) == len(specs)
    # Threads and batches change nothing.
    assert package.encoder("mine", file, threads=1, batch=2).identity == specs[0].identity


def test_a_table_of_encoders_is_read_from_a_file(package, tmp_path, monkeypatch):
    write(tmp_path / "net.onnx")
    table = f'[mine]\nfile = "net.onnx"\nimage_size = 9\nmean = {list(MEAN)}\nstd = {list(STD)}\ntitle = "Mine"\n'
    (tmp_path / "encoders.toml").write_text(table)
    monkeypatch.setenv(package.VARIABLE, str(tmp_path / "encoders.toml"))
    plugins.forget()
    spec = ldl.get_backbone("mine")
    assert (spec.title, spec.image_size) == ("Mine", 9)
    pytest.importorskip("onnxruntime")
    found = encoders.load_encoder(spec).predict_on_batch(IMAGES)
    np.testing.assert_allclose(found, FORMS["map"](feature_map()), rtol=1e-4, atol=1e-4)


def exported(net, file):
    for name in ("onnxruntime", "tf2onnx", "tensorflow"):
        pytest.importorskip(name)
    net.predict_on_batch(np.zeros((1, *net.input_shape[1:]), np.float32))  # Keras exports nets that were called
    net.export(file, format="onnx", verbose=False)
    return file


def test_an_exported_keras_net_has_the_features_of_keras(package, tmp_path):
    keras = pytest.importorskip("keras")
    inputs = keras.Input((64, 64, 3))
    net = keras.Model(inputs, ldl.get_backbone("cnn").build(inputs, None))
    images = RNG.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    scaled = (images - np.float32(127.5)) / np.float32(127.5)
    expected = np.asarray(net.predict_on_batch(scaled)).mean(axis=(1, 2))
    file = exported(net, tmp_path / "cnn.onnx")
    spec = package.encoder("mine", file, 64, (127.5,) * 3, (127.5,) * 3, "nhwc")
    np.testing.assert_allclose(encoders.load_encoder(spec).predict_on_batch(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_exported_efficientnet_lite_has_the_features_that_its_weights_are_known_by(package, tmp_path):
    keras = pytest.importorskip("keras")
    if not DATA.is_dir():
        pytest.skip(f"no weights in {DATA}")
    with installed("leukemia-dl-efficientnet-lite", tmp_path) as lite:
        inputs = keras.Input((224, 224, 3))
        net = keras.Model(inputs, lite.features(inputs))
        lite.load_weights(net, DATA / "weights.npz")
    file = exported(net, tmp_path / "lite.onnx")
    spec = package.encoder("lite", file, 224, (127,) * 3, (128,) * 3, "nhwc")
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    expected = np.load(DATA / "reference.npz")["pooled_features"]
    np.testing.assert_allclose(encoders.load_encoder(spec).predict_on_batch(images), expected, rtol=1e-4, atol=1e-4)


def test_a_head_is_trained_on_it_in_a_benchmark(package, tmp_path):
    pytest.importorskip("onnxruntime")
    spec = package.encoder("small_onnx", write(tmp_path / "net.onnx"), 9, MEAN, STD, parameters=KERNEL.size)
    dataset = ldl.Dataset.load("synthetic", root=tmp_path / "cells", subjects=12, images=60)
    recipe = ldl.Recipe.preset("linear_probe", image_size=9)
    frame = ldl.Benchmark(dataset, [spec], recipe=recipe, store=tmp_path / "store").run()
    assert set(frame["status"]) == {"ok"}, frame["error"].tolist()
    rows = frame[frame["backbone"] == "small_onnx"]
    assert len(rows) == frame["backbone"].value_counts().max()
    assert rows["parameters"].min() >= KERNEL.size + 4 * 2
