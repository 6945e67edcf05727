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
from leukemia_dl.errors import DataError, ImageError, SettingsError
from leukemia_dl.models import Head, build_model
from leukemia_dl.models.classifier import predict_logits, softmax

keras = pytest.importorskip("keras")
RNG = np.random.default_rng(0)
COLUMNS = ["path", "predicted", "probability_hem", "probability_all", "error"]
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
    assert list(frame) == COLUMNS
    assert list(frame["path"]) == [str(path) for path in files]
    assert list(frame["error"]) == [""] * 5
    np.testing.assert_allclose(frame[["probability_hem", "probability_all"]], expected, atol=1e-5)
    assert list(frame["predicted"]) == [("hem", "all")[i] for i in expected.argmax(axis=1)]


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
    expected = softmax(np.asarray(classifier.model(pixels), np.float64) / classifier.temperature)
    np.testing.assert_allclose(np.asarray(plain(pixels)), expected, atol=1e-6)


def test_load_from_folders(classifier, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "trials" / name).mkdir(parents=True)
    classifier.save(tmp_path / "trials" / "a" / "model.keras")
    assert ldl.load_classifier(tmp_path).class_names == ("hem", "all")
    assert ldl.load_classifier(tmp_path / "trials" / "a").class_names == ("hem", "all")
    classifier.save(tmp_path / "trials" / "b" / "model.keras")
    with pytest.raises(DataError, match=r"(?s)several models.*trials/a\n.*trials/b"):
        ldl.load_classifier(tmp_path)


def test_what_is_no_classifier_is_refused(tmp_path):
    # 20.30: a row's trial alone is refused with what to write
    with pytest.raises(DataError, match=r"There is no model at .*bench\.store\.root / 'trials' / row\.trial"):
        ldl.load_classifier(tmp_path / "nothing.keras")
    with pytest.raises(DataError, match="There is no model at"):
        ldl.load_classifier(tmp_path)
    (tmp_path / "text.keras").write_text("not a zip")
    with pytest.raises(DataError, match="is damaged or was not saved by leukemia_dl"):
        ldl.load_classifier(tmp_path / "text.keras")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / "other.keras")
    with pytest.raises(DataError, match=r"no item named .leukemia_dl\.json"):
        ldl.load_classifier(tmp_path / "other.keras")
    with zipfile.ZipFile(tmp_path / "future.keras", "w") as archive:
        archive.writestr("leukemia_dl.json", '{"format": 99}')
    with pytest.raises(DataError, match="format 99"):
        ldl.load_classifier(tmp_path / "future.keras")
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("leukemia_dl.json", " " * (1 << 24))
    with pytest.raises(DataError, match="implausible size"):
        ldl.load_classifier(tmp_path / "bomb.keras")


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": ["a", "a"]},
        {"class_names": ["a", "b", "c"]},
        {"pipeline": {"steps": []}},
        {"class_names": 7},
        {"provenance": [1]},
        {"provenance": {"trial": 7}},
        {"temperature": 10**400},
        {"temperature": 1e-320},
        {"temperature": float("nan")},
        {"temperature": "1"},
    ],
)
def test_settings_that_do_not_fit_the_net_are_refused(classifier, tmp_path, change):
    """20.38: one DataError, also for numbers that no float holds or that make every probability NaN."""
    import json

    path = classifier.save(tmp_path / "model.keras")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["leukemia_dl.json"] = json.dumps(json.loads(members["leukemia_dl.json"]) | change).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    if change == {"pipeline": {"steps": []}}:
        with pytest.raises(SettingsError, match=r"gives \(40, 40, 3\)"):
            ldl.load_classifier(path).predict(IMAGES)
    else:
        with pytest.raises(DataError, match="is damaged or was not saved"):
            ldl.load_classifier(path)


def test_a_lambda_layer_is_not_run(tmp_path, classifier):
    inputs = keras.Input((32, 32, 3))
    outputs = keras.layers.Lambda(lambda x: x[:, 0, 0, :2], output_shape=(2,))(inputs)
    evil = ldl.Classifier(keras.Model(inputs, outputs), ("a", "b"), classifier.pipeline)
    with pytest.raises(DataError, match=r"was not saved by leukemia_dl .*Lambda"):
        ldl.load_classifier(evil.save(tmp_path / "evil.keras"))


