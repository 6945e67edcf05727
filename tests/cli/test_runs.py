"""`leukemia-dl runs`: what it prints, how it ends, and what is left in the store."""

import dataclasses
import sys

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from leukemia_dl import cli
from leukemia_dl.benchmark import Record, Store, Trial
from leukemia_dl.errors import DamagedRecordError, SettingsError, StoreError, UnknownNameError

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
    history=pd.DataFrame({"epoch": [1, 2], "loss": [0.7, 1 / 3]}),
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


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, ["runs", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def fails(*arguments):
    return CliRunner().invoke(cli.app, ["runs", *map(str, arguments)]).exception


def rows_of(text):
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def test_list(store):
    assert rows_of(run("list", store.root)) == [
        [TRIAL.folder, "ok", "", "", "0.812", "0.250", "12.3", "2026-01-02T03:04:05Z", "yes"],
        [FAILED.trial.folder, "failed", "", "", "", "", "", "", "no"],
    ]
    assert run("list", store.root).splitlines()[-1] == f"{store.root}: 2 records, 1 failed, 1 ok"
    (store.folder(TRIAL) / "record.json").write_text("{")
    names = [(row[0], row[1]) for row in rows_of(run("list", store.root))]
    assert names == [(FAILED.trial.folder, "failed"), (TRIAL.folder, "damaged")]


def test_a_store_without_records(tmp_path):
    (tmp_path / "trials").mkdir()
    assert run("list", tmp_path) == f"{tmp_path}: 0 records\n"
    assert run("verify", tmp_path) == "OK: 0 records\n"
    assert "results.csv" in run("export", tmp_path)


@pytest.mark.parametrize("command", ["list", "verify", "export"])
def test_what_is_no_store_is_refused(command, tmp_path):
    error = fails(command, tmp_path / "nowhere")
    assert isinstance(error, StoreError)
    assert "is no store: it has no folder trials/" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_show(store):
    text = run("show", store.root, TRIAL.digest[:6])
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        TRIAL.folder, f"digest {TRIAL.digest}", "status ok", "dataset synthetic d", "pipeline Resize",
        "recipe epochs 2", "protocol official", "fold 2", "n_test 2", "seconds 12.34", "machine Linux",
        "accuracy 0.8125", "loss 0.25",
        "note: few groups", "note: another flag",
    ):  # fmt: skip
        assert line in lines
    assert rows_of(text) == [["1", "0.7"], ["2", "0.3333"]]
    assert "Traceback" not in text


def test_a_trial_is_found_by_the_beginning_of_its_name_or_digest(store):
    for text in (TRIAL.folder, TRIAL.folder[:-1], "cnn", TRIAL.digest[:8], TRIAL.digest):
        assert run("show", store.root, text).startswith(TRIAL.folder)
    store.write(dataclasses.replace(RECORD, trial=dataclasses.replace(TRIAL, seed=1)))
    assert "2 trials begin with 'cnn': cnn-official-fold2-seed0" in str(fails("show", store.root, "cnn"))
    for wrong in ("zzz", f"../trials/{TRIAL.folder}"):
        assert "There is no trial" in str(fails("show", store.root, wrong))


def test_show_a_failure(store):
    text = run("show", store.root, "alex")
    assert "failed: ValueError: too small\n\nTraceback (most recent call last):\nValueError: too small\n" in text
    assert text.endswith(f"Log: {store.logs(FAILED.trial) / 'log.txt'}\n")


def test_show_averaged_predictions_beside(store):
    store.write(dataclasses.replace(RECORD, metrics_tta={"accuracy": 1.0, "loss": 0.5}))
    plain, averaged = run("show", store.root, "cnn").split("Metrics over 8 symmetries\n")
    assert ["accuracy", "0.8125"] in [line.split() for line in plain.splitlines()]
    assert [line.split() for line in averaged.splitlines()[:2]] == [["accuracy", "1"], ["loss", "0.5"]]


def test_show_what_is_not_there_or_damaged(store):
    store.write(dataclasses.replace(RECORD, trial=dataclasses.replace(TRIAL, seed=1)))
    assert isinstance(fails("show", store.root, "cnn"), SettingsError)
    error = fails("show", store.root, "alexnt")
    assert isinstance(error, UnknownNameError)
    assert FAILED.trial.folder in str(error)
    (store.folder(FAILED.trial) / "record.json").write_text("{")
    assert isinstance(fails("show", store.root, "alexnet"), DamagedRecordError)


def test_verify(store):
    """20.42: damaged files are listed, and there is one remedy for all."""
    assert run("verify", store.root) == "OK: 2 records\n"
    with (store.folder(TRIAL) / "model.keras").open("r+b") as file:
        file.write(b"x")
    (store.folder(FAILED.trial) / "traceback.txt").unlink()
    lines = run("verify", store.root, code=1).splitlines()
    assert lines[0].startswith(f"{FAILED.trial.folder}: ")
    assert "FileNotFoundError: " in lines[0]
    assert lines[1] == f"{TRIAL.folder}: model.keras has another checksum than SHA256SUMS says"
    assert lines[2] == "DAMAGED: 2 of 2 records"
    assert lines[3:] == ["Run the same benchmark again: it runs the trials of these records again."]


def test_export(store):
    assert run("export", store.root) == f"Written: {store.root}/results.csv, timings.csv\n"
    results = pd.read_csv(store.root / "results.csv")
    assert list(results["trial"]) == sorted([TRIAL.folder, FAILED.trial.folder])
    assert list(results["status"]) == ["failed", "ok"]
    assert results["accuracy"].iloc[1] == 0.8125
    assert pd.read_csv(store.root / "timings.csv")["seconds"].iloc[1] == 12.34
    (store.folder(FAILED.trial) / "record.json").write_text("{")
    run("export", store.root)
    assert len(pd.read_csv(store.root / "results.csv")) == 1


def test_ctrl_c_in_a_command_of_a_group_is_one_calm_line(store, monkeypatch, capsys):
    def interrupted(store):
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "verify", interrupted)
    monkeypatch.setattr(sys, "argv", ["leukemia-dl", "runs", "verify", str(store.root)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\nStopped. Finished trials are kept; the same command goes on from there.\n"
