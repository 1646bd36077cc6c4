"""What a client is told: the head of an answer, its body, and where that ends."""

from collections.abc import Iterable
from functools import lru_cache

TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
CONTROLS = bytes({*range(32), 127} - {9})
WITHOUT_BODY = {204, 304}
OURS = {b"content-length", b"transfer-encoding", b"connection"}
BEGINNING, CLOSE = b"HTTP/1.1 %d ", b"connection: close"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


class Answer:
    """An answer to one request: it knows whether half of it has been told as a whole.

    Raises ValueError for headers that are none, and for a body that is not as long as they say.
    """

    closes = False  # it is the last one of its connection
    is_endless = False  # its body ends with the connection
    _is_chunked = False
    _left = 0
    _length: int | None = None

    def __init__(self, status: int, headers: Iterable[tuple[bytes, bytes]], is_head: bool) -> None:
        if not 200 <= status <= 999:
            raise ValueError(f"{status} is no status of an answer")
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
                raise ValueError(f"Content-Length {value!r} is none, or another than before")
            self._length = int(value)

    def head(self, body: bytes, more: bool, version: str, told: bytes) -> bytes:
        """Give the head. `body`, and whether there is more, decide how its end is told.

        `told`: what all heads end with.
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
        return b"%b\r\n%b" % (head, told)

    def piece(self, body: bytes, more: bool) -> list[bytes]:
        """Give a part of the body as it is sent."""
        if self._is_bare:
            return []
        if self._is_chunked:
            framed = [b"%x\r\n" % len(body), body, b"\r\n"] if body else []
            return framed if more else [*framed, LAST_CHUNK]
        if not self.is_endless:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise ValueError(f"The body is not the {self._length} bytes that were told")
        return [body] if body else []


def head_at_hand(status: int, lines: bytes, closes: bool, told: bytes) -> bytes:
    """Give the head of an answer whose lines are there; `told`: what all heads end with."""
    end = b"%b\r\n%b" % (CLOSE, told) if closes else told
    return (BEGINNING + b"\r\n%b%b") % (status, lines, end)


@lru_cache(1_024)
def begin_of_line(name: bytes) -> bytes:
    """Give a header's line up to its value; nothing if it is ours to write. Raises ValueError."""
    name = name.lower()
    if not name or not TOKEN.issuperset(name):
        raise ValueError(f"{name!r} is no name of a header")
    return b"" if name in OURS else name + b": "
