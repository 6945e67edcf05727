"""Encoders in benchmarks: heads equal scikit-learn's on their features, once computed, in any process."""

import dataclasses
from collections import Counter

import keras
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import grids
import leukemia_dl as ldl
import stores
from leukemia_dl.errors import DataError, SettingsError, UnknownNameError
from leukemia_dl.models import backbones as registry
from leukemia_dl.models.build import scale

CALLS = Counter()


def counted(images):
    CALLS.update([image.tobytes() for image in images])
    return grids.encode(images)


ENCODER = ldl.EncoderSpec(name="blocks", load=lambda: grids.encode, image_size=32, version="1", parameters=5)
HOW = {"executor": "in-process", "show_progress": False}


def bench(dataset, store, recipe="linear_probe", backbones=(ENCODER,), **settings):
    settings = {"protocol": "kfold", "n_folds": 3, "folds": [0], "baselines": []} | settings
    return ldl.Benchmark(dataset, list(backbones), recipe=recipe, store=store, **settings)


def test_a_linear_probe_is_scikit_learns_on_the_features_and_a_saved_net_predicts_the_same(dataset, tmp_path):
    one = bench(dataset, tmp_path)
    (row,) = one.run(**HOW).to_dict("records")
    assert (row["status"], row["weights"], row["image_size"]) == ("ok", "1", 32)
    assert row["parameters"] == 5 + 2 * 96 + 2
    pixels = dataset.to_numpy(dataset.default_pipeline(32))
    features, (split,) = grids.encode(pixels).astype(float), one.splits
    scaler = StandardScaler().fit(features[split.train])
    strength = float(row["flags"].split("C=")[1].split()[0])
    oracle = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000)
    oracle.fit(scaler.transform(features[split.train]), dataset.labels[split.train])
    expected = oracle.predict_proba(scaler.transform(features[split.test]))[:, 1]
    frame = one.predictions().query("side == 'test'")
    names = dataset.table["sample"].iloc[split.test]
    found = frame.set_index("sample").loc[names, f"probability_{dataset.class_names[1]}"]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    classifier = ldl.load_classifier(tmp_path)
    again = classifier.predict(dataset.subset(split.test), calibrated=False, show_progress=False)
    np.testing.assert_allclose(again[f"probability_{dataset.class_names[1]}"], found, atol=1e-6)
    assert one.evaluate_on(grids.dataset(tmp_path / "other"), show_progress=False)["accuracy"].notna().all()
    again = ldl.Benchmark.from_toml(tmp_path / "settings.toml", dataset=dataset)
    assert again.plan()["status"].tolist() == ["ok"]
    # The same name with other weights is another encoder.
    registry._registered.clear()
    ldl.register_backbone(dataclasses.replace(ENCODER, version="2"))
    with pytest.raises(DataError, match=r"it is for the encoder blocks \(1\); the one here is 2"):
        ldl.load_classifier(tmp_path)


@pytest.mark.parametrize("of_arrays", [False, True])
def test_a_linear_probe_of_three_encoders_is_scikit_learns_on_their_features(dataset, tmp_path, of_arrays):
    data = stores.cells(150, 30, ("a", "b", "c"), size=32) if of_arrays else dataset
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    keras.Model(inputs, grids.tiny(inputs, None)).save_weights(tmp_path / "net.weights.h5")
    net = ldl.BackboneSpec(name="net", build=grids.tiny, scaling="unit", native_size=32, min_size=8)
    means = data.to_numpy(data.default_pipeline(32)).reshape(len(data), -1, 24).mean(axis=1)
    table = ldl.Embeddings("table", tuple(data.table["sample"]), means.astype(np.float32))
    weights = {"net": str(tmp_path / "net.weights.h5"), "blocks": "own", "table": "own"}
    recipe = ldl.Recipe.preset("linear_probe", image_size=32, weights=weights)
    one = bench(data, tmp_path / "runs", recipe, [net, ENCODER, table])
    (split,), rows = one.splits, one.run(**HOW).to_dict("records")
    columns = [f"probability_{name}" for name in data.class_names]
    for row in rows:
        frame, rows = one.features(row["backbone"], show_progress=False), one.planned.rows
        assert frame["sample"].tolist() == one.dataset.table["sample"].iloc[rows].tolist()
        values, labels = frame.filter(like="feature_").to_numpy(float), one.dataset.labels
        features = np.full((len(data), values.shape[1]), np.nan)
        features[rows] = values
        scaler = StandardScaler().fit(features[split.train])
        strength, balanced = float(row["flags"].split("C=")[1].split()[0]), recipe.class_balance != "none"
        oracle = LogisticRegression(
            C=strength, tol=1e-8, max_iter=10_000, class_weight="balanced" if balanced else None
        )
        oracle.fit(scaler.transform(features[split.train]), labels[split.train])
        expected = oracle.predict_proba(scaler.transform(features[split.test]))
        found = one.predictions().query("side == 'test' and backbone == @row['backbone']").set_index("sample")
        np.testing.assert_allclose(found.loc[data.table["sample"].iloc[split.test], columns], expected, atol=1e-3)
        if row["backbone"] != "net":
            known = means if row["backbone"] == "table" else grids.encode(data.to_numpy(data.default_pipeline(32)))
            np.testing.assert_array_equal(features[rows], known.astype(np.float32)[rows])


