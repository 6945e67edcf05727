import dataclasses
import json
import math
import os

import numpy as np
import pandas as pd
import pytest

from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.trial import Record, Trial
from leukemia_dl.errors import StoreError

TRIAL = Trial("backbone", "cnn", "p", "1", None, "d", "s", {"steps": []}, {"epochs": 1}, 0, "tensorflow", "official", 2)
RECORD = Record(
    TRIAL,
    "ok",
    row={"n_train": 3, "fold": 2, "seed": None},
    metrics={"accuracy": 0.1 + 0.2, "auroc": math.nan},
    timings={"seconds": 1.5},
    history=pd.DataFrame({"epoch": [1, 2], "loss": [0.7, 1 / 3]}),
    sides=np.array(["val", "test"]),
    samples=np.array(["a", "ü"]),
    labels=np.array([0, 1]),
    probabilities=np.array([[0.25, 0.75], [1 / 3, 2 / 3]]),
)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    store.create()
    return store


def entries(store):
    return sorted(path.name for path in store.trials.iterdir())


def test_a_record_comes_back_to_the_bit(store):
    store.write(RECORD, save_model=lambda path: path.write_text("model"))
    back = store.read(TRIAL)
    assert back.status == "ok"
    assert back.row == RECORD.row
    assert back.metrics["accuracy"] == RECORD.metrics["accuracy"]
    assert math.isnan(back.metrics["auroc"])
    pd.testing.assert_frame_equal(back.history, RECORD.history, check_exact=True)
    for name in ("sides", "samples", "labels", "probabilities"):
        np.testing.assert_array_equal(getattr(back, name), getattr(RECORD, name))
    assert (store.folder(TRIAL) / "model.keras").read_text() == "model"
    assert entries(store) == [TRIAL.folder]


def test_what_was_never_written_is_none(store):
    assert store.read(TRIAL) is None
    assert Store(store.root / "nowhere").read(TRIAL) is None


def test_a_second_record_replaces_the_first_whole(store):
    store.write(RECORD, save_model=lambda path: path.write_text("model"))
    store.write(dataclasses.replace(RECORD, status="failed", error="E", history=pd.DataFrame()))
    back = store.read(TRIAL)
    assert (back.status, back.error, len(back.history)) == ("failed", "E", 0)
    assert not (store.folder(TRIAL) / "model.keras").exists()
    assert entries(store) == [TRIAL.folder]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")])
def test_a_failed_write_leaves_what_was_there(store, error):
    store.write(RECORD)

    def fail(path):
        path.write_text("half")
        raise error

    with pytest.raises(StoreError if isinstance(error, OSError) else type(error)):
        store.write(dataclasses.replace(RECORD, error="second"), save_model=fail)
    assert store.read(TRIAL).error == ""
    assert entries(store) == [TRIAL.folder]


def test_a_damaged_record_is_an_error_that_names_it(store):
    folder = store.write(RECORD)
    for name in ("record.json", "probabilities.npz"):
        whole = (folder / name).read_bytes()
        for cut in (0, 1, len(whole) // 2, len(whole) - 1):
            (folder / name).write_bytes(whole[:cut])
            with pytest.raises(StoreError, match=f"{TRIAL.folder} is damaged"):
                store.read(TRIAL)
        (folder / name).write_bytes(whole)
    assert store.read(TRIAL) is not None


def test_another_format_is_refused(store):
    path = store.write(RECORD) / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    with pytest.raises(StoreError, match="format 1; this version reads 2"):
        store.read(TRIAL)


def test_a_record_of_another_trial_in_the_same_folder_is_not_taken(store):
    path = store.write(RECORD) / "record.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"trial": saved["trial"] | {"seed": 1}}))
    assert store.read(TRIAL) is None


def test_a_store_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written: .*--store"):
        Store(tmp_path / "file").create()


def test_a_store_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    user = os.geteuid()
    if user == 0:  # root may write anywhere
        os.seteuid(65534)
    try:
        with pytest.raises(StoreError, match="Permission denied"):
            Store(tmp_path / "store").create()
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o700)


def test_text_files_are_replaced_whole(store):
    store.write_text("results.csv", "a\n")
    store.write_text("results.csv", "b\n")
    assert (store.root / "results.csv").read_bytes() == b"b\n"
    assert sorted(path.name for path in store.root.iterdir()) == ["results.csv", "trials"]


def test_two_writers_of_one_trial_never_fail(store):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: store.write(RECORD), range(80)))
    assert store.read(TRIAL).metrics["accuracy"] == RECORD.metrics["accuracy"]
    assert entries(store) == [TRIAL.folder]


@pytest.mark.parametrize(
    "change",
    [
        {"status": "done"},
        {"metrics": None},
        {"metrics": {"accuracy": "high"}},
        {"row": 7},
        {"trial": {"kind": "backbone"}},
        {"trial": None},
    ],
)
def test_a_record_that_makes_no_sense_is_damaged(store, change):
    path = store.write(RECORD) / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StoreError, match="is damaged"):
        store.read(TRIAL)


def test_a_folder_in_the_place_of_a_file_is_damage(store):
    path = store.write(RECORD) / "record.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match="is damaged"):
        store.read(TRIAL)


def test_records_are_all_there_are(store):
    other = dataclasses.replace(RECORD, trial=dataclasses.replace(TRIAL, seed=1))
    store.write(RECORD)
    store.write(other)
    (store.trials / ".half").mkdir()
    assert sorted(record.trial.seed for record in store.records()) == [0, 1]
    assert {record.trial.digest for record in store.records()} == {TRIAL.digest, other.trial.digest}
