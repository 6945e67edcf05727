"""Records in stores, made up, and changed behind their back."""

import dataclasses
import hashlib
import json
import math

import numpy as np
import pandas as pd

from leukemia_dl.benchmark import Record, Trial

TRIAL = Trial("backbone", "cnn", "p", "1", None, "d", "s", {"steps": []}, {"epochs": 1}, 0, "tensorflow", "official", 2)
RECORD = Record(
    TRIAL,
    "ok",
    row={"n_train": 3, "fold": 2, "seed": None},
    metrics={"accuracy": 0.1 + 0.2, "loss": 0.5, "auroc": math.nan},
    timings={"seconds": 1.5},
    history=pd.DataFrame({"epoch": [1, 2], "loss": [0.7, 1 / 3]}),
    sides=np.array(["val", "test"]),
    samples=np.array(["a", "ü"]),
    labels=np.array([0, 1]),
    probabilities=np.array([[0.25, 0.75], [1 / 3, 2 / 3]]),
)
FAILED = dataclasses.replace(
    RECORD, trial=dataclasses.replace(TRIAL, seed=1), status="failed", metrics={}, history=pd.DataFrame(),
    exception="ValueError", message="no", traceback="Traceback ...\n",
)  # fmt: skip
BASELINE = dataclasses.replace(
    RECORD, trial=dataclasses.replace(TRIAL, kind="baseline", backbone="cell_size", seed=None), status="not_applicable",
    metrics={}, message="no single cells",
)  # fmt: skip


def rewrite(folder, change):
    """Change what a record says, with checksums that fit."""
    path = folder / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    names = [line.split()[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    sums = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(sums))
