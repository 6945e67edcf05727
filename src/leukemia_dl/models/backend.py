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

__all__ = ["BACKENDS", "backend_name", "silence_startup"]

BACKENDS = ("tensorflow", "jax", "torch")
_one_at_a_time = threading.RLock()  # the descriptor belongs to the whole process
_started: set[str] = set()


def backend_name() -> str:
    """Return the backend that Keras has or will have: KERAS_BACKEND, its config file, or the one installed.

    If no backend is chosen and TensorFlow, the default, is not installed, KERAS_BACKEND is set in this process to
    the first of jax and torch that is.

    Raises:
        BackendError: If the chosen backend, or any, is not installed.
    """
    if "keras" in sys.modules:
        import keras

        return str(keras.backend.backend())
    chosen = os.environ.get("KERAS_BACKEND") or _configured_backend()
    if chosen is None:
        chosen = next(filter(importlib.util.find_spec, BACKENDS), None)
        if chosen is None:
            raise BackendError("No Keras backend is installed. Install one: pip install tensorflow (or jax, or torch).")
        os.environ["KERAS_BACKEND"] = chosen
    if chosen not in BACKENDS:
        raise BackendError(f"KERAS_BACKEND must be one of {', '.join(BACKENDS)}. Received: {chosen!r}.")
    if importlib.util.find_spec(chosen) is None:
        raise BackendError(
            f"The Keras backend is {chosen!r}, but {chosen} is not installed. "
            f"Install it (pip install {chosen}) or set KERAS_BACKEND to one that is."
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
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    with contextlib.suppress(OSError, ValueError, AttributeError):
        value = json.loads((home / "keras.json").read_text()).get("backend")
        return str(value) if value and value != "tensorflow" else None
    return None
