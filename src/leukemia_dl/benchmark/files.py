"""A record as files: what each holds, its checksums, and how they reach the disk.

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

from leukemia_dl.benchmark.trial import WHOLE_NUMBERS, Record, Status, Trial
from leukemia_dl.errors import StoreError

__all__ = [
    "DAMAGE", "FORMAT", "MODEL_FILE", "MOST_BYTES", "SUMS_FILE", "check_format", "open_file", "pack", "read_file",
    "read_sums", "unpack",
]  # fmt: skip

FORMAT = 4
# Limits in bytes: of a text file, of all predictions, of predictions per sample (a long name, 200 classes).
MOST_BYTES, _MOST_ARRAY_BYTES, _SAMPLE_BYTES = 16 * 2**20, 2**29, 8 * 2**10
MODEL_FILE = "model.keras"
SUMS_FILE = "SHA256SUMS"
RECORD_FILE, HISTORY_FILE, PREDICTIONS_FILE, TRACEBACK_FILE = (
    "record.json", "history.csv", "probabilities.npz", "traceback.txt",
)  # fmt: skip
DAMAGE = (
    ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, MemoryError, OverflowError, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip
_ARRAYS = ("sides", "samples", "labels", "probabilities", "tta")
_SUM = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9_.-]+)")


def pack(record: Record, model: bytes | None = None) -> dict[str, bytes]:
    """Return the files of a record by name; the checksums come last."""
    saved = {
        "format": FORMAT,
        "digest": record.trial.digest,
        "status": record.status,
        "trial": record.trial.to_dict(),
        "metrics": _without_nan(record.metrics),
        "metrics_tta": _without_nan(record.metrics_tta),
        "row": dict(record.row),
        "timings": dict(record.timings),
        "exception": record.exception,
        "message": record.message,
    }
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


def unpack(folder: Path, arrays: bool = True) -> Record | None:
    """Return the record that lies in a folder; None if there is none.

    Every file but the model is compared with its checksum.

    Args:
        folder: Of the trial.
        arrays: Whether to read history, predictions and traceback too; they are left empty otherwise.

    Raises:
        StoreError: If it is of another format.
        OSError: If a file cannot be read, and one of `DAMAGE` for content that makes no sense.
    """
    try:
        content = read_file(folder / RECORD_FILE)
    except FileNotFoundError:
        if folder.is_dir() and (folder / SUMS_FILE).exists():
            raise ValueError(f"{RECORD_FILE} is missing") from None
        return None
    saved = json.loads(content)
    check_format(folder, saved["format"])
    files = {RECORD_FILE: content}
    for name, expected in read_sums(folder).items():
        if name == MODEL_FILE:
            continue
        if name not in files:
            files[name] = read_file(folder / name, _MOST_ARRAY_BYTES if name == PREDICTIONS_FILE else MOST_BYTES)
        if hashlib.sha256(files[name]).hexdigest() != expected:
            raise ValueError(f"{name} has another checksum than {SUMS_FILE} says")
    metrics, averaged = (
        {name: float("nan") if value is None else value for name, value in saved[which].items()}
        for which in ("metrics", "metrics_tta")
    )
    more: dict[str, Any] = {}
    if arrays:
        _check_size(files[PREDICTIONS_FILE], saved["row"])
        with np.load(io.BytesIO(files[PREDICTIONS_FILE]), allow_pickle=False) as found:
            more = {name: found[name] for name in _ARRAYS}
        if HISTORY_FILE in files:
            more["history"] = pd.read_csv(io.BytesIO(files[HISTORY_FILE]))
        more["traceback"] = files.get(TRACEBACK_FILE, b"").decode("utf-8", "replace")
    record = Record(
        Trial(**saved["trial"]),
        saved["status"],
        row=dict(saved["row"]),
        metrics=metrics,
        metrics_tta=averaged,
        timings=dict(saved["timings"]),
        exception=saved["exception"],
        message=saved["message"],
        **more,
    )
    if not arrays:
        # The checksums have been compared: what was written is believed, which makes ten thousand of them a matter of
        # seconds.
        record.trial.__dict__["digest"] = str(saved["digest"])
    elif record.trial.digest != saved["digest"]:
        raise ValueError("its digest is not that of its trial")
    _check(record, arrays)
    return record


def check_format(folder: Path, found: Any) -> None:
    """Raise StoreError if a record is of another format."""
    if found != FORMAT:
        raise StoreError(
            f"{folder} has format {found!r}; this version reads {FORMAT}. "
            "Use another store, or the version of leukemia-dl that wrote it."
        )


def read_sums(folder: Path) -> dict[str, str]:
    """Return the checksums of a folder by name.

    Raises:
        ValueError: If the file is not whole.
        OSError: If it cannot be read.
    """
    text = read_file(folder / SUMS_FILE).decode("ascii")
    found = {}
    for line in text.splitlines():
        match = _SUM.fullmatch(line)
        if match is None:
            raise ValueError(f"{SUMS_FILE} is damaged")
        found[match[2]] = match[1]
    if not text.endswith("\n") or not {RECORD_FILE, PREDICTIONS_FILE} <= found.keys():
        raise ValueError(f"{SUMS_FILE} is not whole")
    return found


def open_file(path: Path) -> io.FileIO:
    """Open a regular file of a store; ValueError if it is a pipe, device or folder, OSError if it cannot be opened."""
    # Without O_NONBLOCK the opening of a pipe waits for its writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path.name} is not a regular file")
    return io.FileIO(descriptor)


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a file that `open_file` opens; ValueError if it has more than `most` bytes."""
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise ValueError(f"{path.name} has more than {most:,} bytes")
        return file.readall()


def _without_nan(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """JSON knows no NaN."""
    return {name: None if np.isnan(value) else float(value) for name, value in metrics.items()}


def _check_size(content: bytes, row: Mapping[str, Any]) -> None:
    """Raise ValueError if predictions unpack to more bytes than the number of samples in `row` can need."""
    count = sum(int(row.get(name) or 0) for name in ("n_val", "n_test"))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > min(MOST_BYTES + max(count, 0) * _SAMPLE_BYTES, _MOST_ARRAY_BYTES):
        raise ValueError(f"{PREDICTIONS_FILE} unpacks to {size:,} bytes, too many for {count:,} samples")


def _check(record: Record, arrays: bool) -> None:
    """Raise ValueError if a record that could be read makes no sense."""
    if record.status not in get_args(Status):
        raise ValueError(f"status is {record.status!r}")
    for what in (record.metrics, record.metrics_tta):
        if not all(isinstance(value, float | int) for value in what.values()):
            raise ValueError("a metric is no number")
    if record.status == "ok" and not {"accuracy", "loss"} <= record.metrics.keys():
        raise ValueError("it has no accuracy or loss")
    trial, texts = record.trial, (record.exception, record.message, record.trial.backbone, record.trial.protocol)
    numbers = [trial.fold, trial.seed, *(record.row.get(name) for name in WHOLE_NUMBERS)]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(n, int | None) for n in numbers):
        raise ValueError("a text or a whole number is none")
    if not isinstance(record.timings.get("seconds", 0.0), float | int):
        raise ValueError("its seconds are no number")
    count = len(record.samples)
    lengths = {len(record.sides), len(record.labels), len(record.probabilities)}
    if arrays and record.status == "ok" and lengths != {count}:
        raise ValueError("its predictions differ in number")
