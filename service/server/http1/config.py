"""Hypercorn's configuration, with the settings of `service.server.http1`."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Literal, NamedTuple, Protocol

from hypercorn.config import Config

COMPLETE = "http.request.complete"  # an ASGI extension: the whole request has been read
Headers = list[tuple[bytes, bytes]]


class EarlyResponse(NamedTuple):
    """A response made without the application. `lines`: its field lines, each with its CRLF."""

    status: int
    lines: bytes
    body: bytes

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The field lines as ASGI headers."""
        pairs = (line.partition(b": ") for line in self.lines.splitlines())
        return [(name, value) for name, _, value in pairs]


class Shortcut(Protocol):
    """Finds responses without the application."""

    def lookup(self, scope: Any, callback: Callable[[EarlyResponse | None], None]) -> bool:
        """Start to look for the response to a GET without content.

        False: the application must respond. Otherwise `callback` is called once, later: with the
        response, or with None if the application must respond. In that case the scope holds the
        results of the lookup.
        """


class Turn(Protocol):
    """A submitted request."""

    def end(self) -> None:
        """Withdraw the request, when its client disconnects before it was started."""


class Admission(Protocol):
    """Decides when the application is called with a complete request."""

    def submit(
        self,
        scope: Any,
        start: Callable[[], None],
        refuse: Callable[[int, list[tuple[bytes, bytes]], bytes], None],
    ) -> Turn:
        """Call `start`, now or later, or `refuse` with the status, headers and body to send."""


def plain_error(status_code: int) -> tuple[Headers, bytes]:
    """Return the headers and body of an error of the server itself, as plain text."""
    body = HTTPStatus(status_code).phrase.encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    return headers, body


class ServerConfig(Config):
    """Hypercorn's configuration, with the settings of `service.server.http1`."""

    http1: Literal["httptools", "h11"] = "httptools"
    draining = False  # responses carry `Connection: close`
    header_seconds = 5.0
    error_response: Callable[[int], tuple[Headers, bytes]] = staticmethod(plain_error)
    admission: Admission | None = None
    shortcut: Shortcut | None = None
    serving: Any = None  # the Serving that all connections share, after the first
