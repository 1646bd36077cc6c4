"""Ctrl-C, once asked for, is not forgotten."""

import signal
import threading
from types import FrameType
from typing import Self


class Interrupt:
    """Raises KeyboardInterrupt as Python does, and remembers it.

    Python raises it wherever it is, also where nobody can catch it (a finalizer, a callback of the
    collector): there it is printed and lost, and a long run would go on. `check()` raises it again.
    """

    def __init__(self) -> None:
        self._asked = False
        self._here = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        """Begin to listen; outside the main thread, which alone hears signals, do nothing."""
        if self._here:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        """Give the signal back to whoever had it."""
        if self._here:
            signal.signal(signal.SIGINT, self._before)

    def check(self) -> None:
        """Raise KeyboardInterrupt if it was asked for."""
        if self._asked:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        raise KeyboardInterrupt
