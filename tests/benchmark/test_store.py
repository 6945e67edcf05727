"""Records are written whole and read back to the bit."""

import contextlib
import dataclasses
import errno
import logging
import math
import os
import shutil
import subprocess
import time

import numpy as np
import pandas as pd
import pytest

import leukemia_dl.benchmark.store as store_module
from leukemia_dl.atomic import sha256_of_file as sha256_of
from leukemia_dl.benchmark import Store
from leukemia_dl.errors import StoreError
from records import BASELINE, FAILED, RECORD, TRIAL


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    store.create()
    return store


def entries(store):
    return sorted(path.name for path in store.trials.iterdir())


def test_a_record_comes_back_to_the_bit(store):
    store.write(RECORD, model=b"model")
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
    store.write(RECORD, model=b"model")
    store.write(dataclasses.replace(RECORD, status="failed", message="E", history=pd.DataFrame()))
    back = store.read(TRIAL)
    assert (back.status, back.message, len(back.history)) == ("failed", "E", 0)
    assert not (store.folder(TRIAL) / "model.keras").exists()
    assert entries(store) == [TRIAL.folder]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")])
@pytest.mark.parametrize("written", range(5))
def test_a_failed_write_leaves_what_was_there(store, error, written, monkeypatch):
    store.write(RECORD)
    real, done = os.fsync, []

    def fail(descriptor):
        if len(done) == written:
            raise error
        done.append(real(descriptor))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError if isinstance(error, OSError) else type(error), match=None):
        store.write(dataclasses.replace(RECORD, message="second"), model=b"model")
    assert store.read(TRIAL).message == ""
    assert entries(store) == [TRIAL.folder]


def test_a_record_that_cannot_be_replaced_stays(store, monkeypatch):
    store.write(RECORD)
    real = type(store.root).replace

    def fails(path, target):
        if path.name.startswith(".") and not path.name.endswith(".old"):
            raise OSError(errno.EIO, "Input/output error")
        return real(path, target)

    monkeypatch.setattr(type(store.root), "replace", fails)
    with pytest.raises(StoreError, match="Input/output error"):
        store.write(dataclasses.replace(RECORD, message="second"))
    assert store.read(TRIAL).message == ""
    assert entries(store) == [TRIAL.folder]


def test_a_writer_killed_between_the_two_moves_loses_nothing(store):
    folder = store.write(RECORD)
    old = folder.rename(store.trials / f".{TRIAL.folder}-01234567.old")
    assert store.read(TRIAL) is None
    store.create()
    assert store.read(TRIAL).metrics["accuracy"] == RECORD.metrics["accuracy"]
    assert not old.exists()
    # Where the new one is in place, the old one stays out of date.
    store.write(dataclasses.replace(RECORD, message="second")).rename(old)
    store.write(dataclasses.replace(RECORD, message="third"))
    store.create()
    assert store.read(TRIAL).message == "third"


def test_files_of_killed_writers_are_removed_a_day_later(store):
    old, fresh = (store.trials / f".{TRIAL.folder}-{name}.unfinished" for name in ("0a1b2c3d", "4e5f6a7b"))
    for path in (old, fresh):
        path.mkdir()
    os.utime(old, (time.time() - 90_000,) * 2)
    store.create()
    assert entries(store) == [fresh.name]


def test_a_record_that_is_replaced_while_it_is_read_is_not_damaged(store):
    """A reader that looks without end, and a writer that replaces the record as often as it can."""
    from concurrent.futures import ThreadPoolExecutor

    store.write(RECORD)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [store.write(RECORD) for _ in range(30)])
        while not writing.done():
            store.read(TRIAL)  # raises if it is damaged
    writing.result()
    assert store.read(TRIAL).metrics["accuracy"] == RECORD.metrics["accuracy"]


def test_long_names_and_halves_of_characters_can_be_written(store):
    trial = dataclasses.replace(TRIAL, backbone="a" * 250)
    for _ in range(2):
        store.write(dataclasses.replace(RECORD, trial=trial, traceback="\ud800"))
    assert store.read(trial).trial.backbone == "a" * 250


