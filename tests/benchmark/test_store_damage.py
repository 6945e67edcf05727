"""Records that are damaged, hostile or of another format."""

import dataclasses
import json
import logging
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import leukemia_dl.benchmark.store as store_module
from leukemia_dl.benchmark import Store
from leukemia_dl.errors import DamagedRecordError, StoreError
from records import BASELINE, FAILED, RECORD, TRIAL, rewrite


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    store.create()
    return store


def test_a_damaged_record_is_an_error_that_names_it(store, monkeypatch):
    monkeypatch.setattr(store_module, "_ATTEMPTS", 1)  # nobody is replacing it: no need to look again
    folder = store.write(RECORD)
    for name in ("record.json", "probabilities.npz", "history.csv", "SHA256SUMS"):
        whole = (folder / name).read_bytes()
        for cut in {*range(0, len(whole), 5), len(whole) - 1}:
            (folder / name).write_bytes(whole[:cut])
            for arrays in (True, False):
                with pytest.raises(DamagedRecordError, match=f"{TRIAL.folder} is damaged"):
                    store.read(TRIAL, arrays)
        (folder / name).unlink()
        with pytest.raises(DamagedRecordError, match=f"{TRIAL.folder} is damaged"):
            store.read(TRIAL)
        (folder / name).write_bytes(whole)
    assert store.read(TRIAL) is not None


@given(st.sampled_from(["record.json", "probabilities.npz", "history.csv", "SHA256SUMS"]), st.floats(0, 1), st.data())
def test_a_changed_byte_is_damage(tmp_path_factory, name, where, data):
    store = Store(tmp_path_factory.mktemp("s"))
    store.create()
    path = store.write(RECORD) / name
    content = bytearray(path.read_bytes())
    place = int(where * (len(content) - 1))
    content[place] = data.draw(st.integers(0, 255).filter(lambda value: value != content[place]))
    path.write_bytes(bytes(content))
    with pytest.raises(StoreError, match=r"is damaged|has format"):  # or the byte that says which format it is
        store.read(TRIAL)


