"""Looking after a store: what is damaged is found, what is deleted is what was listed, and what stays is whole."""

import dataclasses
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import leukemia_dl.benchmark.store as store_module
from leukemia_dl.atomic import sha256_of_file as sha256_of
from leukemia_dl.benchmark import maintenance
from leukemia_dl.benchmark.maintenance import (
    delete,
    entries,
    find_trial,
    items,
    open_store,
    remove_leftovers,
    temporary_prefix,
    verify,
)
from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.trial import Record, Trial
from leukemia_dl.errors import SettingsError, StoreError, UnknownNameError
from records import rewrite

TRIAL = Trial("backbone", "cnn", "p", "1", None, "d", "s", {"steps": []}, {"epochs": 1}, 0, "tensorflow", "official", 2)
RECORD = Record(
    TRIAL,
    "ok",
    metrics={"accuracy": 0.75, "loss": 0.5, "auroc": math.nan},
    timings={"seconds": 1.5},
    history=pd.DataFrame({"epoch": [1, 2], "loss": [0.7, 1 / 3]}),
    sides=np.array(["val", "test"]),
    samples=np.array(["a", "b"]),
    labels=np.array([0, 1]),
    probabilities=np.array([[0.25, 0.75], [1 / 3, 2 / 3]]),
)
FAILED = dataclasses.replace(
    RECORD, trial=dataclasses.replace(TRIAL, seed=1), status="failed", metrics={}, history=pd.DataFrame(),
    exception="ValueError", message="no", traceback="Traceback ...\n",
)  # fmt: skip
FLOOR = dataclasses.replace(
    RECORD, trial=dataclasses.replace(TRIAL, kind="baseline", backbone="cell_size", seed=None), status="not_applicable",
    metrics={}, message="no single cells",
)  # fmt: skip
MODEL = b"model" * 1000


@pytest.fixture
def store(tmp_path):
    """One that is well, with its net; a failure with its log; a baseline that is not applicable."""
    store = Store(tmp_path / "store")
    store.create()
    store.write(RECORD, model=MODEL)
    store.write(FAILED)
    store.write(FLOOR)
    store.logs(FAILED.trial).mkdir(parents=True)
    (store.logs(FAILED.trial) / "log.txt").write_text("begins\n")
    return store


def age(path: Path, hours: float = 25.0) -> Path:
    """Let a folder and what it holds seem that old."""
    then = time.time() - 3600 * hours
    for each in [*path.rglob("*"), path]:
        os.utime(each, (then, then))
    return path


def fill(folder: Path, name: str = "state.npz", size: int = 100) -> Path:
    folder.mkdir(parents=True)
    (folder / name).write_bytes(bytes(size))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def listed(store, **flags):
    return {(item.kind, str(item.path.relative_to(store.root))) for item in items(store, **flags)}


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"nowhere is no store: there is no such folder. A store is the folder that"):
        open_store(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="is no store: it has no folder trials/"):
        open_store(tmp_path)
    (tmp_path / "trials").mkdir()
    assert entries(open_store(tmp_path)) == []
    assert verify(open_store(tmp_path)) == {}
    assert items(open_store(tmp_path), failed=True, models=True) == []


def test_entries_have_failures_and_damage_last(store):
    (store.folder(FLOOR.trial) / "record.json").write_text("{")
    rewrite(store.write(dataclasses.replace(RECORD, trial=dataclasses.replace(TRIAL, seed=9))), {"format": 1})
    found = entries(store)
    assert [(e.name, e.status, e.model) for e in found[:2]] == [
        (TRIAL.folder, "ok", True),
        (FAILED.trial.folder, "failed", False),
    ]
    assert {e.status: e.record for e in found[2:]} == {"damaged": None, "unreadable": None}
    assert found[0].size == sum(map(len, contents(store.folder(TRIAL)).values()))
    assert found[0].record.metrics["accuracy"] == 0.75


