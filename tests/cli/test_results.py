"""`leukemia-dl evaluate | report | runs`: tables of predictions, the page of a store, and its records."""

import dataclasses
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import command
import leukemia_dl as ldl
import stores
from leukemia_dl.benchmark import Record, Store, Trial
from leukemia_dl.cli import app, main
from leukemia_dl.errors import DataError, SettingsError, StoreError
from predictions import clustered

SMALL = ((5, 9, 12, 30, 8, 20), (7, 3, 25, 11, 6))


@pytest.fixture
def run():
    def run(*arguments):
        result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.output

    return run


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "predictions.csv"
    clustered(SMALL, ["cnn", "vgg16", "xception"]).to_csv(path, index=False)
    return path


def test_the_table_and_a_sentence_per_pair_are_printed(run, file):
    output = run(file, "--metric", "auroc")
    table = ldl.leaderboard(clustered(SMALL, ["cnn", "vgg16", "xception"]), "auroc")
    for value in table[["auroc", "low", "high"]].to_numpy().ravel():
        assert f"{value:.3f}" in output
    assert output.count("\n- On 136 images of 11 groups of patients, AUROC is") == 3
    assert "best of 3 on this side" in output


def test_patients_and_classes_have_tables_of_their_own(run, file):
    patients = run(file, "--unit", "patient")
    assert "11 patients, each predicted as a whole" in patients
    classes = run(file, "--by", "class")
    table = ldl.evaluate(clustered(SMALL, ["cnn", "vgg16", "xception"]), by="class")
    assert all(name in classes for name in ("recall", "precision", "f1"))
    for value in table["value"]:
        assert f"{value:.3f}" in classes
    with pytest.raises(SettingsError, match="unit must be one of"):
        run(file, "--unit", "person")


def test_where_nothing_can_be_tested_the_reason_is_the_first_line(run, tmp_path):
    """20.3: no rank, no interval and no verdict with fewer than five groups; the reason and their number come first."""
    clustered(((5, 9, 12), (7, 3)), ["cnn", "vgg16"]).to_csv(tmp_path / "few.csv", index=False)
    first, *rest = run(tmp_path / "few.csv").splitlines()
    reason = "fewer than 5 groups: 2 of class hem (3 missing), 3 of class all (2 missing)"
    assert first == f"Not testable, {reason} (36 images of 5 groups of patients): no ranks and no intervals."
    output = "\n".join(rest)
    assert "accuracy, side test, without intervals" in output
    assert "Not testable" not in output
    assert reason not in output  # once is enough
    for verdict in ("rank", "intervals are", "best of", "better"):
        assert verdict not in output


def test_a_store_is_read_with_its_costs(run, tmp_path):
    stores.made_up(tmp_path, stores.cells(), ["cnn", "vgg16"])
    output = run(tmp_path)
    assert "4000" in output  # parameters of cnn
    assert "15" in output  # seconds of vgg16


def test_records_are_the_truth_and_exports_are_not_read(run, tmp_path):
    """20.2: after a second run in Python, `evaluate STORE` shows its trials too, whatever predictions.csv holds."""
    first = stores.made_up(tmp_path, stores.cells(), ["cnn"])
    first.predictions().to_csv(tmp_path / "predictions.csv", index=False)
    for name in ("results", "timings"):
        (tmp_path / f"{name}.csv").write_text("backbone,parameters,fit_seconds,status\ncnn,77777,88888,failed\n")
    both = stores.made_up(tmp_path, stores.cells(), ["cnn"], seeds=[0, 1], learned=0.1)
    output = run(tmp_path)
    expected = ldl.leaderboard(both.predictions()).set_index("backbone")["accuracy"]
    (row,) = [line for line in output.splitlines() if "│ cnn " in line]
    cells = [cell.strip() for cell in row.split("│")]
    place = cells.index(f"{expected['cnn']:.3f}")
    assert cells.count("2") == 2, cells[place:]  # trials, seeds
    assert not any(text in output for text in ("77777", "88888", "failed"))


def test_costs_and_flags_are_of_the_trials_that_are_evaluated(run, tmp_path):
    """20.2: neither failures nor costs of other benchmarks or protocols of a store are shown."""
    dataset = stores.cells()
    stores.made_up(tmp_path, dataset, ["cnn"], recipe="quick", seeds=[0, 1], failed=[1])
    good = stores.made_up(tmp_path, dataset, ["cnn"], recipe="from_scratch", protocol=["holdout", "kfold"], failed=[4])
    assert "1 failed" in run(tmp_path / "grids" / grid_of("quick", tmp_path))
    folder = tmp_path / "grids" / grid_of("from_scratch", tmp_path)
    assert "failed" not in run(folder, "--protocol", "holdout")
    assert "1 failed" in run(folder, "--protocol", "kfold")
    assert folder.name in str(good.stored().folder)


