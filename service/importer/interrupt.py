"""Ctrl-C, heard where it does no harm, and not forgotten."""

import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Self, TypeVar

T = TypeVar("T")


class Interrupt:
    """Raises KeyboardInterrupt while a source is waited for, and elsewhere only when asked.

    Python raises it wherever it is: also within the taking of a lock, which then is never given
    back, and a thread that needs it stands still for ever; and where nobody can catch it (a
    finalizer, a callback of the collector), where it is printed and lost.
    """

    def __init__(self) -> None:
        self._asked = False
        self._waiting = False
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

    def items(self, source: Iterable[T]) -> Iterator[T]:
        """Give what a source gives, which may keep one waiting: Ctrl-C ends that at once."""
        waited = iter(source)
        while True:
            self._waiting = True
            try:
                self.check()
                item = next(waited)
            except StopIteration:
                return
            finally:
                self._waiting = False
            yield item

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if self._waiting:
            raise KeyboardInterrupt
