"""The files of a record, which lie in the folder of its trial.

record.json        the trial, its status, row, metrics and timings
history.csv        learning curves, where there are any
probabilities.npz  predictions of the val and test sides
traceback.txt      of a failure
model.keras        the trained net, where it is kept
SHA256SUMS         checksums of all of these; `sha256sum --check SHA256SUMS` reads it too
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from leukemia_dl.atomic import sha256_of_file
from leukemia_dl.benchmark.trial import WHOLE_NUMBERS, Record, Status, Trial
from leukemia_dl.errors import StoreError

__all__ = ["DAMAGE", "MOST_BYTES", "check_format", "files_of", "model_problem", "read_file", "read_record", "read_sums"]

FORMAT = 4
# Limits in bytes: of a text file, of all predictions, of predictions per sample (a long name, 200 classes).
MOST_BYTES, _MOST_ARRAY_BYTES, _SAMPLE_BYTES = 16 * 2**20, 2**29, 8 * 2**10
_LARGE_MODEL_BYTES = 2**31  # hashed for seconds, unless its end shows that it is damaged
RECORD_FILE, MODEL_FILE, SUMS_FILE = "record.json", "model.keras", "SHA256SUMS"
HISTORY_FILE, PREDICTIONS_FILE, TRACEBACK_FILE = "history.csv", "probabilities.npz", "traceback.txt"
# Errors that the reading of a damaged or hostile file ends in.
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, RuntimeError, MemoryError,
          OverflowError, zlib.error, zipfile.BadZipFile)  # fmt: skip
_ARRAYS = ("sides", "samples", "labels", "probabilities", "tta")
_SUM = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9_.-]+)")


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file of at most `most` bytes; ValueError for another one, or OSError."""
    # Without O_NONBLOCK the opening of a pipe waits for its writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path.name} is not a regular file")
        if found.st_size > most:
            raise ValueError(f"{path.name} has more than {most:,} bytes")
        return io.FileIO(descriptor, closefd=False).readall()
    finally:
        os.close(descriptor)


def files_of(record: Record, model: bytes | None = None) -> dict[str, bytes]:
    """Return the files of a record by name; the checksums come last."""
    saved = {name: getattr(record, name) for name in ("status", "exception", "message")}
    saved |= {"format": FORMAT, "digest": record.trial.digest, "trial": record.trial.to_dict()}
    saved |= {"row": dict(record.row), "timings": dict(record.timings)}
    for name in ("metrics", "metrics_tta"):  # JSON knows no NaN
        values = getattr(record, name)
        saved[name] = {key: None if np.isnan(value) else float(value) for key, value in values.items()}
    files = {RECORD_FILE: json.dumps(saved, indent=1, allow_nan=False).encode()}
    if len(record.history):
        files[HISTORY_FILE] = record.history.to_csv(index=False, lineterminator="\n").encode()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{name: getattr(record, name) for name in _ARRAYS})
    files[PREDICTIONS_FILE] = buffer.getvalue()
    if record.traceback:
        files[TRACEBACK_FILE] = record.traceback.encode("utf-8", "backslashreplace")
    if model is not None:
        files[MODEL_FILE] = model
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    return files | {SUMS_FILE: sums.encode()}


def read_record(folder: Path, arrays: bool = True) -> Record | None:
    """Return the record in a folder, every file but the net compared with its checksum; None if there is none.

    Raises:
        StoreError: If it is of another format.
        Exception: One of `DAMAGE` for files that cannot be read or make no sense.
    """
    try:
        files = {RECORD_FILE: read_file(folder / RECORD_FILE)}
    except FileNotFoundError:
        if (folder / SUMS_FILE).exists():
            raise ValueError(f"{RECORD_FILE} is missing") from None
        return None
    saved = json.loads(files[RECORD_FILE])
    check_format(folder, saved["format"])
    for name, expected in read_sums(folder).items():
        if name == MODEL_FILE:
            continue
        if name not in files:
            files[name] = read_file(folder / name, _MOST_ARRAY_BYTES if name == PREDICTIONS_FILE else MOST_BYTES)
        if hashlib.sha256(files[name]).hexdigest() != expected:
            raise ValueError(f"{name} has another checksum than {SUMS_FILE} says")
    fields = {name: saved[name] for name in ("status", "exception", "message")}
    fields |= {"row": dict(saved["row"]), "timings": dict(saved["timings"])}
    for which in ("metrics", "metrics_tta"):
        fields[which] = {name: float("nan") if value is None else value for name, value in saved[which].items()}
    record = Record(Trial(**saved["trial"]), **fields, **(_arrays_of(files, saved["row"]) if arrays else {}))
    if not arrays:
        # The checksums are right, so the digest is not computed: 10,000 records are read in seconds.
        record.trial.__dict__["digest"] = str(saved["digest"])
    elif record.trial.digest != saved["digest"]:
        raise ValueError("its digest is not that of its trial")
    _check(record, arrays)
    return record