def grid_of(recipe, store):
    return next(
        p.name for p in (store / "grids").iterdir() if f'name = "{recipe}"' in (p / "settings.toml").read_text()
    )


def test_a_sweep_in_one_store_asks_for_one_benchmark(run, tmp_path):
    """20.7: two learning rates in one store are never one row; the error names the folder and settings of each."""
    for rate in (0.003, 0.01):
        recipe = ldl.Recipe.preset("quick", learning_rate=rate)
        stores.made_up(tmp_path, stores.cells(), ["cnn"], recipe=recipe)
    with pytest.raises(StoreError, match=r"(?=.*learning_rate=0\.003).*learning_rate=0\.01"):
        run(tmp_path)


def test_one_of_several_protocols_is_chosen(run, tmp_path):
    frames = [
        clustered(SMALL, ["cnn", "vgg16"]).assign(protocol="kfold"),
        clustered(SMALL, ["cnn", "vgg16"], seed=5).assign(protocol="random"),
    ]
    pd.concat(frames).to_csv(tmp_path / "both.csv", index=False)
    with pytest.raises(DataError, match="protocol"):
        run(tmp_path / "both.csv")
    value = ldl.leaderboard(frames[1])["accuracy"].iloc[0]
    assert f"{value:.3f}" in run(tmp_path / "both.csv", "--protocol", "random")
    with pytest.raises(DataError, match="--protocol chooses one of those of the predictions: kfold, random"):
        run(tmp_path / "both.csv", "--protocol", "ramdom")


def test_every_metric_goes_to_a_file(run, file, tmp_path):
    run(file, "--csv", tmp_path / "all.csv")
    written = pd.read_csv(tmp_path / "all.csv")
    expected = ldl.evaluate(clustered(SMALL, ["cnn", "vgg16", "xception"]))
    assert list(written) == list(expected)
    np.testing.assert_allclose(written["low"], expected["low"])


def test_a_class_called_na_is_a_class(run, tmp_path):
    frame = (
        clustered(SMALL, ["cnn"])
        .replace({"label": {"all": "NA"}})
        .rename(columns={"probability_all": "probability_NA"})
    )
    frame.to_csv(tmp_path / "p.csv", index=False)
    assert "cnn" in run(tmp_path / "p.csv")


def test_one_model_without_groups_has_intervals_over_images(run, tmp_path):
    clustered(SMALL, ["cnn"])[["label", "probability_hem", "probability_all"]].to_csv(tmp_path / "p.csv", index=False)
    output = run(tmp_path / "p.csv")
    assert "low" in output
    assert "these fitted models on new images" in output


def test_what_cannot_be_read_is_one_clear_error(run, file, tmp_path):
    with pytest.raises(DataError, match=r"cannot be read as CSV: .*No such file"):
        run(tmp_path / "nothing.csv")
    with pytest.raises(SettingsError, match=r"metric must be one of.*'speed'"):
        run(file, "--metric", "speed")
    for text in ("", "a,b\n1,2\n", "label,probability_a\nx,1\n"):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(DataError):
            run(tmp_path / "bad.csv")
    (tmp_path / "bad.csv").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe\x00")
    with pytest.raises(DataError):
        run(tmp_path / "bad.csv")
    (tmp_path / "bad.csv").write_text("label,probability_a,probability_b\na,yes,no\n")
    with pytest.raises(DataError, match="numbers"):
        run(tmp_path / "bad.csv")


def test_a_store_that_python_made_has_no_such_file_and_is_read_all_the_same(run, tmp_path):
    stores.made_up(tmp_path / "s", stores.cells(), ["cnn"])
    assert "cell_size" in run(tmp_path / "s")
    stores.made_up(tmp_path / "t", stores.cells(), ["cnn"], failed=range(4))
    with pytest.raises(DataError, match="no trial was finished"):
        run(tmp_path / "t")


def test_a_benchmark_ends_with_its_report_and_cards(finished):
    store, answer = finished
    assert f"Report:   {store / 'report.html'}" in answer.stdout
    assert f"Cards:    {store / 'cards'} (1)" in answer.stdout
    text = (store / "report.html").read_text()
    assert "Every image was checked" in text
    assert (store / "audit.json").is_file()


def test_the_report_is_rebuilt_from_the_store_alone(finished, tmp_path):
    store, _ = finished
    page = (store / "report.html").read_bytes()
    copy = tmp_path / "sent"
    shutil.copytree(store, copy)
    (copy / "report.html").unlink()
    answer = command.run("report", copy)
    assert answer.returncode == 0, answer.stderr
    assert (copy / "report.html").read_bytes() == page