def test_a_damaged_record_stays_until_the_trial_ran_again_and_is_named_once(store, caplog):
    (store.write(RECORD) / "record.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert list(store.records()) == []
    assert caplog.text.count(f"{store.folder(TRIAL)} is damaged") == 1
    assert (store.folder(TRIAL) / "record.json").read_text() == "{"
    store.write(RECORD)
    assert store.read(TRIAL).metrics["accuracy"] == RECORD.metrics["accuracy"]


@pytest.mark.parametrize(
    "change", [{"metrics": {}}, {"exception": 5}, {"timings": {"seconds": "x"}}, {"row": {"n_train": "x"}},
               {"metrics_tta": {"loss": "x"}}]
)  # fmt: skip
def test_a_record_that_no_table_could_hold_is_damaged(store, change):
    rewrite(store.write(RECORD), change)
    with pytest.raises(DamagedRecordError, match="is damaged"):
        store.read(TRIAL, arrays=False)


def test_a_store_of_another_format_is_refused_at_once_and_a_damaged_one_is_not(store):
    path = store.write(RECORD) / "record.json"
    path.write_text("[" * 100_000)
    store.create()
    path.write_text('{"format": 1}')
    with pytest.raises(StoreError, match="format 1; this version reads 4"):
        store.create()


def test_a_net_of_gigabytes_is_not_hashed(store):
    """20.39: `runs verify` hashed a sparse file of 5 GB for seconds."""
    folder = store.write(RECORD, model=b"model")
    os.truncate(folder / "model.keras", 5_000_000_000)
    assert "5,000,000,000 bytes is no saved net" in store.model_problem(TRIAL.folder)
    assert "5,000,000,000 bytes is no saved net" in store.verify()[TRIAL.folder]


def test_another_format_is_refused(store):
    path = store.write(RECORD) / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    with pytest.raises(StoreError, match="format 1; this version reads 4"):
        store.read(TRIAL)


def test_a_record_of_another_trial_in_the_same_folder_is_not_taken(store):
    other = dataclasses.replace(TRIAL, seed=1)
    store.write(dataclasses.replace(RECORD, trial=other)).replace(store.folder(TRIAL))
    for arrays in (True, False):
        with pytest.raises(DamagedRecordError, match=f"it holds the record of {other.folder}"):
            store.read(TRIAL, arrays)
    assert list(store.records()) == []
    rewrite(store.write(RECORD), {"trial": other.to_dict()})
    with pytest.raises(DamagedRecordError, match=f"it holds the record of {other.folder}"):
        store.read(TRIAL)


def test_what_is_not_a_regular_file_is_damage_and_is_not_waited_for(store, monkeypatch):
    """20.39: a pipe in the place of any file of a record hangs nothing."""
    monkeypatch.setattr(store_module, "_ATTEMPTS", 1)
    folder = store.write(RECORD, model=b"model")
    for name in ("record.json", "history.csv", "probabilities.npz", "SHA256SUMS"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        for arrays in (True, False):
            with pytest.raises(DamagedRecordError, match=f"{name} is not a regular file"):
                store.read(TRIAL, arrays)
        store.create()
        (folder / name).unlink()
        (folder / name).write_bytes(content)
    (folder / "model.keras").unlink()
    os.mkfifo(folder / "model.keras")
    assert store.model_problem(TRIAL.folder) == "model.keras is not there"
    assert store.read(TRIAL) is not None


@pytest.mark.parametrize("name", ["record.json", "history.csv", "probabilities.npz", "SHA256SUMS"])
def test_a_file_that_is_too_large_is_not_read(store, name, monkeypatch):
    """20.39: a sparse file of 5 GB is refused by its size."""
    monkeypatch.setattr(store_module, "_ATTEMPTS", 1)
    with (store.write(RECORD) / name).open("r+b") as file:
        file.truncate(5 * 10**9)
    with pytest.raises(DamagedRecordError, match=rf"{name} has more than [\d,]+ bytes"):
        store.read(TRIAL, arrays=False)


def test_predictions_that_unpack_to_gigabytes_are_not_unpacked(store, monkeypatch):
    """20.39: the unpacked size of predictions is bounded."""
    monkeypatch.setattr(store_module, "_ATTEMPTS", 1)
    monkeypatch.setattr(store_module, "_MOST_ARRAY_BYTES", 2**24)
    folder = store.write(RECORD)
    arrays = {name: getattr(RECORD, name) for name in ("sides", "samples", "labels", "tta")}
    np.savez_compressed(folder / "probabilities.npz", probabilities=np.zeros((3_000_000, 1)), **arrays)
    rewrite(folder, {})
    with pytest.raises(DamagedRecordError, match=r"probabilities.npz unpacks to 24,000,\d+ bytes"):
        store.read(TRIAL)


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
    rewrite(store.write(RECORD), change)
    with pytest.raises(DamagedRecordError, match="is damaged"):
        store.read(TRIAL)


@pytest.mark.parametrize(
    "change",
    [
        {"history": RECORD.history.assign(epoch="head")},
        {"probabilities": RECORD.probabilities[1:]},
        {"probabilities": RECORD.probabilities * np.nan},
        {"labels": RECORD.labels + 2},
    ],
    ids=["text in the history", "a row short", "not finite", "no such class"],
)
def test_arrays_that_make_no_sense_are_damage(store, change):
    """Their checksums are right: a program wrote them."""
    store.write(dataclasses.replace(RECORD, **change))
    with pytest.raises(DamagedRecordError, match="is damaged"):
        store.read(TRIAL)
    assert store.read(TRIAL, arrays=False) is not None


def test_a_folder_in_the_place_of_a_file_is_damage(store):
    path = store.write(RECORD) / "record.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match="is damaged"):
        store.read(TRIAL)


@pytest.fixture
def filled(store):
    """One that is well, with its net; a failure with its log; a baseline that is not applicable."""
    store.write(RECORD, model=b"model" * 1000)
    store.write(FAILED)
    store.write(BASELINE)
    return store


@pytest.mark.parametrize("file", ["record.json", "probabilities.npz", "history.csv", "model.keras"])
def test_a_changed_or_missing_file_is_found(filled, file):
    path = filled.folder(TRIAL) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert list(filled.verify()) == [TRIAL.folder]
    says = "JSONDecodeError" if file == "record.json" else f"{file} has another checksum than SHA256SUMS says"
    assert says in filled.verify()[TRIAL.folder]
    path.unlink()
    assert list(filled.verify()) == ([] if file == "model.keras" else [TRIAL.folder])


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: (f / "SHA256SUMS").unlink(), "SHA256SUMS"),
        (lambda f: (f / "SHA256SUMS").write_text("x"), "SHA256SUMS is damaged"),
        (lambda f: [path.unlink() for path in f.iterdir()], "FileNotFoundError"),
        (lambda f: rewrite(f, {"status": "done"}), "ValueError: a value is missing"),
        (lambda f: rewrite(f, {"metrics": None}), "AttributeError"),
        (lambda f: rewrite(f, {"format": 1}), "has format 1; this version reads 4"),
        (lambda f: f.replace(f.with_name("other")), f"ValueError: it holds the record of {TRIAL.folder}"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(filled, harm, says):
    harm(filled.folder(TRIAL))
    (problem,) = filled.verify().values()
    assert says in problem
