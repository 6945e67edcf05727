import dataclasses
import os
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import leukemia_dl as ldl
from leukemia_dl.errors import DataError, ImageError, SettingsError, StoreError
from leukemia_dl.models import Head, build_model
from leukemia_dl.models.classifier import predict_logits, softmax

keras = pytest.importorskip("keras")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def classifier():
    keras.utils.set_random_seed(0)
    model = build_model(ldl.get_backbone("cnn"), 32, 2, head=Head(dropout=0.5))
    return ldl.Classifier(model, ("hem", "all"), ldl.Pipeline.default(32, canvas=40), {"digest": "abc"})


@pytest.fixture
def files(tmp_path):
    paths = []
    for i, image in enumerate(IMAGES):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    return paths


def test_predict_is_softmax_of_the_model_on_the_pipeline(classifier, files):
    frame = classifier.predict(files)
    pixels = np.stack([classifier.pipeline.load(path) for path in files]).astype("float32")
    logits = np.asarray(classifier.model(pixels, training=False), dtype=float)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert list(frame) == ["path", "label", "probability_hem", "probability_all"]
    assert list(frame["path"]) == [str(path) for path in files]
    np.testing.assert_allclose(frame[["probability_hem", "probability_all"]], expected, atol=1e-5)
    assert list(frame["label"]) == [("hem", "all")[i] for i in expected.argmax(axis=1)]


def test_every_kind_of_input_gives_the_same_numbers(classifier, files):
    columns = ["probability_hem", "probability_all"]
    expected = classifier.predict(files)[columns].to_numpy()
    dataset = ldl.Dataset.from_dataframe(pd.DataFrame({"path": files, "label": ["hem", "all", "hem", "all", "all"]}))
    cases = [list(map(str, files)), IMAGES, list(IMAGES), dataset, iter(files)]
    for case in cases:
        np.testing.assert_allclose(classifier.predict(case)[columns], expected, atol=1e-5)
    np.testing.assert_allclose(classifier.predict(files[0])[columns], expected[:1], atol=1e-5)
    np.testing.assert_allclose(classifier.predict(IMAGES[0])[columns], expected[:1], atol=1e-5)
    assert list(classifier.predict(dataset)["sample"]) == list(dataset.table["sample"])


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_the_batch_size_does_not_change_predictions(classifier, batch_size):
    pixels = classifier.pipeline(IMAGES)
    expected = np.asarray(classifier.model(pixels.astype("float32"), training=False))
    np.testing.assert_allclose(predict_logits(classifier.model, pixels, batch_size), expected, atol=1e-5)


def test_save_and_load(classifier, tmp_path, files):
    path = classifier.save(tmp_path / "model.keras")
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".png") == ["model.keras"]
    loaded = ldl.load_classifier(path)
    assert (loaded.class_names, loaded.pipeline, dict(loaded.provenance)) == (
        classifier.class_names,
        classifier.pipeline,
        {"digest": "abc"},
    )
    pd.testing.assert_frame_equal(loaded.predict(files), classifier.predict(files))
    # Without this library the file is a plain Keras model.
    plain = keras.saving.load_model(path, safe_mode=True)
    pixels = classifier.pipeline(IMAGES).astype("float32")
    np.testing.assert_allclose(np.asarray(plain(pixels)), np.asarray(classifier.model(pixels)), atol=1e-5)


def test_load_from_folders(classifier, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "trials" / name).mkdir(parents=True)
    classifier.save(tmp_path / "trials" / "a" / "model.keras")
    assert ldl.load_classifier(tmp_path).class_names == ("hem", "all")
    assert ldl.load_classifier(tmp_path / "trials" / "a").class_names == ("hem", "all")
    classifier.save(tmp_path / "trials" / "b" / "model.keras")
    with pytest.raises(DataError, match=r"(?s)holds 2 models.*trials/a\n  trials/b"):
        ldl.load_classifier(tmp_path)


def test_what_is_no_classifier_is_refused(tmp_path):
    with pytest.raises(DataError, match="There is no model at"):
        ldl.load_classifier(tmp_path / "nothing.keras")
    with pytest.raises(DataError, match=r"holds no model\.keras"):
        ldl.load_classifier(tmp_path)
    (tmp_path / "text.keras").write_text("not a zip")
    with pytest.raises(DataError, match="damaged or is no"):
        ldl.load_classifier(tmp_path / "text.keras")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / "other.keras")
    with pytest.raises(DataError, match="holds no leukemia_dl classifier"):
        ldl.load_classifier(tmp_path / "other.keras")
    with zipfile.ZipFile(tmp_path / "future.keras", "w") as archive:
        archive.writestr("leukemia_dl.json", '{"format": 99}')
    with pytest.raises(DataError, match="format 99"):
        ldl.load_classifier(tmp_path / "future.keras")
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("leukemia_dl.json", " " * (1 << 22))
    with pytest.raises(DataError, match="implausible size"):
        ldl.load_classifier(tmp_path / "bomb.keras")


