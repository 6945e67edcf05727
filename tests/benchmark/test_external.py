"""Trained nets and baselines on another data set, held against what each saved net says by itself."""

import logging

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import log_loss

import grids
import leukemia_dl as ldl
from leukemia_dl.benchmark import external
from leukemia_dl.errors import DataError, ImageError, StoreError
from leukemia_dl.evaluation import apply_temperature, calibration, fit_temperature, score
from leukemia_dl.preprocess import Reinhard

AVERAGED = ldl.Recipe(name="tiny", image_size=32, epochs=1, batch_size=8, tta=True)
CLASSES = ("hem", "all")
P = [f"probability_{name}" for name in CLASSES]


@pytest.fixture(autouse=True)
def _backbones(_own_registry):
    grids.register(grids.tiny, grids.raises)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return grids.elsewhere(tmp_path_factory.mktemp("elsewhere"))


MAP = {"healthy": "hem", "blast": "all", "smudge": None}


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """Two folds and two seeds, with averaged predictions."""
    grids.register(grids.tiny)
    store = tmp_path_factory.mktemp("run") / "store"
    bench = ldl.Benchmark(dataset, ["tiny"], recipe=AVERAGED, folds=[0, 2], seeds=[0, 1], store=store)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FEWEST_GROUPS", "FEWEST_EFFECTIVE"):  # the data set is small: see what follows from a temperature
            patch.setattr(calibration, name, 1)
        bench.run(executor="in-process", show_progress=False)
    return bench


@pytest.fixture(scope="module")
def small(dataset, tmp_path_factory):
    """One net and the baselines."""
    grids.register(grids.tiny)
    bench = ldl.Benchmark(dataset, ["tiny"], recipe=grids.RECIPE, store=tmp_path_factory.mktemp("small"))
    bench.run(executor="in-process", show_progress=False)
    return bench


@pytest.fixture(scope="module")
def results(finished, other):
    return finished.evaluate_on(other, MAP, show_progress=False)


@pytest.fixture(scope="module")
def predictions(finished, other):
    calls, read = [], external.read_images
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(external, "read_images", lambda *a: calls.append(a) or read(*a))
        found = finished.predict_on(other, MAP, show_progress=False)
    assert len(calls) == 1, "pixels were read more than once for all nets"
    return found


def known(other):
    """The rows with a label that counts, and their classes."""
    rows = other.table["label"].isin(["healthy", "blast"]).to_numpy(bool)
    return other.subset(rows), other.table["label"][rows].map(MAP).to_numpy(dtype=object)


def test_a_row_per_net_and_baseline_in_the_columns_of_the_results(finished, results, other):
    own = finished.results()
    assert [name for name in results if name != "test_dataset"] == list(own)
    assert list(results)[list(results).index("test_dataset") - 1] == "dataset"
    results = results[results["trial"] != ""]
    for name in ("backbone", "tta", "protocol", "fold", "seed", "trial", "n_train", "groups_train", "parameters"):
        pd.testing.assert_series_equal(results[name], own[name])
    assert (results.dtypes[list(own)] == own.dtypes).drop(["leaked_groups", "n_val"]).all()
    assert (results["status"] == "ok").all()
    chosen, _ = known(other)
    assert set(results["n_test"]) == {len(chosen)} == {len(other) - 6}
    assert set(results["groups_test"]) == {chosen.table["subject"].nunique()}
    assert set(results["test_dataset"]) == {"dataframe"}
    assert set(results["dataset"]) == {finished.dataset.info.name}
    assert results["synthetic"].all()
    assert results[["n_val", "groups_val", "val_loss", "leaked_groups", "leaked_cells"]].isna().all(axis=None)
    assert (results["leaked_files"] == 0).all()
    assert (results["guarantees"] == "content-disjoint; test-is-not-val").all()
    unfitted = results["flags"].str.contains("temperature stays 1: ")
    assert ((results["temperature"] == 1) == unfitted).all()
    pd.testing.assert_frame_equal(finished.results(), own)


