"""Nets that are no plain convolutions: tokens, vectors, nested models and custom layers, built, trained and loaded."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

import leukemia_dl as ldl
from discs import IMAGES, LABELS
from leukemia_dl import plugins
from leukemia_dl.errors import PluginError
from leukemia_dl.models import backbones
from leukemia_dl.models.build import Head, all_layers, batchnorm_layers, build_model, most_readers, split_at_features
from leukemia_dl.testing import check_backbone
from leukemia_dl.testing.checks import check_saving
from leukemia_dl.training import Recipe, fit
from leukemia_dl.training.optimizer import rates_by_layer

keras = pytest.importorskip("keras")
import vit  # noqa: E402 - imports keras

RNG = np.random.default_rng(0)
VIT = ldl.BackboneSpec(
    name="vit", build=vit.build, scaling="torch", native_size=32, min_size=16, pooling="cls",
    parameters=3 * 64 * 16 + 16 + 16 + 17 * 16 + 2 * 2256 + 2 * 16,
)  # fmt: skip
PLUGIN = """
import leukemia_dl as ldl

def build(inputs, weights):
    import vit
    return vit.build(inputs, weights)

@ldl.hookimpl
def leukemia_dl_backbones():
    yield ldl.BackboneSpec(name="vit", build=build, scaling="torch", native_size=32, min_size=16, pooling="cls")
"""
LOADS = """
import sys, numpy as np, leukemia_dl as ldl
assert not {"keras", "vit", "toy_vit"} & set(sys.modules)
model = ldl.load_classifier(sys.argv[1]).model
np.save(sys.argv[3], np.asarray(model.predict_on_batch(np.load(sys.argv[2]))))
"""


def of(result, **changes):
    """Return a spec whose builder applies `result` to the inputs."""
    fields = {"name": "odd", "scaling": "none", "native_size": 16, "min_size": 16} | changes
    return ldl.BackboneSpec(build=lambda inputs, weights: result(inputs), **fields)


def as_tokens(inputs):
    return keras.layers.Reshape((256, 3))(inputs)


POOLED = {
    "map": (of(keras.layers.ReLU()), lambda x: x.mean(axis=(1, 2))),
    "tokens": (of(as_tokens), lambda x: x.mean(axis=(1, 2))),
    "class token": (of(as_tokens, pooling="cls"), lambda x: x[:, 0, 0]),
    "vector": (of(keras.layers.GlobalMaxPooling2D()), lambda x: x.max(axis=(1, 2))),
}


@pytest.mark.parametrize("kind", POOLED)
def test_every_kind_of_output_is_pooled_to_float32_features(kind, tmp_path):
    spec, expected = POOLED[kind]
    images = RNG.integers(0, 256, (3, 16, 16, 3)).astype(np.float32)
    model = build_model(spec, 16, 2)
    extractor, head = split_at_features(model)
    features = np.asarray(extractor.predict_on_batch(images))
    np.testing.assert_allclose(features, expected(images), rtol=1e-5)
    assert features.dtype == np.float32
    np.testing.assert_allclose(head.predict_on_batch(features), model.predict_on_batch(images), rtol=1e-4, atol=1e-3)
    saved = ldl.Classifier(model, ("a", "b"), ldl.Pipeline.default(16)).save(tmp_path / "m.keras")
    loaded = ldl.load_classifier(saved).model
    np.testing.assert_allclose(loaded.predict_on_batch(images), model.predict_on_batch(images), rtol=1e-5)


@pytest.mark.parametrize(("kind", "width"), [("map", 768), ("tokens", 768), ("class token", 768), ("vector", 3)])
def test_a_flat_head_keeps_every_value(kind, width):
    images = RNG.integers(0, 256, (3, 16, 16, 3)).astype(np.float32)
    extractor, _ = split_at_features(build_model(POOLED[kind][0], 16, 2, head=Head(kind="flatten")))
    found = np.asarray(extractor.predict_on_batch(images))
    assert found.shape == (3, width)
    if width == 768:
        np.testing.assert_allclose(found, images.reshape(3, -1), rtol=1e-5)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (of(lambda inputs: keras.Input((None, 4))), r"of known sizes.*Received: KerasTensor \(None, None, 4\)"),
        (of(lambda inputs: keras.Input((2, 2, 2, 4))), r"Received: KerasTensor \(None, 2, 2, 2, 4\)"),
        (of(lambda inputs: [inputs]), r"Received: list \(\)"),
        (of(lambda inputs: vit.encoder(4, 16)), r"Received: Functional .*Of a nested model return `model\(inputs\)`"),
        (of(keras.layers.ReLU(), pooling="cls"), r"with pooling='cls' tokens.*Received: KerasTensor \(None, 16, 16, 3"),
        (of(lambda inputs: vit.encoder(4, 16).output), "The builder of 'odd' does not use its `inputs`"),
    ],
)
def test_anything_else_is_the_plugins_error(spec, says):
    with pytest.raises(PluginError, match=says):
        build_model(spec, 16, 2)


def test_rates_rise_from_input_to_output_inside_nested_models_whose_paths_recur():
    inputs = x = keras.Input((8,))
    for _ in range(2):
        inner = keras.Input((8,))
        y = keras.layers.Dense(8, name="one")(inner)
        x = keras.Model(inner, keras.layers.Dense(8, name="two")(y))(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    rates = rates_by_layer(model, 1e-4)
    assert len({weight.path for weight in model.trainable_weights}) < len(model.trainable_weights) == len(rates)
    found = [rates[id(weight)] for weight in model.trainable_weights if weight.name == "kernel"]
    assert found == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])
    net = build_model(VIT, 32, 2)
    rates, order = rates_by_layer(net, 0.01), list(dict.fromkeys(all_layers(net)))
    owned = [[rates[id(w)] for w in (*layer._trainable_variables,)] for layer in order if layer._trainable_variables]
    found = [share for shares in owned for share in shares]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (pytest.approx(0.01), pytest.approx(1.0))


def test_layers_of_a_subclassed_graph_are_in_the_order_of_their_calls():
    class Backwards(keras.Model):
        def __init__(self):
            inputs = keras.Input((4,))
            self.last, self.first = keras.layers.Dense(4), keras.layers.Dense(4)
            super().__init__(inputs, self.last(self.first(inputs)))

    model = Backwards()
    assert [layer for layer in all_layers(model) if layer.weights] == [model.first, model.last]


def test_readers_inside_a_nested_model_are_counted():
    inner = keras.Input((4, 4, 3))
    nested = keras.Model(inner, keras.layers.Add()([keras.layers.ReLU()(inner), inner, keras.layers.ELU()(inner)]))
    inputs = keras.Input((4, 4, 3))
    assert most_readers(keras.Model(inputs, nested(inputs))) == 3
    assert most_readers(build_model(VIT, 32, 2)) == 2


def test_every_check_holds():
    check_backbone(VIT)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The plugin, on the path of this process and its children."""
    (tmp_path / "toy_vit.py").write_text(PLUGIN)
    info = tmp_path / "toy_vit-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-vit\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[leukemia_dl]\ntoy_vit = toy_vit\n")
    monkeypatch.syspath_prepend(tmp_path)
    plugins.forget()
    yield ldl.get_backbone("vit")
    plugins.forget()
    sys.modules.pop("toy_vit", None)