@pytest.mark.parametrize(
    "change",
    [{"class_names": ["a", "a"]}, {"class_names": ["a", "b", "c"]}, {"pipeline": {"steps": []}}, {"class_names": 7}],
)
def test_settings_that_do_not_fit_the_net_are_refused(classifier, tmp_path, change):
    import json

    path = classifier.save(tmp_path / "model.keras")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["leukemia_dl.json"] = json.dumps(json.loads(members["leukemia_dl.json"]) | change).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    if change == {"pipeline": {"steps": []}}:
        with pytest.raises(SettingsError, match="shape"):
            ldl.load_classifier(path).predict(IMAGES)
    else:
        with pytest.raises(DataError, match=r"contradicts itself|damaged"):
            ldl.load_classifier(path)


def test_a_lambda_layer_is_not_run(tmp_path, classifier):
    inputs = keras.Input((32, 32, 3))
    outputs = keras.layers.Lambda(lambda x: x[:, 0, 0, :2], output_shape=(2,))(inputs)
    evil = ldl.Classifier(keras.Model(inputs, outputs), ("a", "b"), classifier.pipeline)
    with pytest.raises(DataError, match="could not be loaded by Keras"):
        ldl.load_classifier(evil.save(tmp_path / "evil.keras"))


def test_bad_images(classifier, files, tmp_path):
    with pytest.raises(ImageError, match=r"(?s)1 of 2 images cannot be read.*gone\.png"):
        classifier.predict([files[0], tmp_path / "gone.png"])
    files[1].write_bytes(files[1].read_bytes()[:60])
    files[3].write_bytes(b"")
    with pytest.raises(ImageError, match=r"(?s)2 of 5 images.*1\.png.*3\.png"):
        classifier.predict(files)
    for wrong in (7, [1, 2], [files[0], IMAGES[0]], IMAGES[0, 0], np.zeros((1, 1, 2, 3, 4), np.uint8)):
        with pytest.raises((SettingsError, ImageError)):
            classifier.predict(wrong)
    with pytest.raises(SettingsError, match="batch_size"):
        classifier.predict(files, batch_size=0)
    with pytest.raises(SettingsError, match=r"\.keras"):
        classifier.save(tmp_path / "model.h5")


def test_folders_are_made_to_save_into(classifier, tmp_path):
    path = classifier.save(tmp_path / "not" / "there" / "yet.keras")
    assert ldl.load_classifier(path).class_names == classifier.class_names
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"The folder .*file/x cannot be made: .* Name another one"):
        classifier.save(tmp_path / "file" / "x" / "model.keras")


def test_a_temperature_of_numpy_is_saved_as_a_number(classifier, tmp_path):
    warm = dataclasses.replace(classifier, temperature=np.float32(1.5))
    assert type(warm.temperature) is float
    assert ldl.load_classifier(warm.save(tmp_path / "warm.keras")).temperature == 1.5


def test_nothing_gives_an_empty_frame(classifier):
    assert list(classifier.predict([])) == ["path", "label", "probability_hem", "probability_all"]
    assert len(classifier.predict([])) == 0


def test_softmax_of_large_logits():
    np.testing.assert_allclose(softmax(np.array([[1e4, 0.0], [0.0, 0.0]])), [[1, 0], [0.5, 0.5]])


def test_loading_first_of_all_prints_nothing(classifier, tmp_path):
    file = classifier.save(tmp_path / "model.keras")
    program = f"import leukemia_dl as ldl; ldl.load_classifier({str(file)!r})"
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    answer = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


def test_loading_in_threads_leaves_the_error_stream_as_it_was(classifier, tmp_path):
    file = classifier.save(tmp_path / "model.keras")
    program = (
        "import os, sys, threading, leukemia_dl as ldl\n"
        f"work = [threading.Thread(target=ldl.load_classifier, args=({str(file)!r},)) for _ in range(4)]\n"
        "before = os.fstat(2)\n"
        "[one.start() for one in work], [one.join() for one in work]\n"
        "assert os.path.samestat(os.fstat(2), before)\n"
        "sys.stderr.write('arrived')"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (answer.returncode, answer.stderr) == (0, "arrived")


@pytest.mark.skipif(sys.platform == "win32", reason="shells of its own")
def test_loading_with_a_closed_error_stream(classifier, tmp_path):
    file = classifier.save(tmp_path / "model.keras")
    program = f"import leukemia_dl as ldl; print(type(ldl.load_classifier({str(file)!r})).__name__)"
    answer = subprocess.run(["sh", "-c", f'"{sys.executable}" -c "{program}" 2>&-'], capture_output=True, text=True)
    assert answer.stdout.strip() == "Classifier"
