"""Hostile `.keras` files: each is refused in one plain line before memory is taken or anything is built."""

import io
import json
import os
import resource
import sys
import time
import zipfile

import h5py
import pytest

import leukemia_dl as ldl
from leukemia_dl.errors import DataError
from leukemia_dl.models import classifier

keras = pytest.importorskip("keras")
SETTINGS = {"format": 1, "class_names": ["hem", "all"], "pipeline": {"steps": []}, "provenance": {}}


def written(path, config, weights=None, **members):
    """Write a `.keras` file from a configuration and the bytes of its weights."""
    if weights is None:
        buffer = io.BytesIO()
        h5py.File(buffer, "w").close()
        weights = buffer.getvalue()
    members = {
        "leukemia_dl.json": json.dumps(SETTINGS),
        "config.json": json.dumps(config),
        "model.weights.h5": weights,
        "metadata.json": json.dumps({"keras_version": keras.__version__}),
    } | {name.replace("_json", ".json"): text for name, text in members.items()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            how = zipfile.ZIP_STORED if name.endswith(".h5") else zipfile.ZIP_DEFLATED
            file.writestr(name, content, compress_type=how)
    return path


def net(*layers):
    """Return the configuration of a net on 8 x 8 pixels that ends in two logits."""
    ends = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)
    return keras.saving.serialize_keras_object(keras.Sequential([keras.Input((8, 8, 3)), *layers, *ends]))


def changed(config, **values):
    """Return a configuration whose layers that have one of these settings have another value of it."""
    text = json.loads(json.dumps(config))

    def walk(part):
        if isinstance(part, dict):
            part.update({key: value for key, value in values.items() if key in part})
            part = part.values()
        for inner in part if not isinstance(part, (str, int, float, type(None))) else ():
            walk(inner)

    walk(text)
    return text


CONV = net(keras.layers.Conv2D(4, 3))
CASES = {
    "forty million filters": (changed(CONV, filters=40_000_000, build_config=None), "parameters"),
    "an image of 80,000 pixels": (changed(net(keras.layers.UpSampling2D(2)), size=[10_000, 10_000]), "numbers of one"),
    "a large layer in a net within": (
        changed(net(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.UpSampling2D(2)])), size=[10_000, 10_000]),
        "numbers of one image",
    ),
    "a layer": (keras.saving.serialize_keras_object(keras.layers.Dense(2)), "a Dense, not a model"),
    "no net of images": (changed(net(), class_name="Hashing"), None),
    "no shape": (
        keras.saving.serialize_keras_object(keras.Sequential([keras.layers.Conv2D(1 << 20, 3)])),
        "damaged or was not saved.*a net takes",
    ),
    "ten thousand layers": (
        net(*[keras.layers.ReLU() for _ in range(3)]) | {"x": [{"class_name": 1}] * 10_000},
        "10,000",
    ),
    "a list": ([], None),
    "nothing": (None, None),
    "deep": (json.loads("[" * 500 + "]" * 500), None),
}


def test_a_long_stack_of_layers_is_refused_at_once(tmp_path):
    """20.38: Keras builds a Sequential anew for each of its layers, so that 1,000 would take minutes."""
    dense = {"class_name": "Dense", "config": {"units": 2}, "module": "keras.layers"}
    config = net()
    for layers in ([dense] * 1_000, [{**config, "config": {"layers": [dense] * 90}}] * 2):
        config["config"]["layers"][1:1] = layers
        started = time.perf_counter()
        with pytest.raises(DataError, match=r"it has [\d,]+ calls of layers to build it, more than 10,000"):
            ldl.load_classifier(written(tmp_path / "long.keras", config))
        assert time.perf_counter() - started < 2
        del config["config"]["layers"][1 : 1 + len(layers)]
    inner = net()
    for _ in range(6):
        inner = net() | {"config": {"layers": [*net()["config"]["layers"], inner]}}
    with pytest.raises(DataError, match="nets are nested in it more than 5 deep"):
        ldl.load_classifier(written(tmp_path / "deep.keras", inner))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["NASNetLarge", "EfficientNetV2L", "ConvNeXtBase"])
def test_the_largest_nets_of_keras_are_within_the_limits(name):
    """20.38: the limits are far above real nets."""
    model = getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(331, 331, 3))
    text = json.dumps(keras.saving.serialize_keras_object(model))
    assert text.count('"class_name"') < classifier._MAX_OBJECTS
    assert classifier._calls(json.loads(text)) < classifier._MAX_CALLS / 2


