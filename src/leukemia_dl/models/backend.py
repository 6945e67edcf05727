"""Which backend Keras runs on, and the first import of it without TensorFlow's start-up lines."""

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

__all__ = ["BACKENDS", "backend_name", "quiet_start"]

# The descriptor belongs to the whole process.
_one_at_a_time = threading.RLock()
_started: set[str] = set()
BACKENDS = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}


def backend_name() -> str:
    """Return the backend that Keras has or will have: KERAS_BACKEND, its config file, or the one installed.

    Where nobody chose one and TensorFlow, the default, is not installed, the first of jax and torch that is there
    is chosen, by setting KERAS_BACKEND in this process.

    Raises:
        BackendError: If the chosen backend, or any, is not installed.
    """
    if "keras" in sys.modules:
        import keras

        return str(keras.backend.backend())
    chosen = os.environ.get("KERAS_BACKEND") or _configured_backend()
    if chosen is None:
        chosen = next((name for name in BACKENDS if importlib.util.find_spec(BACKENDS[name])), None)
        if chosen is None:
            raise BackendError("No Keras backend is installed. Install one: pip install tensorflow (or jax, or torch).")
        os.environ["KERAS_BACKEND"] = chosen
    if chosen not in BACKENDS:
        raise BackendError(f"KERAS_BACKEND must be one of {', '.join(BACKENDS)}. Received: {chosen!r}.")
    if importlib.util.find_spec(BACKENDS[chosen]) is None:
        raise BackendError(
            f"The Keras backend is {chosen!r}, but {BACKENDS[chosen]} is not installed. "
            f"Install it (pip install {BACKENDS[chosen]}) or set KERAS_BACKEND to one that is."
        )
    return chosen


@contextlib.contextmanager
def quiet_start(what: str) -> Iterator[None]:
    """Keep TensorFlow's start-up lines, written to file descriptor 2 by its C++ part, off the user's terminal.

    Each `what` is done once per process: later there is nothing to hide, and other threads' lines are not to be lost.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if what in _started or sys.stderr is None or os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0":
        yield
        return
    if backend_name() != "tensorflow":
        yield
        return
    with _one_at_a_time:
        sys.stderr.flush()
        saved = os.dup(2)
        try:
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
                yield
            _started.add(what)
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _configured_backend() -> str | None:
    """Return the backend that Keras's own config file names, if there is one."""
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    with contextlib.suppress(OSError, ValueError, AttributeError):
        value = json.loads((home / "keras.json").read_text()).get("backend")
        # Keras writes this file itself with its default in it, so "tensorflow" there is nobody's choice.
        return str(value) if value and value != "tensorflow" else None
    return None
