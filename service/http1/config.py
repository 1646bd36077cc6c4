"""Hypercorn's configuration, and what HTTP/1.1 has to know beyond it."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

from hypercorn.config import Config


class EarlyResponse(NamedTuple):
    """An answer that needs no application. `lines`: its header lines, each with its end."""

    status: int
    lines: bytes
    body: bytes

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The lines, as ASGI has them."""
        found = (line.partition(b": ") for line in self.lines.splitlines())
        return [(name, value) for name, _, value in found]


class Shortcut(Protocol):
    """Knows answers that need no application."""

    def look(self, scope: Any, tell: Callable[[EarlyResponse | None], None]) -> bool:
        """Begin to look for the answer to a GET without a body.

        False: it is for the application. Else `tell` is called later, once: with the answer, or
        with None if the application has to be asked after all. What it has to know of that is in
        the scope then.
        """


class Turn(Protocol):
    """A request that was submitted."""

    def end(self) -> None:
        """Give it up, when its client has gone before it was started."""


class Admission(Protocol):
    """Decides when the application is called with a request that is complete."""

    def submit(
        self,
        scope: Any,
        start: Callable[[], None],
        refuse: Callable[[int, list[tuple[bytes, bytes]], bytes], None],
    ) -> Turn:
        """Call `start`, now or later, or `refuse` with the status, headers and body to answer."""


class ServerConfig(Config):
    """Hypercorn's, with what `service.http1` reads."""

    http1: Literal["httptools", "h11"] = "httptools"
    draining = False  # clients are told to close
    header_seconds = 5.0
    admission: Admission | None = None
    shortcut: Shortcut | None = None
    serving: Any = None  # once there is a connection: what all of them share