@pytest.mark.parametrize("name", CASES)
def test_odd_nets_are_refused_before_they_take_memory(tmp_path, name):
    """20.38: parameters, outputs and kinds of objects are looked at before anything is built."""
    config, says = CASES[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=says) as caught:
        ldl.load_classifier(written(tmp_path / "odd.keras", config))
    assert "odd.keras" in str(caught.value)
    scale = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * scale < 1 << 30


def test_members_that_unpack_to_much_are_not_unpacked(tmp_path):
    """20.38: the unpacked size of every member is bounded, that of the weights by the file's own size."""
    for member in ("config_json", "metadata_json", "assets/words.txt"):
        file = written(tmp_path / "bomb.keras", CONV, **{member: " " * (64 << 20)})
        with pytest.raises(DataError, match=f"{member.replace('_json', '.json')} in it has an implausible size"):
            ldl.load_classifier(file)


def test_weights_that_say_more_than_the_file_holds_are_not_read(tmp_path):
    """20.38: a data set in the HDF5 file may have a shape of terabytes in a few bytes."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("layers/conv2d/vars/0", (1 << 40,), "float32", chunks=(1 << 20,), compression="gzip")
    with pytest.raises(DataError, match="4,398,046,511,104 bytes of weights, more than"):
        ldl.load_classifier(written(tmp_path / "sparse.keras", CONV, buffer.getvalue()))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_in_place_of_a_model_is_not_waited_for(tmp_path):
    """20.39: only regular files are opened."""
    os.mkfifo(tmp_path / "model.keras")
    with pytest.raises(DataError, match="There is no model at"):
        ldl.load_classifier(tmp_path)
    with pytest.raises(DataError, match="There is no model at"):
        ldl.load_classifier(tmp_path / "model.keras")


def activated(module, name):
    """Return a net whose activation is a function of a module."""
    config = json.loads(json.dumps(net(keras.layers.Conv2D(2, 3, activation="relu"))))
    function = {"module": module, "class_name": "function", "config": name, "registered_name": "function"}
    return changed(config, activation=function)


@pytest.mark.parametrize(
    ("module", "name"), [("os", "system"), ("builtins", "eval"), ("subprocess", "run"), (None, "x")]
)
def test_a_function_of_a_module_is_refused_and_not_called(tmp_path, module, name):
    with pytest.raises(DataError, match="is damaged or was not saved by leukemia_dl"):
        ldl.load_classifier(written(tmp_path / "function.keras", activated(module, name)))


def test_code_in_a_lambda_layer_is_refused_and_not_run(tmp_path):
    seen = tmp_path / "seen"
    code = keras.layers.Lambda(lambda x, path=str(seen): (open(path, "w").close(), x)[1], output_shape=(8, 8, 3))  # noqa: PTH123
    config = net(keras.layers.Conv2D(3, 1), code)
    seen.unlink(missing_ok=True)  # building the net here has run it
    with pytest.raises(DataError, match=r"Lambda|safe_mode"):
        ldl.load_classifier(written(tmp_path / "lambda.keras", config))
    assert not seen.exists()


@pytest.mark.parametrize("name", ["../evil.py", "/tmp/evil.py", "assets/../../evil.py", "..\\evil.py", "C:\\evil.py"])
def test_a_member_that_leads_out_of_the_file_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="leads out of the file"):
        ldl.load_classifier(written(tmp_path / "out.keras", CONV, **{name: "print(1)"}))
    assert not [*tmp_path.parent.glob("evil*"), *tmp_path.glob("evil*")]


ODD = [
    [], "text", 3, None, {}, {"format": "3"}, {"format": None}, {"format": 99}, {"class_names": 3},
    {"class_names": ["a", "a"]}, {"class_names": ["a"]}, {"class_names": None}, {"pipeline": []}, {"pipeline": 3},
    {"pipeline": {"steps": [3]}}, {"provenance": 5}, {"provenance": ["x"]}, {"provenance": {"images": 3}},
    {"provenance": {"images": {"on_black": []}}}, {"provenance": {"trial": 3}}, {"provenance": {"abstain": 3}},
    {"provenance": {"abstain": {"value": "x"}}}, {"temperature": "hot"}, {"temperature": None}, {"temperature": [1]},
    {"temperature": float("nan")}, {"temperature": -1}, {"temperature": 1e300}, {"encoder": 3}, {"encoder": {}},
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_settings_of_odd_types_are_one_clear_error(tmp_path, odd):
    settings = {**SETTINGS, **odd} if isinstance(odd, dict) and odd else odd
    file = written(tmp_path / "odd.keras", CONV, leukemia_dl_json=json.dumps(settings))
    with pytest.raises(DataError, match=r"odd\.keras is damaged or was not saved by leukemia_dl") as caught:
        ldl.load_classifier(file)
    assert len(str(caught.value)) < 600