def test_a_data_set_that_has_moved_is_found_by_root(finished, synthetic_root, tmp_path):
    store, _ = finished
    copy = tmp_path / "sent"
    shutil.copytree(store, copy)
    settings = stores.run_folder(copy) / "settings.toml"
    settings.write_text(settings.read_text().replace(f'root = "{synthetic_root}', 'root = "/nowhere'))
    answer = command.run("report", copy, "--output", tmp_path / "without.html", "--no-cards")
    assert answer.returncode == 0, answer.stderr
    assert "This page has no images" in (tmp_path / "without.html").read_text()
    answer = command.run(
        "report", copy, "--root", synthetic_root, "--output", tmp_path / "new" / "with.html", "--no-cards"
    )
    assert "This page has no images" not in (tmp_path / "new" / "with.html").read_text()  # its folder is made
    assert "Cards" not in answer.stdout


def test_what_is_wrong_is_said(tmp_path):
    assert "is not the store of a benchmark" in command.fails("report", tmp_path)


TRIAL = Trial(
    "backbone", "cnn", "p", "1", None, "d", "s", {"steps": [{"step": "Resize"}]}, {"epochs": 2}, 0, "tensorflow",
    "official", 2,
)  # fmt: skip
RECORD = Record(
    TRIAL,
    "ok",
    row={"dataset": "synthetic", "n_test": 2, "flags": "few groups; another flag", "fold": 2, "seed": 0},
    metrics={"accuracy": 0.8125, "loss": 0.25},
    timings={"seconds": 12.34, "finished": "2026-01-02T03:04:05Z", "machine": "Linux"},
    sides=np.array(["val", "test"]),
    samples=np.array(["a", "b"]),
    labels=np.array([0, 1]),
    probabilities=np.array([[0.25, 0.75], [1 / 3, 2 / 3]]),
)
FAILED = Record(
    dataclasses.replace(TRIAL, backbone="alexnet"), "failed", exception="ValueError", message="too small",
    traceback="Traceback (most recent call last):\nValueError: too small\n",
)  # fmt: skip


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    store.create()
    store.write(RECORD, model=bytes(2_500_000))
    store.write(FAILED)
    store.logs(FAILED.trial).mkdir(parents=True)
    (store.logs(FAILED.trial) / "log.txt").write_text("begins\n")
    return store


def runs(*arguments, code=0):
    result = CliRunner().invoke(app, ["runs", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def rows_of(text):
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def test_list(store):
    assert rows_of(runs("list", store.root)) == [
        [TRIAL.folder, "ok", "", "", "0.812", "0.250", "12.3", "2026-01-02T03:04:05Z", "yes"],
        [FAILED.trial.folder, "failed", "", "", "", "", "", "", "no"],
    ]
    assert runs("list", store.root).splitlines()[-1] == f"{store.root}: 2 records, 1 failed, 1 ok"
    (store.folder(TRIAL) / "record.json").write_text("{")
    names = [(row[0], row[1]) for row in rows_of(runs("list", store.root))]
    assert names == [(FAILED.trial.folder, "failed"), (TRIAL.folder, "damaged")]


def test_a_store_without_records(tmp_path):
    (tmp_path / "trials").mkdir()
    assert runs("list", tmp_path) == f"{tmp_path}: 0 records\n"
    assert runs("verify", tmp_path) == "OK: 0 records\n"


@pytest.mark.parametrize("command", ["list", "verify"])
def test_what_is_no_store_is_refused(command, tmp_path):
    error = CliRunner().invoke(app, ["runs", command, str(tmp_path / "nowhere")]).exception
    assert isinstance(error, StoreError)
    assert "is no store: it has no folder trials/" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_verify(store):
    """20.42: damaged files are listed, and there is one remedy for all."""
    assert runs("verify", store.root) == "OK: 2 records\n"
    with (store.folder(TRIAL) / "model.keras").open("r+b") as file:
        file.write(b"x")
    (store.folder(FAILED.trial) / "traceback.txt").unlink()
    lines = runs("verify", store.root, code=1).splitlines()
    assert lines[0].startswith(f"{FAILED.trial.folder}: ")
    assert "FileNotFoundError: " in lines[0]
    assert lines[1] == f"{TRIAL.folder}: model.keras has another checksum than SHA256SUMS says"
    assert lines[2:] == ["DAMAGED: 2 of 2 records. Run the same benchmark again: it runs these trials again."]


def test_ctrl_c_in_a_command_of_a_group_is_one_calm_line(store, monkeypatch, capsys):
    def interrupted(store):
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "verify", interrupted)
    monkeypatch.setattr(sys, "argv", ["leukemia-dl", "runs", "verify", str(store.root)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\nStopped. Finished trials are kept; the same command goes on from there.\n"