def _arrays_of(files: Mapping[str, bytes], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return predictions, history and traceback; ValueError if predictions unpack to more than `row` can need."""
    count = sum(int(row.get(name) or 0) for name in ("n_val", "n_test"))
    with zipfile.ZipFile(io.BytesIO(files[PREDICTIONS_FILE])) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > min(MOST_BYTES + max(count, 0) * _SAMPLE_BYTES, _MOST_ARRAY_BYTES):
        raise ValueError(f"{PREDICTIONS_FILE} unpacks to {size:,} bytes, too many for {count:,} samples")
    with np.load(io.BytesIO(files[PREDICTIONS_FILE]), allow_pickle=False) as found:
        more: dict[str, Any] = {name: found[name] for name in _ARRAYS}
    if HISTORY_FILE in files:
        more["history"] = pd.read_csv(io.BytesIO(files[HISTORY_FILE]))
    return more | {"traceback": files.get(TRACEBACK_FILE, b"").decode("utf-8", "replace")}


def check_format(folder: Path, found: Any = None) -> None:
    """Raise StoreError if a record is of another format than this version reads; nothing where it is damaged."""
    try:
        found = json.loads(read_file(folder / RECORD_FILE))["format"] if found is None else found
    except DAMAGE:
        return
    if found != FORMAT:
        raise StoreError(
            f"{folder} has format {found!r}; this version reads {FORMAT}. "
            "Use another store, or the version of leukemia-dl that wrote it."
        )


def model_problem(folder: Path, compare: bool = True) -> str:
    """Return why the trained net in a folder cannot be used, or ""; `compare` checks its checksum."""
    try:
        expected = read_sums(folder).get(MODEL_FILE)
        if expected is None or not (folder / MODEL_FILE).is_file():
            return f"{MODEL_FILE} is not there"
        size = (folder / MODEL_FILE).stat().st_size
        if compare and size > _LARGE_MODEL_BYTES and not zipfile.is_zipfile(folder / MODEL_FILE):
            return f"{MODEL_FILE} of {size:,} bytes is no saved net"
        if compare and sha256_of_file(folder / MODEL_FILE) != expected:
            return f"{MODEL_FILE} has another checksum than {SUMS_FILE} says"
    except (OSError, ValueError) as error:
        return f"{MODEL_FILE} cannot be read: {error}"
    return ""


def read_sums(folder: Path) -> dict[str, str]:
    """Return the checksums of a folder by name; ValueError if the file is not complete, or OSError."""
    text = read_file(folder / SUMS_FILE).decode("ascii")
    lines = [_SUM.fullmatch(line) for line in text.splitlines()]
    found = {match[2]: match[1] for match in lines if match is not None}
    if None in lines or not text.endswith("\n") or not {RECORD_FILE, PREDICTIONS_FILE} <= found.keys():
        raise ValueError(f"{SUMS_FILE} is damaged")
    return found


def _check(record: Record, arrays: bool) -> None:
    """Raise ValueError if a record that could be read makes no sense."""
    if record.status not in get_args(Status):
        raise ValueError(f"status is {record.status!r}")
    if record.status == "ok" and not {"accuracy", "loss"} <= record.metrics.keys():
        raise ValueError("it has no accuracy or loss")
    trial, row = record.trial, record.row
    metrics = [*record.metrics.values(), *record.metrics_tta.values(), record.timings.get("seconds", 0.0)]
    texts = (record.exception, record.message, trial.backbone, trial.protocol)
    whole = (trial.fold, trial.seed, *(row.get(name) for name in WHOLE_NUMBERS))
    for values, kind in ((metrics, float | int), (texts, str), (whole, int | None)):
        if not all(isinstance(value, kind) for value in values):
            raise ValueError(f"one of {values!r} is no {kind}")
    lengths = {len(values) for values in (record.samples, record.sides, record.labels, record.probabilities)}
    if arrays and record.status == "ok" and len(lengths) > 1:
        raise ValueError("its predictions differ in number")
