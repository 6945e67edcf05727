"""Exported nets: equal probabilities in every form that is installed here, and errors that say what is missing."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

import command
import leukemia_dl as ldl
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.models import exported
from leukemia_dl.preprocess import Pipeline

RNG = np.random.default_rng(1)
PIXELS = RNG.integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
FILES = {"onnx": "net.onnx", "openvino": "net.xml", "litert": "net.tflite", "saved_model": "net"}
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="exports are written on TensorFlow")


@pytest.fixture(scope="module")
def classifier():
    keras.utils.set_random_seed(3)
    spec = ldl.get_backbone("cnn")
    net = ldl.models.build_model(spec, 32, 3)
    return ldl.Classifier(net, ("a", "b", "c"), Pipeline.default(32), {"digest": "d"}, 1.8)


def probabilities(one):
    return one.predict(PIXELS, show_progress=False).filter(like="probability_").to_numpy()


@pytest.mark.parametrize("form", FILES)
def test_an_exported_net_gives_the_same_probabilities(classifier, tmp_path, form):
    packages = {"onnx": "onnxruntime", "litert": "ai_edge_litert", "saved_model": "tensorflow"}
    pytest.importorskip(packages.get(form, form))
    path = classifier.export(tmp_path / "folder" / FILES[form])
    again = ldl.load_classifier(path)
    assert (again.class_names, again.temperature, again.pipeline) == (("a", "b", "c"), 1.8, classifier.pipeline)
    np.testing.assert_allclose(probabilities(again), probabilities(classifier), atol=1e-4)
    np.testing.assert_allclose(
        again.predict(PIXELS, calibrated=False).filter(like="probability_"),
        classifier.predict(PIXELS, calibrated=False).filter(like="probability_"),
        atol=1e-4,
    )
    settings = json.loads(exported.settings_file(path).read_text())
    assert settings["form"] == form
    assert 0 <= settings["largest_difference"] <= 1e-4
    assert settings["provenance"] == {"digest": "d"}


@pytest.mark.parametrize("scaling", ["caffe", "torch", ((100, 90, 80), (50, 40, 30)), "unit", "none"])
def test_the_scaling_of_a_net_is_exported_with_it(tmp_path, scaling):
    pytest.importorskip("onnxruntime")
    spec = ldl.BackboneSpec(name="s", build=patches, scaling=scaling, native_size=32, min_size=32)
    keras.utils.set_random_seed(0)
    one = ldl.Classifier(ldl.models.build_model(spec, 32, 2), ("a", "b"), Pipeline.default(32))
    np.testing.assert_allclose(
        probabilities(ldl.load_classifier(one.export(tmp_path / "n.onnx"))), probabilities(one), atol=1e-4
    )


def patches(inputs, weights):
    return keras.layers.Conv2D(4, 8, strides=8)(inputs)


def test_a_net_that_differs_is_not_written(classifier, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    runner = exported._runner
    monkeypatch.setattr(exported, "_runner", lambda *given: lambda images: runner(*given)(images) + 2e-4)
    with pytest.raises(DataError, match=r"differ by 0\.0002 in a probability"):
        classifier.export(tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_net_whose_probabilities_are_0_and_1_is_compared_by_its_logits(classifier, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    inputs = keras.Input((32, 32, 3))
    sure = keras.layers.Dense(2, kernel_initializer="zeros", bias_initializer=lambda *_, **__: np.array([60.0, 0.0]))
    net = keras.Model(inputs, sure(keras.layers.GlobalAveragePooling2D()(inputs)))
    one = ldl.Classifier(net, ("a", "b"), Pipeline.default(32))
    assert one.predict(PIXELS)["probability_a"].min() == 1
    runner = exported._runner
    # Another logit, which changes no probability by more than 1e-20.
    monkeypatch.setattr(exported, "_runner", lambda *given: lambda images: runner(*given)(images) * [1, 50])
    with pytest.raises(DataError, match="or in logits"):
        one.export(tmp_path / "net.onnx")
    monkeypatch.setattr(exported, "_runner", runner)
    assert one.export(tmp_path / "net.onnx").is_file()


def test_a_folder_of_other_files_is_not_written_into(classifier, tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(SettingsError, match="is there and is no SavedModel"):
        classifier.export(tmp_path / "runs")
    # A folder beside settings of its name is no exported net either.
    (tmp_path / "runs.json").write_text("{}")
    with pytest.raises(DataError, match="There is no model"):
        ldl.load_classifier(tmp_path / "runs")


def test_the_command_exports_and_predicts_without_tensorflow(classifier, tmp_path, write_image):
    pytest.importorskip("onnxruntime")
    classifier.save(tmp_path / "model.keras")
    write_image(tmp_path / "cell.png")
    said = command.run("export", tmp_path / "model.keras", tmp_path / "net.onnx").stdout
    assert f"Exported: {tmp_path / 'net.onnx'}" in said
    code = (
        "import sys\nfor name in ('keras', 'tensorflow'): sys.modules[name] = None\n"
        "sys.argv = ['leukemia-dl', 'predict', *sys.argv[1:]]\nfrom leukemia_dl.cli import main\nmain()"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "net.onnx"), str(tmp_path / "cell.png")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    header, row = done.stdout.splitlines()
    expected = classifier.predict(tmp_path / "cell.png").iloc[0]
    found = dict(zip(header.split(","), row.split(","), strict=True))
    assert found["predicted"] == expected["predicted"]
    for name in ("a", "b", "c"):
        assert float(found[f"probability_{name}"]) == pytest.approx(expected[f"probability_{name}"], abs=1e-4)


def test_an_exported_net_is_not_saved_for_keras(classifier, tmp_path):
    pytest.importorskip("onnxruntime")
    exported_net = ldl.load_classifier(classifier.export(tmp_path / "net.onnx"))
    with pytest.raises(SettingsError, match=r"A Keras net is saved as a \.keras file\. Received: exported"):
        exported_net.save(tmp_path / "net.keras")


def test_the_command_names_the_file_by_the_form(classifier, tmp_path):
    pytest.importorskip("onnxruntime")
    model = classifier.save(tmp_path / "store" / "model.keras")
    (tmp_path / "here").mkdir()
    said = command.run("export", model, "--to", "onnx", cwd=tmp_path / "here").stdout
    assert "Exported: model.onnx" in said
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["model.onnx", "model.onnx.json"]
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["model.keras"]
    refused = command.run("export", model, "--to", "torch", cwd=tmp_path / "here")
    assert refused.returncode == 1
    assert "to must be one of 'onnx', 'openvino', 'litert', 'saved_model'" in refused.stderr


def test_another_ending_or_a_missing_package_is_named(classifier, tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match=r"ends in \.onnx, \.xml, \.tflite, or in nothing .* Received: 'net\.h5'"):
        classifier.export(tmp_path / "net.h5")
    with pytest.raises(SettingsError, match="form must be one of 'onnx', 'openvino', 'litert', 'saved_model'"):
        classifier.export(tmp_path / "net.onnx", "torch")
    with pytest.raises(SettingsError, match=r"A net as onnx is \.onnx\. Received: .*net\.xml"):
        classifier.export(tmp_path / "net.xml", "onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SettingsError, match=r"onnxruntime: pip install 'leukemia-dl\[export\]'"):
        classifier.export(tmp_path / "net.onnx")


GOOD = {"format": 3, "form": "onnx", "image_size": 32, "class_names": ["a", "b"], "temperature": 1}
GOOD |= {"pipeline": {"steps": []}, "provenance": {}}
ODD = [
    ("image_size", "x", "invalid literal"), ("class_names", 3, "not iterable"), ("temperature", "1", "temperature"),
    ("pipeline", 7, "A pipeline"), ("provenance", 7, "not iterable"), ("format", 4, "update leukemia-dl"),
]  # fmt: skip
ODD = [(json.dumps(GOOD | {key: value}), says) for key, value, says in ODD] + [
    ("{", "property name"),
    ("[]", "indices"),
]


@pytest.mark.parametrize(("content", "says"), ODD)
def test_damaged_settings_are_one_error(tmp_path, content, says):
    (tmp_path / "net.onnx").write_bytes(b"x")
    (tmp_path / "net.onnx.json").write_text(content)
    with pytest.raises(DataError, match=rf"net\.onnx is damaged or was not exported by leukemia_dl: .*{says}"):
        ldl.load_classifier(tmp_path / "net.onnx")
