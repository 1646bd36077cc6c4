"""Hypercorn's configuration, with the settings of `service.server.http1`."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Literal, NamedTuple, Protocol

from hypercorn.config import Config

COMPLETE = "http.request.complete"  # Octavo's ASGI extension: the whole request has been read
Headers = list[tuple[bytes, bytes]]


class EarlyResponse(NamedTuple):
    """A response made without the application. lines: its field lines, each with its CRLF."""

    status: int
    lines: bytes
    body: bytes

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The field lines as ASGI headers."""
        pairs = (line.partition(b": ") for line in self.lines.splitlines())
        return [(name, value) for name, _, value in pairs]


class Shortcut(Protocol):
    """Makes responses without a call of the application (`service.fast_path`)."""

    def lookup(self, scope: Any, callback: Callable[[EarlyResponse | None], None]) -> bool:
        """Look up the response to a GET or HEAD without content.

        False: the application must respond. Otherwise `callback` is called once, after this method
        has returned: with the response, or with None if the application must respond. Then the
        scope holds the results of the lookup. The server omits the body of a response to HEAD.
        """


class Turn(Protocol):
    """A request in the admission queue."""

    def end(self) -> None:
        """Withdraw the request: its client has disconnected before the application was called."""


class Admission(Protocol):
    """Decides when the application is called with a complete request."""

    def submit(
        self,
        scope: Any,
        start: Callable[[], None],
        refuse: Callable[[int, list[tuple[bytes, bytes]], bytes], None],
    ) -> Turn:
        """Submit a request. Calls `start`, now or later, or `refuse` with status, headers, body."""


def plain_error(status_code: int) -> tuple[Headers, bytes]:
    """Return the headers and body of an error response of the server, as plain text."""
    body = HTTPStatus(status_code).phrase.encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    return headers, body


class ServerConfig(Config):
    """Hypercorn's configuration, with the settings of `service.server.http1`."""

    http1: Literal["httptools", "h11"] = "httptools"
    draining = False  # whether responses carry `Connection: close`
    header_seconds = 5.0  # timeout of a request's head, from its first byte
    error_response: Callable[[int], tuple[Headers, bytes]] = staticmethod(plain_error)
    admission: Admission | None = None
    shortcut: Shortcut | None = None
    serving: Any = None  # the `Serving` of all connections; made by the first connection
