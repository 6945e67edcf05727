"""Ctrl-C on long work: once to stop after this epoch, twice to stop at once."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Interruptible"]


class Interruptible:
    """While it is entered, the first Ctrl-C only sets `requested`; the second raises KeyboardInterrupt as ever.

    Outside of the main thread, where Python allows no handlers, nothing changes.
    """

    def __init__(self, message: str) -> None:
        """Take what is said on standard error at the first."""
        self.requested = False
        self._message = message
        self._before: Any = None

    def __enter__(self) -> Self:
        """Begin to listen; an ignored signal stays ignored, as for jobs in the background of a shell."""
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGINT)
            if before not in (signal.SIG_IGN, None):
                self._before = before
                signal.signal(signal.SIGINT, self._first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Listen no more."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _first(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        sys.stderr.write(f"\n{self._message}\n")
        sys.stderr.flush()
