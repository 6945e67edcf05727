"""Trial, a unit of work, and Record, its result."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.identity import digest

# Part of every trial's digest in place of this library's version. Increase it only with a change after which equal
# settings give different numbers.
RESULTS_VERSION = 3
WHOLE_NUMBERS = (  # columns of a row
    "fold", "seed", "image_size", "epochs", "batch_size", "n_train", "n_val", "n_test", "groups_train", "groups_val",
    "groups_test", "dropped", "threads", "leaked_files", "leaked_cells", "leaked_groups", "parameters",
)  # fmt: skip
Status = Literal["ok", "failed", "not_applicable"]


@dataclass(frozen=True)
class Trial:
    """One backbone or baseline on one split with one recipe and one seed: everything that makes its result.

    Attributes:
        kind: "backbone" or "baseline", for which `weights`, `pipeline`, `recipe`, `seed` and `backend` are None.
        backbone: Its name, of the distribution `plugin` of `plugin_version`, which is None for this library.
        dataset: Fingerprint of the data set.
        split: Digest of the split, which is of a `protocol` and, maybe, a `fold`.
        versions: Of the software that computes: `RESULTS_VERSION` as "results", Keras, backend or scikit-learn.
    """

    kind: Literal["backbone", "baseline"]
    backbone: str
    plugin: str
    plugin_version: str | None
    weights: str | None  # a name, or "sha256:..." of a file
    dataset: str
    split: str
    pipeline: Mapping[str, Any] | None
    recipe: Mapping[str, Any] | None
    seed: int | None
    backend: str | None
    protocol: str
    fold: int | None
    versions: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of all fields: the cache key."""
        return digest(self.to_dict())

    @cached_property
    def folder(self) -> str:
        """Name of the trial's folder: readable, and unique by the digest's first twelve digits."""
        axes = [f"{axis}{getattr(self, axis)}" for axis in ("fold", "seed") if getattr(self, axis) is not None]
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", "-".join([self.backbone, self.protocol, *axes]))
        # File systems take names of at most 255 characters, and this one gets a suffix at times.
        return f"{name[:150]}-{self.digest[:12]}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Record:
    """The result of a `trial`.

    Attributes:
        status: "ok"; "failed", with `exception`, `message` and `traceback`; or "not_applicable", a baseline that the
            images do not allow, with a `message`.
        row: Further columns of the result frame, equal between equal runs, unlike `timings`, with machine and versions.
        metrics: By name; empty unless ok.
        history: A row per epoch.
        sides: "val" or "test" per prediction (n,), with `samples`, their ids (n,), and `labels`, class indices (n,).
        probabilities: (n, classes), float64.
        tta: Mean probabilities over the eight symmetries, and `metrics_tta` of these; empty if not asked for.
    """

    trial: Trial
    status: Status
    row: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    timings: Mapping[str, Any] = field(default_factory=dict)
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    sides: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, dtype=np.str_))
    samples: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, dtype=np.str_))
    labels: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    probabilities: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    tta: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    metrics_tta: Mapping[str, float] = field(default_factory=dict)
    exception: str = ""
    message: str = ""
    traceback: str = ""

    def with_tta(self) -> list[Record]:
        """Return this record and, if predictions were averaged, the record of these: a row of its own."""
        if not self.metrics_tta:
            return [self]
        row = {**self.row, "tta": "8 symmetries"}
        return [self, replace(self, row=row, metrics=self.metrics_tta, probabilities=self.tta, metrics_tta={})]

    @property
    def error(self) -> str:
        """Exception and message in one line."""
        return ": ".join(filter(None, (self.exception, self.message)))

    @property
    def kind(self) -> str:
        """Kind in frames: "backbone", "baseline", or "tta" for averaged predictions, which have no rank."""
        return "tta" if self.row.get("tta") == "8 symmetries" else self.trial.kind

    @property
    def name(self) -> str:
        """Name in frames: the backbone's, with a suffix where predictions are averaged."""
        return self.trial.backbone + ("+tta" if self.kind == "tta" else "")