def test_checksums_are_those_of_sha256sum(store):
    folder = store.write(RECORD, model=b"model")
    for name, found in store_module._read_sums(folder).items():
        assert sha256_of(folder / name) == found
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)
    assert {path.name for path in folder.iterdir()} - {"SHA256SUMS"} == set(store_module._read_sums(folder))


def test_a_failed_trial_has_no_result_and_one_without_its_net_none_where_nets_are_wanted(store):
    for record in (RECORD, FAILED, BASELINE):
        store.write(record)
    assert [store.has_result(record, False) for record in (RECORD, FAILED, BASELINE, None)] == [
        True,
        False,
        True,
        False,
    ]
    assert [store.has_result(record, True) for record in (RECORD, BASELINE)] == [False, True]


def test_a_model_that_is_gone_is_no_damage(store):
    folder = store.write(RECORD, model=b"model")
    assert store.has_model(TRIAL.folder)
    (folder / "model.keras").unlink()
    assert not store.has_model(TRIAL.folder)
    assert store.read(TRIAL) is not None
    assert not Store(store.root / "nowhere").has_model(TRIAL.folder)


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
    store.write_files({"results.csv": "a\n"})
    store.write_files({"results.csv": "b\n"})
    assert (store.root / "results.csv").read_bytes() == b"b\n"
    assert sorted(path.name for path in store.root.iterdir()) == ["results.csv", "trials"]


def test_a_text_file_that_cannot_be_written_leaves_the_old_one(store, monkeypatch):
    """20, mutant 12: a full disk leaves the results of before."""
    store.write_files({"results.csv": "a\n"})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        store.write_files({"results.csv": "b\n"})
    assert (store.root / "results.csv").read_bytes() == b"a\n"
    assert sorted(path.name for path in store.root.iterdir()) == ["results.csv", "trials"]


def test_two_writers_of_one_trial_never_fail(store):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: store.write(RECORD), range(40)))
    assert store.read(TRIAL).metrics["accuracy"] == RECORD.metrics["accuracy"]
    assert entries(store) == [TRIAL.folder]


def test_a_full_disk_is_one_error_and_what_is_there_stays(tmp_path):
    """A file system of 400 kB, where mounting is allowed."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        store = Store(place / "store")
        store.create()
        store.write(RECORD)
        other = dataclasses.replace(RECORD, trial=dataclasses.replace(TRIAL, seed=1))
        with pytest.raises(StoreError, match=r"cannot be written: No space left on device. Free space") as caught:
            store.write(other, model=bytes(500_000))
        assert caught.value.__cause__.errno == errno.ENOSPC
        assert entries(store) == [TRIAL.folder]
        assert store.read(TRIAL).metrics["accuracy"] == RECORD.metrics["accuracy"]
        (place / "filler").write_bytes(bytes(1000))
        with contextlib.suppress(OSError), (place / "filler").open("wb") as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(StoreError, match="No space left"):
            store.write_files({"results.csv": "a" * 10_000})
        (place / "filler").unlink()
        store.write(other)
        assert len(list(store.records())) == 2
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_records_are_all_there_are(store, caplog):
    other = dataclasses.replace(RECORD, trial=dataclasses.replace(TRIAL, seed=1))
    store.write(RECORD)
    store.write(other)
    (store.trials / ".half").mkdir()
    assert sorted(record.trial.seed for record in store.records()) == [0, 1]
    assert {record.trial.digest for record in store.records()} == {TRIAL.digest, other.trial.digest}
    # A damaged one is said, and hides no other.
    (store.folder(TRIAL) / "record.json").write_text("")
    with caplog.at_level(logging.WARNING):
        assert [record.trial.seed for record in store.records()] == [1]
    assert f"{TRIAL.folder} is damaged" in caplog.text


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"nowhere is no store: it has no folder trials/. Name the --store"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="is no store: it has no folder trials/"):
        Store.open(tmp_path)
    (tmp_path / "trials").mkdir()
    assert (Store.open(tmp_path).names(), Store.open(tmp_path).verify()) == ([], {})