def test_a_new_process_imports_the_plugin_that_the_record_names(installed, tmp_path):
    check_saving(installed)
    for file in (tmp_path / "toy_vit-1.0.dist-info").iterdir():
        file.unlink()  # new processes do not find it
    says = (
        r"does not load in a new process: \S+model\.keras is damaged or was not saved by leukemia_dl \(TypeError: "
        "Could not locate class 'Embed'. Make sure .*Its backbone 'vit' is of toy-vit 1.0, which has to be there. "
        "Building it raised UnknownNameError: There is no backbone 'vit'"
    )
    with pytest.raises(AssertionError, match=says):
        check_saving(installed)


def test_it_is_trained_in_both_phases_and_loads_in_a_new_process(installed, tmp_path):
    recipe = Recipe(image_size=32, head_epochs=2, epochs=2, batch_size=8, learning_rate=3e-3, input_lr_ratio=0.1)
    head = fit(installed, IMAGES, LABELS, 2, dataclasses.replace(recipe, epochs=0), groups=LABELS)
    start = build_model(installed, 32, 2)
    result = fit(installed, IMAGES, LABELS, 2, recipe, groups=LABELS, validation=(IMAGES[:8], LABELS[:8]))
    assert list(result.history["phase"]) == ["head", "head", "full", "full"]
    assert np.isfinite(result.history["loss"]).all()
    # The head phase moves no weight and no statistics of the backbone; the full phase moves those of the nested model.
    for norm, moved in ((batchnorm_layers(head.model)[0], False), (batchnorm_layers(result.model)[0], True)):
        assert (np.abs(np.asarray(norm.moving_mean)).max() > 0) == moved
    assert [w.shape for w in start.weights] == [w.shape for w in result.model.weights]
    found = backbones.find_backbone("vit")
    trial = {"trial": {"backbone": "vit", "plugin": found.plugin, "plugin_version": found.version}}
    assert (found.plugin, found.version) == ("toy-vit", "1.0")
    net = ldl.Classifier(result.model, ("a", "b"), ldl.Pipeline.default(32), trial)
    files = [net.save(tmp_path / "m.keras"), tmp_path / "images.npy", tmp_path / "logits.npy"]
    np.save(files[1], IMAGES[:8])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    answer = subprocess.run([sys.executable, "-c", LOADS, *files], env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    expected = np.asarray(result.model.predict_on_batch(IMAGES[:8]))
    np.testing.assert_allclose(np.load(files[2]), expected, atol=1e-5)
