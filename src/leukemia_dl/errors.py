"""The exceptions of leukemia_dl. Each is also the built-in exception that a caller would expect to catch."""

import difflib
from collections.abc import Iterable

__all__ = [
    "BackendError", "DamagedRecordError", "DataError", "ImageError", "LeukemiaDLError", "OutOfMemoryError",
    "PluginError", "SettingsError", "SplitError", "StoreError", "TimeLimitError", "TrainingError", "UnknownNameError",
    "WeightsError", "WorkerError", "unknown_name_error",
]  # fmt: skip


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
    """Pretrained weights cannot be fetched or read, or do not fit."""


class BackendError(LeukemiaDLError, RuntimeError):
    """The Keras backend or a device is missing, or lacks an ability."""


class TrainingError(LeukemiaDLError, RuntimeError):
    """A fit did not end in a usable model."""


class OutOfMemoryError(TrainingError):
    """A fit needs more memory than the device has; the message names the batch size."""


class TimeLimitError(TrainingError, TimeoutError):
    """A trial exceeded its time limit."""


class WorkerError(TrainingError):
    """The process of a trial ended without a result, such as one that the system killed for its memory."""


class StoreError(LeukemiaDLError, OSError):
    """A folder of results cannot be read or written."""


class DamagedRecordError(StoreError):
    """The files of a trial are damaged. The same benchmark runs the trial again."""


def unknown_name_error(kind: str, name: object, known: Iterable[str], hint: str = "") -> UnknownNameError:
    """Return the error for a lookup of a `kind` that has no `name`: the near match, all `known` names, and a `hint`."""
    names = {name.lower(): name for name in sorted(known)}
    near = difflib.get_close_matches(str(name).lower(), names, n=1)
    meant = f"Did you mean {names[near[0]]!r}? " if near else ""
    message = f"There is no {kind} {name!r}. {meant}Known: {', '.join(names.values()) or 'none'}. {hint}"
    return UnknownNameError(message.strip())
