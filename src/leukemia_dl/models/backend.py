"""The backend that Keras runs on, and its first import without TensorFlow's start-up lines."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from leukemia_dl.errors import BackendError

__all__ = ["backend_name", "silence_startup"]

_BACKENDS = ("tensorflow", "jax", "torch")
_one_at_a_time = threading.RLock()  # the descriptor belongs to the whole process
_started: set[str] = set()


def backend_name() -> str:
    """Return the backend that Keras has or will have: KERAS_BACKEND, its config file, or the one installed.

    If no backend is chosen and TensorFlow, the default, is not installed, KERAS_BACKEND is set in this process to
    the first of jax and torch that is. Raises BackendError if the chosen backend, or any, is not installed.
    """
    if "keras" in sys.modules:
        import keras

        return str(keras.backend.backend())
    chosen = os.environ.get("KERAS_BACKEND") or _configured_backend()
    if chosen is None:
        chosen = os.environ["KERAS_BACKEND"] = next(filter(importlib.util.find_spec, _BACKENDS), _BACKENDS[0])
    if chosen not in _BACKENDS or importlib.util.find_spec(chosen) is None:
        raise BackendError(
            f"{chosen} is not installed here: KERAS_BACKEND must be one of {', '.join(_BACKENDS)} that is. "
            f"Install it (pip install {chosen}), or set KERAS_BACKEND."
        )
    return chosen


@contextlib.contextmanager
def silence_startup(stage: str) -> Iterator[None]:
    """Hide TensorFlow's start-up lines, which its C++ part writes to file descriptor 2, once per stage and process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    shown = os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0" or sys.stderr is None
    if shown or stage in _started or backend_name() != "tensorflow":
        yield
        return
    with _one_at_a_time, Path(os.devnull).open("w") as nowhere:
        sys.stderr.flush()
        saved = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
            _started.add(stage)
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _configured_backend() -> str | None:
    """Return the backend that Keras's config file names; "tensorflow", which Keras itself writes, is no choice."""
    file = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "keras.json"
    try:
        value = json.loads(file.read_text()).get("backend")
    except (OSError, ValueError):  # Keras ignores such a file too
        return None
    return value if value != "tensorflow" else None