def test_files_that_cannot_be_read_have_an_error_and_nothing_predicted(classifier, files, tmp_path, caplog):
    """20.23: an unreadable file gets a row, and does not stop the others."""
    expected = classifier.predict(files)
    files[1].write_bytes(files[1].read_bytes()[:60])
    files[3].write_bytes(b"")
    frame = classifier.predict([*files, tmp_path / "gone.png"])
    good, bad = [0, 2, 4], [1, 3, 5]
    assert list(frame["path"]) == [*map(str, files), str(tmp_path / "gone.png")]
    pd.testing.assert_frame_equal(frame.loc[good], expected.loc[good])
    assert frame.loc[bad, COLUMNS[1:4]].isna().all(axis=None)
    for name, said in zip(("1.png", "3.png", "gone.png"), frame.loc[bad, "error"], strict=True):
        assert said.startswith("Cannot read the image")
        assert name in said
    assert "3 of 6 images cannot be read" in caplog.text
    nothing = classifier.predict(files[3])
    assert (len(nothing), nothing["error"].eq("").any()) == (1, False)


def test_a_folder_stands_for_the_images_below_it(classifier, files, caplog):
    """20.23, 20.18: subfolders are looked into, system files passed over, other files counted in a warning."""
    folder = files[0].parent
    (folder / "old.png" / "deeper").mkdir(parents=True)
    inner = files[4].rename(folder / "old.png" / "deeper" / "4.PNG")
    for name in ("._0.png", "Thumbs.db", "@eaDir/5.png", "__MACOSX/old.png/._4.png", "notes.txt", "scan.svs"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"x")
    frame = classifier.predict(folder)
    assert list(frame["path"]) == [*map(str, files[:4]), str(inner)]
    assert list(frame["error"]) == [""] * 5
    assert "left out 1 file, such as 'scan.svs'" in caplog.text
    pd.testing.assert_frame_equal(classifier.predict([str(folder)]), frame)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        classifier.predict(folder / "empty")


def test_images_unlike_the_training_images_are_counted_in_a_warning(classifier, tmp_path, caplog):
    """20.21: a smear given to a net of cut-out cells, or 300 pixels to a net of 120, is said."""
    cell = np.zeros((120, 120, 3), np.uint8)
    cell[30:90, 40:80] = 150
    trained = dataclasses.replace(classifier, provenance={"images": {"on_black": 1.0, "size": [50, 75]}})
    for one in (trained, ldl.load_classifier(trained.save(tmp_path / "model.keras")), classifier):
        caplog.clear()
        one.predict([cell, np.pad(cell, ((90, 90), (90, 90), (0, 0)))])
        assert caplog.text == ""  # the same cell in a larger frame
        one.predict([cell, np.kron(cell, np.ones((3, 3, 1), np.uint8)), *IMAGES[:3]])
        said = [record.getMessage().split(":")[0] for record in caplog.records]
        expected = [
            "3 of 5 images do not show a cell cut out on black, unlike the training images",
            "1 of 2 cells are 180 to 180 pixels across, those of the training images 50 to 75",
        ]
        assert said == ([] if one is classifier else expected)
    smears = dataclasses.replace(classifier, provenance={"images": {"on_black": 0.0, "size": [120, 120]}})
    caplog.clear()
    smears.predict([cell, *RNG.integers(1, 256, (2, 300, 300, 3), dtype=np.uint8)])
    assert "1 of 3 images show a cell cut out on black" in caplog.text
    assert "2 of 2 images are 300 to 300 pixels across, those of the training images 120 to 120" in caplog.text


def test_what_is_no_image_is_refused(classifier, files, tmp_path):
    for wrong in (7, [1, 2], [files[0], IMAGES[0]], IMAGES[0, 0], np.zeros((1, 1, 2, 3, 4), np.uint8)):
        with pytest.raises((SettingsError, ImageError, TypeError)):
            classifier.predict(wrong)
    with pytest.raises(SettingsError, match="batch_size"):
        classifier.predict(files, batch_size=0)
    with pytest.raises(SettingsError, match=r"\.keras"):
        classifier.save(tmp_path / "model.h5")


def a_net(units, activation=None, size=32):
    inputs = keras.Input((size, size, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 64)(inputs))
    return keras.Model(inputs, keras.layers.Dense(units, activation)(x))


@pytest.mark.parametrize(
    ("model", "names", "pipeline", "says"),
    [
        (lambda: a_net(3), ("a", "b"), 32, "3 outputs for the classes a, b"),
        (lambda: a_net(1), ("a", "b", "c"), 32, "1 outputs for the classes a, b, c"),
        (lambda: a_net(2), ("a", "a"), 32, "2 outputs for the classes a, a"),
        (lambda: a_net(1), ("a",), 32, "1 outputs for the classes a"),
        (lambda: a_net(2), ("a", "b"), 16, "the pipeline gives 16 pixels, the net takes 32"),
        (lambda: keras.Sequential([keras.layers.Dense(2)]), ("a", "b"), 32, "takes \\(batch, size, size, 3\\)"),
        (lambda: keras.Sequential([keras.Input((32,)), keras.layers.Dense(2)]), ("a", "b"), 32, "the shapes"),
        (lambda: "net", ("a", "b"), 32, "the shapes"),
    ],
)
def test_a_classifier_whose_parts_do_not_fit_is_refused_when_made(model, names, pipeline, says):
    """20.29: not with an IndexError, a class that is dropped or probabilities squashed twice at prediction."""
    with pytest.raises(SettingsError, match=says):
        ldl.Classifier(model(), names, ldl.Pipeline.default(pipeline, canvas=40))


