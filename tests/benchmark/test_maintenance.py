"""Looking after a store: what is damaged is found, what is deleted is what was listed, and what stays is whole."""

import dataclasses
import hashlib
import math
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from leukemia_dl.benchmark import maintenance
from leukemia_dl.benchmark.files import read_sums, sha256_of
from leukemia_dl.benchmark.maintenance import delete, entries, find_trial, items, open_store, remove_model, verify
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


def age(path: Path, hours: float = 2.0) -> Path:
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
    assert verify(open_store(tmp_path)) == maintenance.Verification(0, 0, 0, ())
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
    with pytest.raises(UnknownNameError, match=r"no trial 'cel_size' in .* Did you mean 'cell_size-official.*all 3"):
        find_trial(store, "cel_size")
    for wrong in (TRIAL.digest[:-1] + "x", "zzz", f"../trials/{TRIAL.folder}"):
        with pytest.raises(UnknownNameError, match="There is no trial"):
            find_trial(store, wrong)


def test_what_is_whole_is_counted(store):
    (store.trials / ".half").mkdir()
    found = verify(store)
    compared = [store.trials / name / file for name in store.names() for file in read_sums(store.trials / name)]
    assert found.findings == ()
    assert (found.records, found.files, found.damaged) == (3, len(compared), 0)
    assert len(compared) == 4 + 3 + 3  # with a net; with a traceback and no curve; with a curve
    assert found.size == sum(path.stat().st_size for path in compared)


@pytest.mark.parametrize("file", ["record.json", "probabilities.npz", "history.csv", "model.keras"])
def test_a_changed_or_missing_file_is_found(store, file):
    path = store.folder(TRIAL) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (finding,) = verify(store).findings
    assert (finding.name, finding.damaged) == (TRIAL.folder, True)
    assert finding.problem.startswith(f"{file} has another checksum than SHA256SUMS says")
    assert verify(store).damaged == 1
    path.unlink()
    (finding,) = verify(store).findings
    gone = "model.keras is gone; the record is valid without it"
    assert finding.problem == (gone if file == "model.keras" else f"{file} is missing")
    assert finding.damaged == (file != "model.keras")


@pytest.mark.parametrize(
    ("harm", "says", "damaged"),
    [
        (lambda f: (f / "SHA256SUMS").unlink(), "SHA256SUMS is missing", True),
        (lambda f: (f / "SHA256SUMS").write_text("x"), "SHA256SUMS is damaged", True),
        (lambda f: [path.unlink() for path in f.iterdir()], "SHA256SUMS is missing", True),
        (lambda f: (f / "notes.txt").write_text("mine"), "notes.txt is not listed in SHA256SUMS", False),
        (lambda f: rewrite(f, {"status": "done"}), "makes no sense (ValueError: status is 'done')", True),
        (lambda f: rewrite(f, {"metrics": None}), "makes no sense (AttributeError", True),
        (lambda f: rewrite(f, {"format": 1}), "has format 1; this version reads 3", True),
        (lambda f: f.replace(f.with_name("other")), f"it holds the record of {TRIAL.folder}", True),
    ],
)
def test_what_is_wrong_with_a_record_is_said(store, harm, says, damaged):
    harm(store.folder(TRIAL))
    (finding,) = verify(store).findings
    assert says in finding.problem
    assert finding.damaged == damaged
    assert verify(store).damaged == int(damaged)


def test_a_record_that_is_replaced_at_that_moment_is_not_damaged(store, monkeypatch):
    wrong = ["0" * 64]
    monkeypatch.setattr(maintenance, "sha256_of", lambda path: wrong.pop() if wrong else sha256_of(path))
    assert verify(store).findings == ()
    assert wrong == []


def test_a_record_whose_writer_was_killed_while_replacing_it_is_kept(store):
    old = age(store.folder(TRIAL).rename(store.trials / f".{TRIAL.folder}-01234567-old"))
    assert listed(store) == set()
    store.create()
    assert store.read(TRIAL) is not None
    age(store.folder(FLOOR.trial).rename(old))  # now the place is taken, and it is out of date
    assert listed(store) == {("half-written", f"trials/{old.name}")}


def test_half_written_folders_can_go_once_they_are_old(store):
    age(fill(store.trials / ".cnn-1-abc", "record.json"))
    fill(store.trials / ".cnn-2-abc")
    busy = age(fill(store.trials / ".cnn-3-abc"))
    (busy / "model.keras").write_bytes(b"x")  # somebody is at it
    age((store.trials / ".file").write_text("x") and store.trials / ".file")
    assert listed(store) == {("half-written", "trials/.cnn-1-abc")}
    assert delete(store, items(store)) == 100
    assert {path.name for path in store.trials.iterdir()} == {".cnn-2-abc", ".cnn-3-abc", ".file", *store.names()}


