"""Handle Ctrl-C (SIGINT) at safe points only, and never lose it."""

import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Self, TypeVar

T = TypeVar("T")


class Interrupt:
    """Raises KeyboardInterrupt only while `items` reads a source, and in `check`.

    Python itself raises KeyboardInterrupt anywhere in the main thread. If it is raised while a lock
    is acquired, the lock may stay held, and a thread that needs the lock blocks forever. If it is
    raised in a finalizer or a callback of the garbage collector, it is printed and lost.
    """

    def __init__(self) -> None:
        self._requested = False
        self._waiting = False
        self._here = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        """Install the handler. In other threads than the main thread, do nothing."""
        if self._here:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        """Restore the previous handler."""
        if self._here:
            signal.signal(signal.SIGINT, self._before)

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self._requested:
            raise KeyboardInterrupt

    def items(self, source: Iterable[T]) -> Iterator[T]:
        """Yield the items of a source. Ctrl-C interrupts a blocked read at once."""
        iterator = iter(source)
        while True:
            self._waiting = True
            try:
                self.check()
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self._waiting = False
            yield item

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        if self._waiting:
            raise KeyboardInterrupt
