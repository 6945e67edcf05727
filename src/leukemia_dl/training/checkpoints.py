"""The state of an unfinished fit in one file, from which a killed fit continues with the same bits."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.atomic import new_file

__all__ = ["Checkpoint", "FitState"]

# A state that took longer than this to write is not written again before so many times its duration are over.
_CHEAP_SECONDS, _TIMES_ITS_COST = 0.2, 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FitState:
    """The finished epochs of a phase, "head" or "full", the history, and the variables of model and optimizer."""

    phase: str
    epoch: int
    rows: list[dict[str, Any]]
    model: list[NDArray[Any]]
    optimizer: list[NDArray[Any]]


class Checkpoint:
    """The file of a fit's state, or None; `identity` is equal for fits that may continue from each other's file."""

    def __init__(self, path: Path | None = None, identity: str = "") -> None:
        self.path, self.identity = path, identity
        self._saved_at = self._seconds = 0.0

    def save(self, state: Callable[[], FitState], force: bool = False) -> bool:
        """Write the state, and return whether that was done; unless `force`, not if it would take too much time.

        A full disk costs the checkpoint, not the fit: a warning is logged.
        """
        began = time.perf_counter()
        due = self._seconds < _CHEAP_SECONDS or began - self._saved_at >= _TIMES_ITS_COST * self._seconds
        if self.path is None or not (due or force):
            return False
        fields = vars(state()) | {"identity": self.identity}
        arrays = {f"{name}_{i}": value for name in ("model", "optimizer") for i, value in enumerate(fields.pop(name))}
        try:
            with new_file(self.path) as file:
                np.savez(file, allow_pickle=False, fields=np.array(json.dumps(fields)), **arrays)
        except OSError as error:
            _log.warning("No checkpoint could be written to %s: %s", self.path, error)
        self._saved_at = time.perf_counter()
        self._seconds = self._saved_at - began
        return True

    def read(self) -> FitState | None:
        """Return the saved state, or None if there is no file, it is damaged, or it is of another fit."""
        if self.path is None or not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as file:
                fields = json.loads(str(file["fields"]))
                if fields.pop("identity") != self.identity:
                    _log.info("The checkpoint %s is of another fit and is not used", self.path)
                    return None
                for name in ("model", "optimizer"):
                    count = sum(key.startswith(f"{name}_") for key in file.files)
                    fields[name] = [file[f"{name}_{i}"] for i in range(count)]
                return FitState(**fields)
        except Exception as error:  # a damaged archive raises about anything
            _log.warning("The checkpoint %s cannot be read and is not used: %s", self.path, error)
            return None