def test_checkpoints_of_finished_trials_can_go(store):
    for record in (RECORD, FAILED, FLOOR):
        age(fill(store.checkpoints(record.trial)))
    fresh = dataclasses.replace(TRIAL, seed=5)
    age(fill(store.checkpoints(fresh)))
    (store.root / "unfinished" / "stop-1-2").touch()
    store.write(dataclasses.replace(RECORD, trial=dataclasses.replace(TRIAL, seed=6)))
    fill(store.checkpoints(dataclasses.replace(TRIAL, seed=6)))  # run again at this moment
    expected = {("checkpoints", f"unfinished/{trial.folder}") for trial in (TRIAL, FLOOR.trial)}
    assert listed(store) == expected
    assert delete(store, items(store)) == 200
    assert store.checkpoints(FAILED.trial).is_dir()
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
    assert listed(store, failed=True) == {("failed", f"trials/{name}"), ("log", f"logs/{name}")}
    found = items(store, failed=True)
    assert delete(store, found) == sum(item.size for item in found) > 0
    assert store.names() == sorted([TRIAL.folder, FLOOR.trial.folder])
    assert not (store.root / "logs").exists()
    assert not any(path.name.startswith(".") for path in store.trials.iterdir())
    assert verify(store).findings == ()


def test_a_store_whose_last_record_goes_stays_a_store(tmp_path):
    store = Store(tmp_path / "store")
    store.create()
    store.write(FAILED)
    assert delete(store, items(store, failed=True)) > 0
    assert entries(open_store(store.root)) == []


def test_a_failure_that_was_mended_meanwhile_stays(store):
    found = items(store, failed=True)
    store.write(dataclasses.replace(RECORD, trial=FAILED.trial))
    delete(store, [item for item in found if item.kind == "failed"])
    assert store.read(FAILED.trial).status == "ok"
    store.quarantine(FAILED.trial.folder)
    assert delete(store, [item for item in found if item.kind == "failed"]) == 0  # gone altogether


def test_a_record_is_valid_without_its_net(store):
    before = contents(store.folder(TRIAL))
    assert listed(store, models=True) == {("model", f"trials/{TRIAL.folder}/model.keras")}
    assert delete(store, items(store, models=True)) == len(MODEL)
    after = contents(store.folder(TRIAL))
    kept = set(before) - {"model.keras", "SHA256SUMS"}
    assert set(after) == kept | {"SHA256SUMS"}
    assert all(after[name] == before[name] for name in kept)
    assert read_sums(store.folder(TRIAL)) == {name: hashlib.sha256(before[name]).hexdigest() for name in kept}
    assert store.read(TRIAL).metrics["accuracy"] == 0.75
    assert not store.has_model(TRIAL)
    assert verify(store).findings == ()
    assert not remove_model(store.folder(TRIAL))
    assert delete(store, [maintenance.Item("model", store.folder(TRIAL) / "model.keras", 9)]) == 0


def test_a_record_stays_valid_whenever_the_deletion_of_its_net_ends(store, monkeypatch):
    folder, found = store.folder(TRIAL), items(store, models=True)
    before = contents(folder)

    def full(path, content):
        path.write_bytes(content[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(maintenance, "write_file", full)
        with pytest.raises(StoreError, match=r"model\.keras cannot be deleted: No space left on device"):
            delete(store, found)
    assert contents(folder) == before

    real = Path.unlink

    def refuse(path, missing_ok=False):
        if path.name == "model.keras":
            raise PermissionError(13, "Permission denied")
        real(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(StoreError, match="Permission denied"):
            delete(store, found)
    assert not store.has_model(TRIAL)
    assert store.read(TRIAL) is not None
    (finding,) = verify(store).findings
    assert (finding.problem, finding.damaged) == ("model.keras is not listed in SHA256SUMS", False)
    assert delete(store, items(store, models=True)) == len(MODEL)
    assert verify(store).findings == ()


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
        ("log", f"logs/{FAILED.trial.folder}"),
        ("model", f"trials/{TRIAL.folder}/model.keras"),
    ]
    delete(store, found)
    assert contents(outside) | contents(theirs) == before
    assert list(contents(theirs_too)) == ["state.npz"]
    assert (store.root / "quarantine" / "link").is_symlink()
    assert not (store.root / "quarantine" / "inside").exists()
