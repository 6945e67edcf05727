"""The best net is chosen on val and only on val; a store gives it, or the mean of all its nets."""

import numpy as np
import pandas as pd
import pytest

import command
import grids
import leukemia_dl as ldl
import stores
from leukemia_dl.benchmark.best import best_net
from leukemia_dl.benchmark.run_files import read_run
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import score


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    store = tmp_path_factory.mktemp("best") / "store"
    stores.made_up(store, stores.cells(400, 60), protocol="kfold", n_folds=3, folds=[0, 1], seeds=[0, 1])
    return read_run(store)


def value(rows, metric):
    labels = (rows["label"] == "all").to_numpy(int)
    return score(labels, rows[["probability_hem", "probability_all"]].to_numpy())[metric]


@pytest.mark.parametrize("metric", ["accuracy", "loss", "auroc"])
def test_the_best_backbone_is_that_of_the_best_mean_on_val_and_the_net_its_best_trial(made, metric):
    found, frame = best_net(made, metric), made.predictions.query("kind == 'backbone'")
    on_val = frame[frame["side"] == "val"].groupby(["backbone", "trial"]).apply(value, metric, include_groups=False)
    sign = -1 if metric == "loss" else 1
    assert found["backbone"] == (sign * on_val).groupby(level=0).mean().idxmax()
    assert found["trial"] == (sign * on_val[found["backbone"]]).idxmax()
    assert found["val"] == pytest.approx(on_val[found["backbone"], found["trial"]])
    board = ldl.leaderboard(frame, metric).set_index("backbone").loc[found["backbone"]]
    assert found[["test", "low", "high"]].tolist() == pytest.approx(board[[metric, "low", "high"]].tolist())
    assert found["path"] is None
    with pytest.raises(DataError, match="is not in the store: run with save_models=True"):
        ldl.load_classifier(found)


def test_the_test_side_chooses_nothing(made, monkeypatch):
    before = best_net(made, "accuracy")
    frame = made.predictions.copy()
    columns, tested = ["probability_hem", "probability_all"], frame["side"] == "test"
    frame.loc[tested, columns] = frame.loc[tested, columns[::-1]].to_numpy()
    monkeypatch.setitem(vars(made), "predictions", frame)
    after = best_net(made, "accuracy")
    assert after[["backbone", "trial", "val"]].tolist() == before[["backbone", "trial", "val"]].tolist()
    assert after["test"] != before["test"]


def test_the_metric_is_that_of_the_settings_and_backbones_that_are_not_worse_are_named(made, caplog):
    assert best_net(made)["metric"] == made.settings["benchmark"]["primary_metric"]
    caplog.clear()
    found = best_net(made, "accuracy")
    other = "vgg16" if found["backbone"] == "cnn" else "cnn"
    assert found["not_worse"] == other
    expected = f"{found['backbone']} is best on val; on test it is not significantly better than {other}"
    assert expected in caplog.text
    for metric in ("prevalence", "nonsense"):
        with pytest.raises((DataError, SettingsError), match="metric"):
            best_net(made, metric)


def test_a_val_side_that_is_the_test_side_chooses_nothing(made, monkeypatch):
    frame = made.predictions
    nets = frame[(frame["kind"] == "backbone") & (frame["side"] == "test")]
    monkeypatch.setitem(vars(made), "predictions", pd.concat([nets, nets.assign(side="val")]))
    with pytest.raises(DataError, match="Val and test side share images here"):
        best_net(made, "accuracy")


def test_a_store_gives_the_best_net_and_the_mean_of_all(dataset, tmp_path):
    grids.register(grids.tiny)
    bench = ldl.Benchmark(
        dataset, ["tiny"], recipe=grids.RECIPE, protocol="kfold", n_folds=3, folds=[0, 1], store=tmp_path / "s"
    )
    bench.run(executor="in-process", show_progress=False)
    row = bench.best("accuracy")
    images = dataset.paths[:5]
    columns = [f"probability_{name}" for name in dataset.class_names]
    files = sorted(tmp_path.glob("s/trials/*/model.keras"))
    each = [ldl.load_classifier(file).predict(images)[columns] for file in files]
    assert len(each) == 2
    one = ldl.load_classifier(row).predict(images)
    assert one.equals(ldl.load_classifier(tmp_path / "s", "best", metric="accuracy").predict(images))
    together = ldl.load_classifier(tmp_path / "s", "ensemble")
    frame = together.predict(images, show_progress=False)
    np.testing.assert_allclose(frame[columns], np.mean(each, axis=0), atol=1e-7)
    assert frame["predicted"].tolist() == [dataset.class_names[i] for i in frame[columns].to_numpy().argmax(axis=1)]
    with pytest.raises(DataError, match="several models"):
        ldl.load_classifier(tmp_path / "s")
    with pytest.raises(SettingsError, match="which must be one of"):
        ldl.load_classifier(tmp_path / "s", "worst")
    with pytest.raises(DataError, match="Choose one of the protocols of trained nets: kfold"):
        bench.best(protocol="random")
    said = command.run("best", tmp_path / "s", "--metric", "accuracy").stdout
    assert f"Backbone: tiny, accuracy {row['test']:.3f} on test" in said
    assert f"Predict:  leukemia-dl predict {row['path']} IMAGES" in said.replace("\n", "")
    files[0].write_bytes(files[1].read_bytes())
    with pytest.raises(DataError, match=r"Not all nets can be used: tiny.*another checksum"):
        ldl.load_classifier(tmp_path / "s", "ensemble")


def test_an_ensemble_needs_nets_of_the_same_classes():
    with pytest.raises(SettingsError, match="no classifier"):
        ldl.Ensemble(())