ENDS = {
    "softmax as an operation": (2, lambda x: keras.ops.softmax(x)),
    "softmax as an activation": (2, lambda x: keras.activations.softmax(x)),
    "sigmoid of one unit": (1, lambda x: keras.ops.sigmoid(x)),
    "Dropout": (2, lambda x: keras.layers.Dropout(0.5)(keras.layers.Softmax()(x))),
    "Identity": (2, lambda x: keras.layers.Identity()(keras.layers.Softmax()(x))),
    "a linear Activation": (2, lambda x: keras.layers.Activation("linear")(keras.layers.Softmax()(x))),
    "Reshape": (2, lambda x: keras.layers.Reshape((2,))(keras.layers.Softmax()(x))),
    "Average": (2, lambda x: keras.layers.Average()([keras.layers.Softmax()(x), keras.layers.Softmax()(2 * x)])),
    "a Sequential": (2, lambda x: keras.Sequential([keras.layers.Softmax()])(x)),
}


@pytest.mark.parametrize("end", ENDS)
def test_probabilities_are_noticed_however_the_net_makes_them(end):
    """20.29: also where the last layer is no Softmax, and then they are not squashed again."""
    units, make = ENDS[end]
    net, pipeline = a_net(units), ldl.Pipeline.default(32, canvas=40)
    model = keras.Model(net.input, make(net.output))
    frame = ldl.Classifier(model, ("a", "b"), pipeline).predict(IMAGES)
    own = np.asarray(model(pipeline(IMAGES).astype("float32"), training=False))[:, -1]
    np.testing.assert_allclose(frame["probability_b"], own, atol=1e-5)


def test_logits_are_squashed_once():
    """20.29: also where they come from a Sequential, or happen to be positive."""
    stack = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Rescaling(1 / 64), keras.layers.Flatten()])
    stack.add(keras.layers.Dense(2))
    net, pipeline = a_net(2), ldl.Pipeline.default(32, canvas=40)
    shifted = keras.Model(net.input, keras.layers.Rescaling(1.0, offset=3.0)(net.output))
    for model in (stack, shifted):
        logits = np.asarray(model(pipeline(IMAGES).astype("float32")), dtype=float)
        frame = ldl.Classifier(model, ("a", "b"), pipeline).predict(IMAGES)
        np.testing.assert_allclose(frame["probability_b"], softmax(logits)[:, 1], atol=1e-5)


@pytest.mark.parametrize("units", [1, 2])
@pytest.mark.parametrize("squashed", [False, True])
def test_one_or_two_outputs_of_either_kind_give_the_nets_own_probabilities(units, squashed, tmp_path):
    """20.29: nets that end in a softmax or a sigmoid; saved, and loaded again."""
    model = a_net(units, {1: "sigmoid", 2: "softmax"}[units] if squashed else None)
    pipeline = ldl.Pipeline.default(32, canvas=40)
    made = ldl.Classifier(model, ("hem", "all"), pipeline)
    values = np.asarray(model(pipeline(IMAGES).astype("float32")), dtype=float)
    if not squashed:
        values = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True) if units == 2 else 1 / (1 + np.exp(-values))
    for one in (made, ldl.load_classifier(made.save(tmp_path / "model.keras"))):
        np.testing.assert_allclose(one.predict(IMAGES)["probability_all"], values[:, -1], atol=1e-5)
        views = one.predict(IMAGES, tta=True)
        np.testing.assert_allclose(views["probability_hem"] + views["probability_all"], 1)


def test_folders_are_made_to_save_into(classifier, tmp_path):
    path = classifier.save(tmp_path / "not" / "there" / "yet.keras")
    assert ldl.load_classifier(path).class_names == classifier.class_names


def test_a_temperature_of_numpy_divides_the_logits_and_is_saved_as_a_number(classifier, files, tmp_path):
    warm = dataclasses.replace(classifier, temperature=np.float32(1.5))
    assert type(warm.temperature) is float
    odds = [
        np.log(one["probability_all"] / one["probability_hem"])
        for one in (classifier.predict(files), warm.predict(files))
    ]
    np.testing.assert_allclose(odds[1], odds[0] / 1.5, atol=1e-6)
    for wrong in (0.009, 101, 0, -1, True, "1", float("nan")):
        with pytest.raises(SettingsError, match=r"temperature must be a number in \[0.01, 100\]. Received"):
            dataclasses.replace(classifier, temperature=wrong)
    assert ldl.load_classifier(warm.save(tmp_path / "warm.keras")).temperature == 1.5


