"""Serialise responses: the head, the body, and its framing (RFC 9112, 6)."""

from collections.abc import Iterable
from functools import lru_cache

TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
CONTROLS = bytes({*range(32), 127} - {9})
WITHOUT_BODY = {204, 304}
OURS = {b"content-length", b"transfer-encoding", b"connection"}  # written by `head` only
BEGINNING, CLOSE = b"HTTP/1.1 %d ", b"connection: close"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


class ResponseWriter:
    """A response to one request, with its framing.

    Raises ValueError for invalid headers, and for a body whose length differs from Content-Length.
    """

    closes = False  # the connection closes after this response
    is_endless = False  # the end of the connection ends the body (HTTP/1.0 without a length)
    _is_chunked = False
    _left = 0
    _length: int | None = None

    def __init__(self, status: int, headers: Iterable[tuple[bytes, bytes]], is_head: bool) -> None:
        if not 200 <= status <= 999:
            raise ValueError(f"{status} is not the status of a final response")
        self.status = status
        self._is_bare = is_head or status in WITHOUT_BODY
        lines = self._lines = [BEGINNING % status]
        for name, value in headers:
            if begun := begin_of_line(name):
                lines.append(begun + value)
            else:
                self._note(name.lower(), value)

    def _note(self, name: bytes, value: bytes) -> None:
        if name == b"connection":
            self.closes = self.closes or b"close" in value.lower()
        elif name == b"content-length":
            if not value.isdigit() or self._length not in {None, int(value)}:
                raise ValueError(f"Content-Length {value!r} is invalid or contradictory")
            self._length = int(value)

    def head(self, body: bytes, more: bool, version: str, end: bytes) -> bytes:
        """Return the head. The framing depends on the first part of the body, and on `more`.

        body: the first part. more: whether other parts follow. version: HTTP version of the
        request. end: the last lines of every head, with the empty line.
        """
        lines = self._lines
        is_known = not self._is_bare or (body and self.status not in WITHOUT_BODY)
        if self._length is None and not more and is_known:
            self._length = len(body)
        if self._length is not None:
            if self.status != 204:
                lines.append(b"content-length: %d" % self._length)
            self._left = self._length
        elif not self._is_bare:
            self._is_chunked = version != "1.0"
            self.is_endless = not self._is_chunked
            if self._is_chunked:
                lines.append(b"transfer-encoding: chunked")
        self.closes = self.closes or self.is_endless
        if self.closes:
            lines.append(CLOSE)
        elif version == "1.0":
            lines.append(b"connection: keep-alive")
        head = b"\r\n".join(lines)
        if len(head.translate(None, CONTROLS)) != len(head) - 2 * (len(lines) - 1):
            raise ValueError("A header holds a control character")
        return b"%b\r\n%b" % (head, end)

    def piece(self, body: bytes, more: bool) -> list[bytes]:
        """Return a part of the body with its framing."""
        if self._is_bare:
            return []
        if self._is_chunked:
            framed = [b"%x\r\n" % len(body), body, b"\r\n"] if body else []
            return framed if more else [*framed, LAST_CHUNK]
        if not self.is_endless:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise ValueError(f"The body is not {self._length} bytes long, as declared")
        return [body] if body else []


def early_head(status: int, lines: bytes, closes: bool, end: bytes) -> bytes:
    """Return the head of a response from field lines. end: as in `ResponseWriter.head`."""
    end = b"%b\r\n%b" % (CLOSE, end) if closes else end
    return (BEGINNING + b"\r\n%b%b") % (status, lines, end)


@lru_cache(1_024)
def begin_of_line(name: bytes) -> bytes:
    """Return `name: ` for a field line; empty if `head` writes the field. Raises ValueError."""
    name = name.lower()
    if not name or not TOKEN.issuperset(name):
        raise ValueError(f"{name!r} is not a header name")
    return b"" if name in OURS else name + b": "
