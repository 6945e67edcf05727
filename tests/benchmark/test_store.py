"""Records are written whole, read back to the bit, and what was begun is found."""

import contextlib
import dataclasses
import errno
import logging
import math
import os
import shutil
import subprocess
import time
from pathlib import Path

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


def test_a_record_that_is_replaced_while_it_is_read_is_not_damaged(store):
    """A reader that looks without end, and a writer that replaces the record as often as it can."""
    from concurrent.futures import ThreadPoolExecutor

    store.write(RECORD)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [store.write(RECORD) for _ in range(30)])
        while not writing.done():
            store.read(TRIAL)  # raises if it is damaged
    writing.result()
    assert store.take(TRIAL).metrics["accuracy"] == RECORD.metrics["accuracy"]


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
    store.write_file("results.csv", "a\n")
    store.write_file("results.csv", "b\n")
    assert (store.root / "results.csv").read_bytes() == b"b\n"
    assert sorted(path.name for path in store.root.iterdir()) == ["results.csv", "trials"]


def test_a_text_file_that_cannot_be_written_leaves_the_old_one(store, monkeypatch):
    """20, mutant 12: a full disk leaves the results of before."""
    store.write_file("results.csv", "a\n")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        store.write_file("results.csv", "b\n")
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
            store.write_file("results.csv", "a" * 10_000)
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


@pytest.fixture
def filled(store):
    """One that is well, with its net; a failure with its log; a baseline that is not applicable."""
    store.write(RECORD, model=b"model" * 1000)
    store.write(FAILED)
    store.write(BASELINE)
    return store


def age(path: Path, hours: float = 25.0) -> Path:
    """Let a folder and what it holds seem that old."""
    then = time.time() - 3600 * hours
    for each in [*path.rglob("*"), path]:
        os.utime(each, (then, then), follow_symlinks=False)
    return path


def fill(folder: Path, name: str = "state.npz", size: int = 100) -> Path:
    folder.mkdir(parents=True)
    (folder / name).write_bytes(bytes(size))
    return folder


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"nowhere is no store: there is no such folder. A store is the folder that"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="is no store: it has no folder trials/"):
        Store.open(tmp_path)
    (tmp_path / "trials").mkdir()
    assert (Store.open(tmp_path).names(), Store.open(tmp_path).verify(), Store.open(tmp_path).unfinished()) == (
        [],
        {},
        [],
    )


def listed(store):
    return [str(path.relative_to(store.root)) for path in store.unfinished()]


def test_a_record_whose_writer_was_killed_while_replacing_it_is_kept(filled):
    old = age(filled.folder(TRIAL).rename(filled.trials / f".{TRIAL.folder}-01234567.old"))
    assert listed(filled) == []
    filled.create()
    assert filled.read(TRIAL) is not None
    age(filled.folder(BASELINE.trial).rename(old))  # now the place is taken, and it is out of date
    assert listed(filled) == [f"trials/{old.name}"]


def test_what_was_begun_is_listed_once_it_was_not_touched_for_a_day(filled):
    age(fill(filled.trials / ".cnn-1-abc", "record.json"))
    age(fill(filled.trials / ".cnn-2-abc"), hours=23)
    (age(fill(filled.trials / ".cnn-3-abc")) / "model.keras").write_bytes(b"x")  # somebody is at it
    fresh, old = (dataclasses.replace(TRIAL, seed=seed) for seed in (5, 6))
    for trial in (TRIAL, old):
        age(fill(filled.checkpoints(trial)))
    fill(filled.checkpoints(fresh))
    (filled.root / "unfinished" / "stop-1-2").touch()
    assert listed(filled) == ["trials/.cnn-1-abc", *sorted(f"unfinished/{trial.folder}" for trial in (TRIAL, old))]


def test_links_are_not_followed(filled, tmp_path):
    outside = age(fill(tmp_path / "outside" / TRIAL.folder))
    (filled.trials / ".old").symlink_to(outside)
    (filled.root / "unfinished").symlink_to(outside.parent)
    assert listed(filled) == []
    (filled.root / "unfinished").unlink()
    begun = fill(filled.checkpoints(TRIAL))
    (begun / "link").symlink_to(outside)
    age(begun)
    assert listed(filled) == [f"unfinished/{TRIAL.folder}"]
