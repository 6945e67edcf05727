"""The exceptions of leukemia_dl: one small tree.

Every message says what came, what is allowed and what to do next. The command line prints the message alone;
in Python each class is also the built-in exception that a caller would expect to catch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BackendError",
    "DamagedRecordError",
    "DataError",
    "ImageError",
    "LeukemiaDLError",
    "OutOfMemoryError",
    "PluginError",
    "SettingsError",
    "SplitError",
    "StoreError",
    "TimeLimitError",
    "TrainingError",
    "UnknownNameError",
    "WeightsError",
    "WorkerError",
    "unknown_name_error",
]


class LeukemiaDLError(Exception):
    """Base of every error that this library raises on purpose."""


class SettingsError(LeukemiaDLError, ValueError):
    """A parameter has a value that is not allowed."""


class DataError(LeukemiaDLError, ValueError):
    """A data set is missing, empty, malformed or contradicts itself."""


class ImageError(DataError):
    """An image file cannot be decoded, or an array is not an image."""


class SplitError(DataError):
    """A protocol cannot be applied to a data set without breaking its guarantees."""


class UnknownNameError(LeukemiaDLError, LookupError):
    """A name is not registered. Not a KeyError: `str()` of that one adds quotes."""


class PluginError(LeukemiaDLError):
    """A plugin breaks the contract of a hook."""


class WeightsError(LeukemiaDLError, OSError):
    """Pretrained weights cannot be had or do not fit."""


class BackendError(LeukemiaDLError, RuntimeError):
    """The Keras backend or a device cannot do what was asked."""


class TrainingError(LeukemiaDLError, RuntimeError):
    """A fit did not end in a usable model."""


class OutOfMemoryError(TrainingError):
    """A fit needs more memory than the device has; the message names the batch size."""


class TimeLimitError(TrainingError, TimeoutError):
    """A trial took longer than it was allowed to."""


class WorkerError(TrainingError):
    """The process that ran a trial ended without a result, as one does that the system kills for its memory."""


class StoreError(LeukemiaDLError, OSError):
    """A folder of results cannot be read or written."""


class DamagedRecordError(StoreError):
    """What a trial left is damaged; running the benchmark puts it aside and runs the trial again."""


def unknown_name_error(kind: str, name: object, known: Iterable[str], hint: str = "") -> UnknownNameError:
    """Return the error for a failed lookup: the near match first, then everything that there is.

    Args:
        kind: What was looked up, in the singular ("backbone").
        name: What came.
        known: Registered names.
        hint: A further sentence.
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name).lower(), [n.lower() for n in names], n=1, cutoff=0.6)
    meant = next((n for n in names if near and n.lower() == near[0]), None)
    parts = [f"There is no {kind} {name!r}."]
    if meant:
        parts.append(f"Did you mean {meant!r}?")
    parts.append(f"Known: {', '.join(names) or 'none'}.")
    if hint:
        parts.append(hint)
    return UnknownNameError(" ".join(parts))
