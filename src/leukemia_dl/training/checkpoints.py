"""The state of an unfinished fit in one file, so that a killed one goes on from its last epoch, bit for bit."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.atomic import new_file

__all__ = ["FitState", "read_checkpoint", "write_checkpoint"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FitState:
    """How far a fit has come.

    Attributes:
        phase: "head" or "full".
        epoch: Epochs done in this phase.
        rows: The history so far.
        model: Every variable that the phase changes, seeds of dropout included, in the model's order.
        optimizer: Every variable of the phase's optimizer, in its order.
    """

    phase: str
    epoch: int
    rows: list[dict[str, Any]]
    model: Sequence[NDArray[Any]]
    optimizer: Sequence[NDArray[Any]]


def write_checkpoint(path: Path, identity: str, progress: FitState) -> None:
    """Write a checkpoint aside and move it in place: at any moment there is a whole one, the old or the new.

    A disk that is full costs the checkpoint, not the fit: that is logged as a warning.
    """
    said = {"identity": identity, "phase": progress.phase, "epoch": progress.epoch, "rows": progress.rows}
    arrays = {f"model_{i}": value for i, value in enumerate(progress.model)}
    arrays |= {f"optimizer_{i}": value for i, value in enumerate(progress.optimizer)}
    try:
        with new_file(path) as file:
            np.savez(file, allow_pickle=False, said=np.array(json.dumps(said)), **arrays)
    except OSError as error:
        _log.warning("No checkpoint could be written to %s: %s", path, error)


def read_checkpoint(path: Path, identity: str) -> FitState | None:
    """Return what a fit of this identity left, or None: no file, one that is damaged, or that of another fit."""
    try:
        with np.load(path, allow_pickle=False) as file:
            said = json.loads(str(file["said"]))
            if said["identity"] != identity:
                _log.info("The checkpoint %s is of another fit and is not used", path)
                return None
            model, optimizer = (
                [file[f"{what}_{i}"] for i in range(sum(name.startswith(f"{what}_") for name in file.files))]
                for what in ("model", "optimizer")
            )
            return FitState(str(said["phase"]), int(said["epoch"]), list(said["rows"]), model, optimizer)
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged archive raises about anything
        _log.warning("The checkpoint %s cannot be read and is not used: %s", path, error)
        return None