def test_there_are_no_features_of_a_backbone_that_is_trained_or_not_there(dataset, tmp_path):
    trained = ldl.Benchmark(dataset, ["cnn"], store=tmp_path)
    with pytest.raises(SettingsError, match="The recipe quick trains cnn: only frozen backbones have features"):
        trained.features("cnn")
    with pytest.raises(UnknownNameError, match="There is no backbone 'vgg16'"):
        trained.features("vgg16")


def test_features_are_computed_once_for_all_folds_seeds_shots_and_heads(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("LEUKEMIA_DL_CACHE", str(tmp_path / "cache"))
    from leukemia_dl.benchmark import trial_runner

    trial_runner._features.cache_clear()
    CALLS.clear()
    encoder = dataclasses.replace(ENCODER, load=lambda: counted)
    settings = {"folds": [0, 1], "seeds": [0, 1], "shots": [3, None], "save_models": False}
    for recipe in ("linear_probe", "knn", ldl.Recipe.preset("mlp_probe", head_epochs=2, head_units=4)):
        frame = bench(dataset, tmp_path / "runs", recipe, [encoder], **settings).run(**HOW)
        problems = frame.loc[frame["status"] == "failed", "message"]
        assert problems.str.contains("20 training images").all()  # of three patients, by nearest neighbours
    used = dataset.subset(dataset.labels >= 0).subset(bench(dataset, tmp_path).planned.rows)
    pixels = {image.tobytes() for image in used.to_numpy(dataset.default_pipeline(32))}
    timed = 4 * 32 + 32  # images of each trial go through the whole net once more, to measure its speed
    assert min(CALLS[image] for image in pixels) == 1
    assert sum(CALLS.values()) < len(pixels) + 24 * timed
    assert len(list((tmp_path / "cache" / "features").glob("*.npy"))) == 1


def test_a_keras_net_and_an_encoder_with_the_same_features_give_the_same_predictions(dataset, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    net = keras.Model(inputs, grids.tiny(inputs, None))
    net.save_weights(tmp_path / "net.weights.h5")
    pixels = keras.Input((32, 32, 3))
    whole = keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(net(scale(pixels, "unit"))))

    def load():
        return lambda images: np.asarray(whole.predict_on_batch(images.astype(np.float32)))

    spec = ldl.BackboneSpec(name="net", build=grids.tiny, scaling="unit", native_size=32, min_size=8)
    other = ldl.EncoderSpec(name="encoder", load=load, image_size=32, version="1")
    weights = {"net": str(tmp_path / "net.weights.h5"), "encoder": "own"}
    recipe = ldl.Recipe.preset("linear_probe", image_size=32, weights=weights)
    one = bench(dataset, tmp_path / "runs", recipe, [spec, other])
    assert one.run(**HOW)["status"].eq("ok").all()
    frame = one.predictions()
    column = f"probability_{dataset.class_names[1]}"
    first, second = (frame.loc[frame["backbone"] == name, column].to_numpy() for name in ("net", "encoder"))
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_in_another_process_an_encoder_gives_the_same_and_one_that_dies_costs_its_trial(dataset, tmp_path):
    dies = ldl.EncoderSpec(name="dies", load=lambda: lambda images: 1 / 0, image_size=32)
    here = bench(dataset, tmp_path / "here").run(**HOW)
    frame = bench(dataset, tmp_path / "there", backbones=[ENCODER, dies]).run(executor="processes", show_progress=False)
    assert frame["status"].tolist() == ["ok", "failed"]
    assert frame["loss"][0] == pytest.approx(here["loss"][0], abs=1e-12)
    assert frame["message"][1] == "The encoder 'dies' raised ZeroDivisionError: division by zero"


def test_recipes_that_train_more_than_a_head_are_refused_before_the_run(dataset, tmp_path):
    with pytest.raises(
        SettingsError, match=r"blocks gives features, .* needs epochs=0\. Received: epochs=3\. Use recipe="
    ):
        bench(dataset, tmp_path, "quick")
    with pytest.raises(SettingsError, match=r"head_solver='knn' needs epochs=0. Received: epochs=1"):
        ldl.Recipe.preset("knn", epochs=1)
    with pytest.raises(SettingsError, match=r"head_solver='logistic' needs head_epochs=1, head_units=0. Received"):
        ldl.Recipe.preset("linear_probe", head_epochs=9, head_units=3)


def test_an_mlp_probe_does_not_depend_on_the_scale_of_features(dataset, tmp_path):
    def scaled(factor):
        return dataclasses.replace(
            ENCODER, name=f"times{factor}", load=lambda: lambda x: grids.encode(x) * np.float32(factor)
        )

    recipe = ldl.Recipe.preset("mlp_probe", head_epochs=5, head_units=8)
    one = bench(dataset, tmp_path, recipe, [scaled(1), scaled(256)])
    frame = one.run(**HOW)
    assert frame["loss"][0] == pytest.approx(frame["loss"][1], abs=1e-4)


def test_embeddings_give_the_predictions_of_the_encoder_that_made_them(dataset, tmp_path):
    pixels = dataset.to_numpy(dataset.default_pipeline(32))
    table = ldl.Embeddings("table", tuple(dataset.table["sample"]), grids.encode(pixels))
    order = np.random.default_rng(0).permutation(len(dataset))
    mixed = ldl.Embeddings("mixed", tuple(dataset.table["sample"].iloc[order]), grids.encode(pixels)[order])
    one = bench(dataset, tmp_path, backbones=[ENCODER, table, mixed], seeds=[0, 1])
    frame = one.run(executor="processes", show_progress=False)
    assert frame["status"].eq("ok").all()
    predictions = one.predictions()
    column = f"probability_{dataset.class_names[1]}"
    first, *others = (predictions.loc[predictions["backbone"] == name, column] for name in ("blocks", "table", "mixed"))
    for other in others:
        np.testing.assert_allclose(first, other, atol=1e-6)
    assert one.plan()["status"].eq("ok").all()  # although there is no net of embeddings to keep
    assert len(list(tmp_path.glob("trials/*/model.keras"))) == 2
    settings = ldl.Benchmark.from_toml(tmp_path / "settings.toml", dataset=dataset)
    assert settings.plan()["status"].eq("ok").all()  # settings of encoders and of embeddings, which have no pipeline


def test_a_saved_head_of_an_encoder_without_version_needs_the_code_it_was_trained_with(dataset, tmp_path):
    def made(offset):
        load = lambda: lambda images: grids.encode(images + np.uint8(offset))  # noqa: E731
        return dataclasses.replace(ENCODER, version="", load=load)

    own = made(0)
    bench(dataset, tmp_path, backbones=[own]).run(**HOW)
    assert ldl.load_classifier(tmp_path).model.spec is own
    registry._registered.clear()
    ldl.register_backbone(made(1))
    with pytest.raises(DataError, match=r"it is for the encoder blocks \(source \w+\); the one here is source \w+"):
        ldl.load_classifier(tmp_path)


def test_embeddings_of_other_images_are_refused_before_the_run(dataset, tmp_path):
    table = ldl.Embeddings("table", ("a", "b"), np.ones((2, 3), np.float32))
    with pytest.raises(DataError, match=r"no features of 84 of 84 images"):
        bench(dataset, tmp_path, backbones=[table])
    with pytest.raises(SettingsError, match="table gives features, on which a head alone is trained"):
        bench(dataset, tmp_path, "quick", backbones=[table])