def test_a_trial_is_found_by_the_beginning_of_its_name_or_digest(store):
    for text in (TRIAL.folder, TRIAL.folder[:-1], "cnn-official-fold2-seed0", TRIAL.digest[:8], TRIAL.digest):
        assert find_trial(store, text) == TRIAL.folder
    assert find_trial(store, "cell") == FLOOR.trial.folder
    with pytest.raises(SettingsError, match=rf"2 trials begin with 'cnn': {TRIAL.folder}, cnn-.*Give more of the name"):
        find_trial(store, "cnn")
    with pytest.raises(UnknownNameError, match=r"no trial 'cel_size' in .*lists all 3"):
        find_trial(store, "cel_size")
    for wrong in ("zzz", f"../trials/{TRIAL.folder}"):
        with pytest.raises(UnknownNameError, match="There is no trial"):
            find_trial(store, wrong)


@pytest.mark.parametrize("file", ["record.json", "probabilities.npz", "history.csv", "model.keras"])
def test_a_changed_or_missing_file_is_found(store, file):
    path = store.folder(TRIAL) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert list(verify(store)) == [TRIAL.folder]
    assert f"{file} has another checksum than SHA256SUMS says" in verify(store)[TRIAL.folder]
    path.unlink()
    assert list(verify(store)) == ([] if file == "model.keras" else [TRIAL.folder])


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: (f / "SHA256SUMS").unlink(), "SHA256SUMS"),
        (lambda f: (f / "SHA256SUMS").write_text("x"), "SHA256SUMS is damaged"),
        (lambda f: [path.unlink() for path in f.iterdir()], "it holds no record"),
        (lambda f: rewrite(f, {"status": "done"}), "ValueError: status is 'done'"),
        (lambda f: rewrite(f, {"metrics": None}), "AttributeError"),
        (lambda f: rewrite(f, {"format": 1}), "has format 1; this version reads 4"),
        (lambda f: f.replace(f.with_name("other")), f"it holds the record of {TRIAL.folder}"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(store, harm, says):
    harm(store.folder(TRIAL))
    (problem,) = verify(store).values()
    assert says in problem


def test_a_record_that_is_replaced_at_that_moment_is_not_damaged(store, monkeypatch):
    wrong = ["0" * 64]
    monkeypatch.setattr(store_module, "sha256_of_file", lambda path: wrong.pop() if wrong else sha256_of(path))
    assert verify(store) == {}
    assert wrong == []


def test_a_record_whose_writer_was_killed_while_replacing_it_is_kept(store):
    old = age(store.folder(TRIAL).rename(store.trials / f".{TRIAL.folder}-01234567.old"))
    assert listed(store) == set()
    store.create()
    assert store.read(TRIAL) is not None
    age(store.folder(FLOOR.trial).rename(old))  # now the place is taken, and it is out of date
    assert listed(store) == {("unfinished", f"trials/{old.name}")}


def test_what_was_begun_can_go_once_nobody_has_touched_it_for_a_day(store):
    age(fill(store.trials / ".cnn-1-abc", "record.json"))
    age(fill(store.trials / ".cnn-2-abc"), hours=23)
    busy = age(fill(store.trials / ".cnn-3-abc"))
    (busy / "model.keras").write_bytes(b"x")  # somebody is at it
    fresh, old = (dataclasses.replace(TRIAL, seed=seed) for seed in (5, 6))
    for trial in (TRIAL, old):
        age(fill(store.checkpoints(trial)))
    fill(store.checkpoints(fresh))
    (store.root / "unfinished" / "stop-1-2").touch()
    expected = {f"unfinished/{trial.folder}" for trial in (TRIAL, old)} | {"trials/.cnn-1-abc"}
    assert listed(store) == {("unfinished", path) for path in expected}
    assert delete(store, items(store)) == 300
    assert {path.name for path in store.trials.iterdir()} == {".cnn-2-abc", ".cnn-3-abc", *store.names()}
    assert store.checkpoints(fresh).is_dir()
    assert listed(store) == set()


def test_the_last_item_takes_its_folder_with_it(store):
    fill(store.root / "quarantine" / f"{TRIAL.folder}-0a", size=7)
    assert delete(store, items(store)) == 7
    assert not (store.root / "quarantine").exists()
    assert store.trials.is_dir()


def test_failed_records_go_with_their_logs(store):
    name = FAILED.trial.folder
    assert listed(store) == set()
    assert listed(store, failed=True) == {("failed", f"trials/{name}"), ("failed", f"logs/{name}")}
    found = items(store, failed=True)
    assert delete(store, found) == sum(item.size for item in found) > 0
    assert store.names() == sorted([TRIAL.folder, FLOOR.trial.folder])
    assert not (store.root / "logs").exists()
    assert not any(path.name.startswith(".") for path in store.trials.iterdir())
    assert verify(store) == {}


def test_a_failed_record_that_succeeds_before_it_is_deleted_stays(store):
    """20.42: a benchmark may run the trial again between the list and the deletion."""
    found = items(store, failed=True)
    store.write(dataclasses.replace(RECORD, trial=FAILED.trial))
    delete(store, found)
    assert store.read(FAILED.trial).status == "ok"


def test_a_store_whose_last_record_goes_stays_a_store(tmp_path):
    store = Store(tmp_path / "store")
    store.create()
    store.write(FAILED)
    assert delete(store, items(store, failed=True)) > 0
    assert entries(open_store(store.root)) == []


def test_a_record_is_valid_without_its_net(store):
    before = contents(store.folder(TRIAL))
    assert listed(store, models=True) == {("model", f"trials/{TRIAL.folder}/model.keras")}
    assert delete(store, items(store, models=True)) == len(MODEL)
    del before["model.keras"]
    assert contents(store.folder(TRIAL)) == before
    assert store.read(TRIAL).metrics["accuracy"] == 0.75
    assert not store.has_model(TRIAL.folder)
    assert verify(store) == {}
    assert delete(store, [maintenance.Item("model", store.folder(TRIAL) / "model.keras", 9)]) == 0


def test_what_cannot_be_deleted_is_an_error(store, monkeypatch):
    def refuse(path, missing_ok=False):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(StoreError, match=r"model\.keras cannot be deleted: Permission denied"):
        delete(store, items(store, models=True))
    assert store.has_model(TRIAL.folder)


def test_leftovers_of_killed_runs_go_after_a_day(tmp_path, monkeypatch):
    """20.42: temporary folders of a process that is gone are removed, those of a running one or of today are not."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = f"leukemia-dl-{gone.pid}-"
    old = age(fill(tmp_path / f"{dead}a"))
    kept = [age(fill(tmp_path / f"{temporary_prefix()}a")), age(fill(tmp_path / "leukemia-dl-notes-a"))]
    kept += [age(fill(tmp_path / f"{dead}b"), hours=23), age(fill(tmp_path / "somebody"))]
    (tmp_path / f"{dead}link").symlink_to(kept[-1])
    remove_leftovers()
    assert not old.exists()
    assert all((path / "state.npz").is_file() for path in kept)


def test_links_are_not_followed(store, tmp_path):
    outside = age(fill(tmp_path / "outside" / "folder", "model.keras"))
    record = Store(tmp_path / "other")
    record.create()
    theirs = record.write(FAILED, model=MODEL)
    before = contents(outside) | contents(theirs)
    other = dataclasses.replace(TRIAL, seed=7)
    store.write(dataclasses.replace(RECORD, trial=other))
    (store.folder(other) / "model.keras").symlink_to(outside / "model.keras")
    (store.trials / ".old").symlink_to(outside)
    (store.trials / "linked").symlink_to(theirs)
    fill(store.root / "quarantine" / "inside")
    (store.root / "quarantine" / "inside" / "link").symlink_to(outside)
    (store.root / "quarantine" / "link").symlink_to(outside)
    theirs_too = age(fill(tmp_path / "checkpoints" / TRIAL.folder))
    (store.root / "unfinished").symlink_to(theirs_too.parent)
    (store.logs(FAILED.trial) / "link").symlink_to(outside)
    found = items(store, failed=True, models=True)
    assert [(item.kind, str(item.path.relative_to(store.root))) for item in found] == [
        ("quarantined", "quarantine/inside"),
        ("failed", f"trials/{FAILED.trial.folder}"),
        ("failed", f"logs/{FAILED.trial.folder}"),
        ("model", f"trials/{TRIAL.folder}/model.keras"),
    ]
    delete(store, found)
    assert contents(outside) | contents(theirs) == before
    assert list(contents(theirs_too)) == ["state.npz"]
    assert (store.root / "quarantine" / "link").is_symlink()
    assert not (store.root / "quarantine" / "inside").exists()
