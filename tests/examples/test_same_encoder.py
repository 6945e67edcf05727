"""One net as a Keras backbone, as an ONNX encoder and as a file of features: three rows with equal predictions."""

import numpy as np
import pytest

import leukemia_dl as ldl
from leukemia_dl.benchmark import trial_runner
from packages import installed

pytestmark = pytest.mark.slow  # tests/benchmark/test_encoders.py compares the three with scikit-learn, on smaller nets

SIZE = 64


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The net with weights of one file; no real ones are needed. Also the data set."""
    for name in ("onnxruntime", "tf2onnx", "tensorflow"):
        pytest.importorskip(name)
    import keras

    folder = tmp_path_factory.mktemp("three")
    dataset = ldl.Dataset.load("synthetic", root=folder / "cells", subjects=12, images=60)
    with (
        installed("leukemia-dl-efficientnet-lite", folder / "lite") as lite,
        installed("leukemia-dl-onnx", folder / "onnx") as onnx,
    ):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((SIZE, SIZE, 3))
        net = keras.Model(inputs, lite.features(inputs))
        arrays = {f"{layer.name}/{weight.name}": np.asarray(weight) for layer in net.layers for weight in layer.weights}
        np.savez(folder / "weights.npz", **arrays)
        pixels = np.stack([ldl.Pipeline.default(SIZE).load(path) for path in dataset.paths])
        features = np.asarray(net.predict((pixels - np.float32(127)) / 128, verbose=0)).mean(axis=(1, 2))
        net.export(folder / "net.onnx", format="onnx", verbose=False)
        as_keras = lite.backbone(folder / "weights.npz", name="as_keras")
        as_onnx = onnx.encoder("as_onnx", folder / "net.onnx", SIZE, (127,) * 3, (128,) * 3, "nhwc")
        frame = dataset.table[["sample"]].join(np_frame(features))
        yield dataset, [as_keras, as_onnx, ldl.Embeddings.from_frame("as_table", frame)]


def np_frame(features):
    import pandas as pd

    return pd.DataFrame(features, columns=[f"f{number}" for number in range(features.shape[1])])


@pytest.mark.parametrize("recipe", ["linear_probe", "knn"])
def test_predictions_are_equal_and_features_of_each_net_are_computed_once(three, tmp_path, recipe, monkeypatch):
    monkeypatch.setenv("LEUKEMIA_DL_CACHE", str(tmp_path / "cache"))
    trial_runner._features.cache_clear()
    dataset, specs = three
    recipe = ldl.Recipe.preset(recipe, image_size=SIZE)
    bench = ldl.Benchmark(
        dataset, specs, recipe=recipe, protocol="kfold", folds=[0, 1], seeds=[0, 1], store=tmp_path / "store"
    )
    frame = bench.run(executor="in-process", show_progress=False)
    assert set(frame["status"]) == {"ok"}, frame["error"].tolist()
    table = bench.predictions()
    columns, keys = [f"probability_{name}" for name in dataset.class_names], ["fold", "seed", "side", "sample"]
    first, *others = (table[table["backbone"] == spec.name].sort_values(keys) for spec in specs)
    for other in others:
        assert first["sample"].tolist() == other["sample"].tolist()
        np.testing.assert_allclose(other[columns], first[columns], rtol=0, atol=1e-4)
    kept = sorted(path.name for path in (tmp_path / "cache" / "features").iterdir())
    assert [name.split("-")[0] for name in kept] == ["as_keras", "as_onnx"]  # a table is features already