def test_nothing_gives_an_empty_frame(classifier):
    assert list(classifier.predict([])) == COLUMNS
    assert len(classifier.predict([])) == 0


def test_softmax_of_large_logits():
    np.testing.assert_allclose(softmax(np.array([[1e4, 0.0], [0.0, 0.0]])), [[1, 0], [0.5, 0.5]])


def test_loading_in_threads_leaves_standard_output_to_the_program(classifier, tmp_path):
    file = classifier.save(tmp_path / "model.keras")
    program = (
        "import threading, leukemia_dl as ldl\n"
        f"work = [threading.Thread(target=ldl.load_classifier, args=({str(file)!r},)) for _ in range(4)]\n"
        "[one.start() for one in work], [one.join() for one in work]\n"
        "print('arrived')"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    answer = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (0, "arrived\n"), answer.stderr


def test_abstaining_names_the_possible_classes_and_says_unsure(classifier, files, tmp_path):
    values = np.sort(classifier.predict(files)[["probability_hem", "probability_all"]].max(axis=1))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    for limit in (0.0, values[2], 1.0):  # both classes, or one, or none, are possible
        able = dataclasses.replace(classifier, provenance={"abstain": {"value": float(limit)}})
        plain, frame = able.predict([*files, broken]), able.predict([*files, broken], abstain=True)
        assert list(frame) == [*COLUMNS[:4], "possible", "error"]
        for row, before in zip(frame.to_dict("records"), plain.to_dict("records"), strict=True):
            found = [name for name in ("hem", "all") if row[f"probability_{name}"] >= limit]
            assert row["possible"] == ", ".join(found)
            if row["error"]:
                assert pd.isna(row["predicted"])
            else:
                assert row["predicted"] == (before["predicted"] if len(found) == 1 else "unsure")
        assert (frame["predicted"][:5] == "unsure").mean() == (2 / 5 if limit == values[2] else 1)


def test_a_net_that_gives_no_numbers_is_an_error(classifier):
    model = keras.models.clone_model(classifier.model)
    model.layers[-1].set_weights([np.full(w.shape, np.nan) for w in model.layers[-1].weights])
    damaged = dataclasses.replace(classifier, model=model)
    for of in (damaged, ldl.Ensemble((classifier, damaged))):
        with pytest.raises(DataError, match="probabilities that are no numbers"):
            of.predict(IMAGES)


def test_an_image_that_one_net_cannot_read_is_predicted_by_none(classifier, files, tmp_path):
    """In either order of the nets: one crops to a square, which is too large for a narrow image."""
    Image.fromarray(np.full((4_522, 20, 3), 200, np.uint8)).save(tmp_path / "long.png")
    steps = (ldl.preprocess.CropToCell(), ldl.preprocess.Resize(32))
    other = dataclasses.replace(classifier, pipeline=ldl.Pipeline(steps))
    plain = dataclasses.replace(classifier, pipeline=ldl.Pipeline(steps[1:]))
    for nets in ((plain, other), (other, plain)):
        frame = ldl.Ensemble(nets).predict([files[0], tmp_path / "long.png"])
        assert frame["error"].ne("").tolist() == [False, True]
        assert frame["predicted"].isna().tolist() == [False, True]
        assert frame["probability_hem"].isna().tolist() == [False, True]


def test_abstaining_needs_its_limit_as_it_was_chosen(classifier):
    with pytest.raises(SettingsError, match="no limit to abstain by: its training recorded none"):
        classifier.predict(IMAGES, abstain=True)
    few = dataclasses.replace(classifier, provenance={"abstain": {"value": None, "reason": "there are 8"}})
    with pytest.raises(SettingsError, match="no limit to abstain by: there are 8"):
        few.predict(IMAGES, abstain=True)
    able = dataclasses.replace(classifier, provenance={"abstain": {"value": 0.7}})
    for how in ({"calibrated": False}, {"tta": True}):
        with pytest.raises(SettingsError, match="needs calibrated=True and tta=False"):
            able.predict(IMAGES, abstain=True, **how)
    with pytest.raises(SettingsError, match="each of its nets has its own"):
        ldl.Ensemble((able, able)).predict(IMAGES, abstain=True)


@pytest.mark.parametrize(
    "abstain", [0.7, [], {"value": "0.7"}, {"value": [0.7]}, {"value": 2}, {"value": float("nan")}]
)
def test_a_record_of_abstaining_of_odd_types_is_refused(classifier, abstain):
    with pytest.raises(SettingsError, match="record of abstaining"):
        dataclasses.replace(classifier, provenance={"abstain": abstain})