def test_foreign_images_and_unknown_patients_are_flagged_in_every_row(small, tmp_path, caplog):
    """20.21: smears given to nets of cut-out cells, and unknown patients, are flagged beside the numbers."""
    random = np.random.default_rng(0)
    for row in range(6):
        (tmp_path / CLASSES[row % 2]).mkdir(exist_ok=True)
        pixels = random.integers(1, 256, (300, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / CLASSES[row % 2] / f"{row}.png")
    smears = ldl.Dataset.from_folder(tmp_path)
    caplog.clear()
    frame = small.evaluate_on(smears, show_progress=False)
    unlike = "6 of 6 images do not show a cell cut out on black, unlike the training images"
    of_split = {flag for split in small.splits for flag in split.flags}
    own = small.results().set_index("trial")["flags"].str.split("; ")
    for row in frame.itertuples():
        about_net = [flag for flag in own[row.trial] if flag and flag not in of_split]
        assert row.flags == "; ".join(
            ["patients unknown in folder", unlike, *(about_net if row.status == "ok" else [])]
        )
    assert caplog.text.count(unlike) == 1
    known = ldl.load_classifier(small.store.root).provenance["images"]
    assert known["on_black"] == 1
    assert 0 < known["size"][0] < known["size"][1] < 450


def test_flags_about_the_net_are_repeated_and_those_of_the_split_are_not(small, other):
    """20.21: a net that has not converged is still one that has not, on other images."""
    of_split = {flag for split in small.splits for flag in split.flags}
    own = small.results().set_index("trial")["flags"].str.split("; ")
    elsewhere = small.evaluate_on(other, MAP, show_progress=False).set_index("trial")["flags"].str.split("; ")
    about_nets = own.map(lambda flags: set(flags) - of_split - {""})
    assert any("not converged" in flag for flags in about_nets for flag in flags)
    of_data = set.intersection(*map(set, elsewhere))
    for trial, flags in about_nets.items():
        assert set(elsewhere[trial]) == flags | of_data
        assert not of_split & set(elsewhere[trial])


def test_patients_unknown_to_the_benchmark_stay_unknown_elsewhere(dataset, other, tmp_path):
    """20.21: the flag of the benchmark's own rows is repeated."""
    unknown = ldl.Dataset.from_dataframe(dataset.table[["path", "label", "sample"]], class_names=CLASSES)
    options = {"protocol": "random", "allow_leakage": True, "baselines": ["majority"], "store": tmp_path / "s"}
    bench = ldl.Benchmark(unknown, ["tiny"], recipe=grids.RECIPE, **options)
    bench.run(executor="in-process", show_progress=False)
    for frame in (bench.results(), bench.evaluate_on(other, MAP, show_progress=False)):
        assert frame["flags"].str.contains("patients unknown: one may be on several sides").all()


def test_metrics_are_those_of_each_saved_net_by_itself(finished, results, other):
    chosen, truth = known(other)
    codes = np.array([CLASSES.index(name) for name in truth])
    nets = results[results["backbone"].isin(["tiny", "tiny+tta"])]
    assert len(nets) == 8
    assert (nets["temperature"] != 1).any()  # it is 1 where no image of val was called wrongly
    for row in nets.itertuples():
        classifier = ldl.load_classifier(finished.store.root / "trials" / row.trial)
        averaged = row.backbone.endswith("+tta")
        predict = {"tta": averaged, "show_progress": False}
        plain = classifier.predict(chosen, calibrated=False, **predict)[P].to_numpy()
        assert row.accuracy == np.mean(plain.argmax(axis=1) == codes)
        assert row.loss == pytest.approx(-np.log(plain[np.arange(len(codes)), codes]).mean(), abs=1e-5)
        softened = score(codes, classifier.predict(chosen, **predict)[P].to_numpy())
        assert row.temperature == classifier.temperature
        for name in ("loss", "brier", "ece"):
            assert getattr(row, f"{name}_calibrated") == pytest.approx(softened[name], abs=1e-5)


def test_baselines_are_fitted_on_the_train_side_and_predict_the_other(finished, results, predictions, other):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    chosen, truth = known(other)
    own = ldl.benchmark.baselines.measure_cells(finished.dataset, show_progress=False)
    here = ldl.benchmark.baselines.measure_cells(chosen, show_progress=False)
    for split in finished.splits:
        labels = finished.dataset.labels
        scaler = StandardScaler().fit(own.size[split.train])
        model = LogisticRegression(max_iter=1000).fit(scaler.transform(own.size[split.train]), labels[split.train])
        expected = model.predict_proba(scaler.transform(here.size))
        part = predictions.query("backbone == 'cell_size' and fold == @split.fold")
        np.testing.assert_allclose(part[P], expected, atol=1e-9)
        row = results.query("backbone == 'cell_size' and fold == @split.fold").iloc[0]
        assert row["accuracy"] == np.mean(np.array(CLASSES)[expected.argmax(axis=1)] == truth)
        val = model.predict_proba(scaler.transform(own.size[split.val]))
        assert row["temperature"] == pytest.approx(fit_temperature(labels[split.val], val))
        codes = np.array([CLASSES.index(name) for name in truth])
        softened = score(codes, apply_temperature(expected, row["temperature"]))
        assert row["loss_calibrated"] == pytest.approx(softened["loss"])
        majority = predictions.query("backbone == 'majority' and fold == @split.fold")
        np.testing.assert_allclose(majority["probability_all"], labels[split.train].mean())


def test_the_prediction_frame_is_what_evaluation_takes(finished, predictions, results, other):
    own = finished.predictions()
    assert [name for name in predictions if name not in ("repeat", "test_dataset")] == list(own)
    chosen, truth = known(other)
    table = chosen.table.set_index("sample")
    for _, part in predictions.groupby(["trial", "backbone"]):
        assert list(part["sample"]) == list(table.index)
        assert list(part["label"]) == list(truth)
        assert list(part["group"]) == list(table["subject"])
    assert set(predictions["side"]) == {"test"}
    # Means over nets, each of which has predicted every image.
    found = ldl.evaluate(predictions, metrics=["accuracy", "auroc"]).set_index(["backbone", "metric"])
    for name, rows in results.groupby("backbone"):
        for metric in ("accuracy", "auroc"):
            assert found.loc[(name, metric), "value"] == pytest.approx(rows[metric].mean())
        assert found.loc[(name, "accuracy"), "seeds"] == len(rows)
        assert found.loc[(name, "accuracy"), "images"] == len(chosen)
    board = ldl.leaderboard(predictions, results=results, timings=finished.timings()).set_index("backbone")
    assert set(board.index) == {"tiny", "tiny+tta", "tiny (mean of 4 nets)", "majority", "cell_size", "cell_colour"}
    assert board.loc["tiny", "trials"] == 4
    assert not board["flags"].str.contains("incomplete|failed").any()
    pairs = ldl.compare(predictions)
    assert set(pairs["images"]) == {len(chosen)}
    assert (pairs["reason"] == "").all()


def test_nets_of_all_folds_and_seeds_are_averaged_too(predictions, results):
    nets = predictions[predictions["backbone"] == "tiny"]
    mean = nets.groupby("sample", sort=False)[["probability_hem", "probability_all"]].mean()
    labels = nets.drop_duplicates("sample")["label"].to_numpy() == "all"
    (row,) = results[results["backbone"] == "tiny (mean of 4 nets)"].to_dict("records")
    assert row["accuracy"] == pytest.approx(((mean["probability_all"] > 0.5).to_numpy() == labels).mean())
    assert row["loss"] == pytest.approx(log_loss(labels, mean["probability_all"]))
    assert row["n_test"] == len(mean)
    assert row["status"] == "ok"
    assert pd.isna(row["fold"])
    assert row["trial"] == ""


def test_repeated_folds_are_averaged_and_a_mean_says_what_its_nets_have_seen(dataset, tmp_path):
    bench = ldl.Benchmark(
        dataset, ["tiny", "raises"], recipe=grids.RECIPE, baselines=[], store=tmp_path, protocol="kfold", n_folds=2,
        n_repeats=2,
    )  # fmt: skip
    bench.run(executor="in-process", show_progress=False)
    assert "repeat" in bench.predictions()
    rows = bench.evaluate_on(dataset, show_progress=False).set_index("backbone")
    nets, mean = rows.loc[["tiny"]], rows.loc["tiny (mean of 4 nets)"]
    assert len(nets) == 4
    assert mean["leaked_files"] == nets["leaked_files"].max() > 0
    assert all(flag in mean["flags"] for text in nets["flags"] for flag in text.split("; "))
    assert mean["status"] == "ok"


def test_images_that_were_trained_on_are_counted_and_said(small, dataset):
    rows = small.evaluate_on(dataset, show_progress=False)
    count = (dataset.labels >= 0).sum()
    for split in small.splits:
        assert set(rows["leaked_files"]) == {len(split.train)}
        first = (
            f"{len(split.train)} of the {count} images are, byte for byte, on the train side; "
            f"{len(split.val)} of the {count} images are, byte for byte, on the val side; "
        )
        assert rows["flags"].str.startswith(first).all()
        assert rows["flags"].str.contains("temperature stays 1: fewer than 5 groups of a class").all()
        assert set(rows["guarantees"]) == {""}
        watched = external.ExternalTest(
            small.planned, small.store, small.dataset.subset(split.val), None, False
        )._facts(split)
        assert (watched["leaked_files"], watched["guarantees"]) == (0, "")
    # On the test side of each net it says what it said there.
    again = small.predict_on(dataset, show_progress=False)
    own = small.predictions().query("side == 'test'")
    keys = ["trial", "backbone", "sample"]
    joined = own.merge(again, on=keys, suffixes=("", "_again"))
    assert len(joined) == len(own)
    np.testing.assert_allclose(joined["probability_all"], joined["probability_all_again"], atol=1e-5)


def test_classes_that_are_absent_leave_metrics_undefined(small, other):
    frame = small.evaluate_on(other, MAP | {"healthy": None}, show_progress=False)
    assert frame["accuracy"].notna().all()
    pd.testing.assert_series_equal(frame["accuracy"], frame["sensitivity"], check_names=False)
    assert frame[["specificity", "auroc"]].isna().all(axis=None)
    predictions = small.predict_on(other, MAP | {"healthy": None}, show_progress=False)
    assert set(predictions["label"]) == {"all"}
    assert ldl.evaluate(predictions, metrics="accuracy")["value"].notna().all()


@pytest.mark.parametrize(
    ("label_map", "error", "says"),
    [
        (
            None,
            DataError,
            "images of 'blast', 'healthy', 'smudge'; the classes of the benchmark are hem, all. Say what",
        ),
        (
            {"healthy": "hem", "blast": "all"},
            DataError,
            "images of 'smudge'; the classes of the benchmark are hem, all",
        ),
        ({"healty": "hem"}, DataError, "label_map names .'healty'.; .* has the labels blast, healthy, smudge"),
        (MAP | {"smudge": "smudge"}, DataError, "images of 'smudge'"),
        (dict.fromkeys(MAP), DataError, "images of no class; the classes of the benchmark are hem, all"),
    ],
)
def test_labels_that_are_no_classes_are_refused(small, other, label_map, error, says):
    for ask in (small.evaluate_on, small.predict_on):
        with pytest.raises(error, match=says):
            ask(other, label_map, show_progress=False)


def test_steps_that_were_fitted_travel_with_the_net(dataset, other, tmp_path, monkeypatch):
    pipeline = ldl.Pipeline.default(32, canvas=450).then(Reinhard())
    bench = ldl.Benchmark(
        dataset, ["tiny"], recipe=grids.RECIPE, folds=[0, 2], baselines=[], store=tmp_path, pipeline=pipeline
    )
    bench.run(executor="in-process", show_progress=False)
    calls = []
    read = external.read_images
    monkeypatch.setattr(external, "read_images", lambda *a: calls.append(a) or read(*a))
    found = bench.predict_on(other, MAP, show_progress=False)
    assert len(calls) == 1  # what comes before the fitted step
    chosen, _ = known(other)
    for trial, part in found.groupby("trial"):
        classifier = ldl.load_classifier(tmp_path / "trials" / trial)
        expected = classifier.predict(chosen, calibrated=False, show_progress=False)
        np.testing.assert_allclose(part["probability_all"], expected["probability_all"], atol=1e-5)


def test_images_of_several_sizes_come_together_after_the_whole_pipeline(dataset, other, tmp_path):
    """A step that is fitted before a common size is reached."""
    pipeline = ldl.Pipeline((Reinhard(), *ldl.Pipeline.default(32, canvas=450).steps))
    bench = ldl.Benchmark(dataset, ["tiny"], recipe=grids.RECIPE, baselines=[], store=tmp_path, pipeline=pipeline)
    bench.run(executor="in-process", show_progress=False)
    chosen, _ = known(other)
    pixels = [chosen.decode(row)[: 400 + row] for row in range(12)]
    for row, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{row}.png")
    table = pd.DataFrame({"path": [f"{row}.png" for row in range(12)], "label": ["hem", "all"] * 6})
    found = bench.predict_on(ldl.Dataset.from_dataframe(table, images_root=tmp_path), show_progress=False)
    expected = ldl.load_classifier(tmp_path).predict(pixels, calibrated=False, show_progress=False)
    np.testing.assert_allclose(found["probability_all"], expected["probability_all"], atol=1e-5)


def test_a_net_that_is_not_there_is_a_row_that_says_so(dataset, other, tmp_path, caplog):
    settings = {"recipe": grids.RECIPE, "seeds": [0, 1, 2], "baselines": ["majority"], "store": tmp_path}
    bench = ldl.Benchmark(dataset, ["tiny", "raises"], **settings)
    bench.run(executor="in-process", show_progress=False)
    trials = [tmp_path / "trials" / name for name in bench.results().query("backbone == 'tiny'")["trial"]]
    (trials[0] / "model.keras").unlink()
    whole = (trials[1] / "model.keras").read_bytes()
    (trials[1] / "model.keras").write_bytes(whole[:-100] + b"x" * 100)
    (trials[2] / "record.json").write_text("{")
    frame = bench.evaluate_on(other, MAP, show_progress=False)
    assert list(frame["backbone"]) == ["tiny"] * 3 + ["raises"] * 3 + ["majority"]
    assert list(frame["status"]) == ["failed"] * 6 + ["ok"]
    assert list(frame["exception"][:3]) == ["StoreError", "StoreError", "DamagedRecordError"]
    assert f"{trials[2]} is damaged" in frame["message"][2]
    assert frame["message"][0].startswith("model.keras is not there: run with save_models=True")
    assert "model.keras has another checksum" in frame["message"][1]
    assert (frame["traceback"] != "").tolist() == [False] * 3 + [True] * 3 + [False]
    assert frame.loc[:4, ["accuracy", "temperature", "loss_calibrated"]].isna().all(axis=None)
    assert (frame["n_test"] == len(known(other)[0])).all()
    with caplog.at_level(logging.WARNING):
        found = bench.predict_on(other, MAP, show_progress=False)
    assert set(found["backbone"]) == {"majority"}
    assert caplog.text.count("is left out") == 6
    assert "save_models=True" in caplog.text


def test_nets_that_were_not_kept(dataset, other, tmp_path):
    bench = ldl.Benchmark(
        dataset, ["tiny"], recipe=grids.RECIPE, baselines=[], store=tmp_path, save_models=False, protocol="published_v1"
    )
    bench.run(executor="in-process", show_progress=False)
    (row,) = bench.evaluate_on(other, MAP, show_progress=False).to_dict("records")
    assert (row["status"], row["exception"]) == ("failed", "StoreError")
    assert "save_models=True" in row["message"]
    assert bench.predict_on(other, MAP, show_progress=False).empty


def test_nothing_is_calibrated_where_val_was_the_test_side(dataset, other, tmp_path):
    bench = ldl.Benchmark(
        dataset, ["tiny"], recipe=grids.RECIPE, folds=[2], store=tmp_path, protocol=["official_clean", "published_v1"]
    )
    bench.run(executor="in-process", show_progress=False)
    frame = bench.evaluate_on(other, MAP, show_progress=False).set_index("protocol")
    assert (frame["status"] == "ok").all()
    calibrated = frame[["temperature", "loss_calibrated", "brier_calibrated", "ece_calibrated"]].notna()
    assert calibrated.loc["official_clean"].all(axis=None)
    assert not calibrated.loc["published_v1"].any(axis=None)
    # Nets of both protocols on data that neither has seen: what is left then is no leak.
    found = bench.predict_on(other, MAP, show_progress=False)
    table = ldl.inflation(found, "official_clean", "published_v1").set_index("backbone")
    accuracy = frame.set_index("backbone", append=True)["accuracy"]
    for name in ("tiny", "majority", "cell_size", "cell_colour"):
        expected = accuracy[("published_v1", name)] - accuracy[("official_clean", name)]
        assert table.loc[name, "difference"] == pytest.approx(expected)


def test_a_store_without_trials_says_to_run(dataset, other, tmp_path):
    bench = ldl.Benchmark(dataset, ["tiny"], recipe=grids.RECIPE, store=tmp_path / "nothing")
    for ask in (bench.evaluate_on, bench.predict_on):
        with pytest.raises(StoreError, match=r"holds no trial of this benchmark.*Call run\(\) first"):
            ask(other, MAP, show_progress=False)
    assert not (tmp_path / "nothing").exists()


def test_fields_of_view_have_no_baseline_of_cells(small, tmp_path, write_image):
    for label in CLASSES:
        for number in range(2):
            write_image(tmp_path / label / f"{number}.png", number=number + 10 * (label == "all"), size=40)
    fields = ldl.Dataset.from_folder(tmp_path)
    frame = small.evaluate_on(fields, show_progress=False)
    status = frame.groupby("backbone")["status"].unique().map(list).to_dict()
    assert status == {
        "tiny": ["ok"],
        "majority": ["ok"],
        "cell_size": ["not_applicable"],
        "cell_colour": ["not_applicable"],
    }
    cells = frame[frame["status"] == "not_applicable"]
    assert cells["message"].str.startswith("0% of the test images show a single cell on a black background").all()
    assert cells["accuracy"].isna().all()
    assert frame["groups_test"].isna().all()
    assert set(small.predict_on(fields, show_progress=False)["backbone"]) == {"tiny", "majority"}


def test_an_image_that_cannot_be_decoded_is_an_error_of_the_data(small, tmp_path, write_image):
    paths = [write_image(tmp_path / label / "0.png", size=40) for label in CLASSES]
    paths[0].write_bytes(paths[0].read_bytes()[:60])
    with pytest.raises(ImageError, match=r"hem/0\.png"):
        small.evaluate_on(ldl.Dataset.from_folder(tmp_path), show_progress=False)
