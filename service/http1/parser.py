"""What a client sends, read by llhttp: one message at a time, and nothing that may be doubted.

llhttp has the header fields and the framing, and is strict: no bare LF, no folded lines, no
Content-Length beside Transfer-Encoding. The request line is read here, because llhttp is not as
exact there: it takes two spaces for one, HTTP/0.9 and RTSP, only the methods on its list, and
refuses targets that are the application's to refuse. So each head is given to it with a line that
says nothing.
"""

import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

import httptools

from service.asgi import LONGEST_PATH
from service.fields import Fields
from service.http1.codings import FRAMING, are_unknown, codings_of

HEAD_BYTES = 65_536  # of a request's head: a token of 60,000 bytes is still told that it is none
HOST_BYTES = 260  # of a name (253) and a port
MOST_HEADERS = 100
MOST_OPTIONS = 50  # of a connection: what follows is not taken apart
MOST_KEPT, KEPT_BYTES = 2_048, 1_024  # sets of fields that are remembered, and of each
LINE_BYTES = 16  # of a chunk beside its data: size, two line ends, and a little
SPARE_BYTES = 16_384  # on top of that, in a body: extensions and trailers, which nobody reads
REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/(\d)\.(\d)\r\n")
LINE_END = b"\r\n"
BEGINNING = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]|\r?\Z")
NOTHING = b"POST / HTTP/1.1\r\n"
UPGRADE = re.compile(rb"(?im)^upgrade:[^\r\n]*\r\n")
END = b"\r\n\r\n"  # of a head, and of a chunked body


class RefusedError(Exception):
    """What came is no request that can be answered otherwise than by this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Target(NamedTuple):
    """What is asked for, as ASGI has it."""

    raw_path: bytes
    query: bytes
    path: str


class Line(NamedTuple):
    """A request line. target: as it stands there. asked: what that is, if it is a path."""

    method: str
    target: bytes
    version: str
    minor: bytes
    asked: Target


@lru_cache(MOST_KEPT)
def read_line(raw: bytes) -> Line:
    """Read a request line with its end. Raises RefusedError."""
    found = REQUEST_LINE.fullmatch(raw)
    if found is None:
        raise RefusedError(400)
    method, target, major, minor = found.groups()
    if major != b"1":
        raise RefusedError(505)
    if method != method.upper() or method == b"CONNECT":  # no tunnels here
        raise RefusedError(501)
    version = "1.0" if minor == b"0" else "1.1"
    return Line(method.decode(), target, version, minor, read_target(target))


def read_target(target: bytes) -> Target:
    """Take a path and its query apart."""
    raw_path, _, query = target.partition(b"?")
    path = raw_path.decode()
    is_coded = "%" in path and len(path) <= LONGEST_PATH
    return Target(raw_path, query, unquote(path) if is_coded else path)


ANY = read_line(b"GET / HTTP/1.1\r\n")  # before there is one


class Known(dict[bytes, tuple[Fields, set[bytes]]]):
    """Header fields that came before, by their bytes, and the connection's options in them.

    Most of what a client sends is what it sent before, and those of one kind send the same.
    """

    def keep(self, raw: bytes, fields: Fields, options: set[bytes]) -> None:
        """Remember some, instead of all others if those are too many."""
        if len(raw) <= KEPT_BYTES:
            if len(self) >= MOST_KEPT:
                self.clear()
            self[raw] = fields, options


class Reader:
    """Reads requests, one after the other: `head` once, then `body` until `is_complete`.

    No piece that llhttp is given goes beyond the end of its message: bodies with a length are cut
    there, and a chunked one ends, as a head does, with an empty line. So it is known where the
    next request begins, and that can wait unread for its turn.
    """

    headers = Fields()
    left: int | None = 0  # of the body; None: it is chunked
    expects = False
    _searched = 0  # bytes of the next head that hold no end

    def __init__(self, known: Known) -> None:
        self._known = known
        self.line = ANY
        self.options: set[bytes] = set()  # of the connection
        self._parser = httptools.HttpRequestParser(self)
        self.is_complete = True
        self.pieces: list[bytes] = []  # of the body, since somebody took them

    def head(self, raw: bytes) -> None:
        """Read a head, from its first byte to its empty line. Raises RefusedError."""
        end = raw.find(LINE_END) + len(LINE_END)
        line, fields = raw[:end], raw[end:]
        self.line = read_line(line) if end <= KEPT_BYTES else read_line.__wrapped__(line)
        minor = self.line.minor
        if minor == b"1" and (known := self._known.get(fields)) is not None:
            self.headers, self.options = known
            self.left, self.expects, self.is_complete = 0, False, True
            return
        if fields.count(LINE_END) - 1 > MOST_HEADERS:  # before each of them costs
            raise RefusedError(431)
        self._beside, self._tail = -SPARE_BYTES, b""
        try:
            self._read_fields(fields)
        except httptools.HttpParserError:
            raise RefusedError(501 if are_unknown(codings_of(raw)) else 400) from None
        self.headers = Fields(self._found)
        if self.hosts > 1 or (self.hosts == 0 and minor != b"0"):
            raise RefusedError(400)
        if self.left is None:
            codings = codings_of(raw)
            if are_unknown(codings):
                raise RefusedError(501)
            if minor == b"0" or codings != [b"chunked"]:  # HTTP/1.0 has none (RFC 9112, 6.1)
                raise RefusedError(400)
        if self.is_complete and minor == b"1":
            self._known.keep(fields, self.headers, self.options)

    def find_end(self, data: bytes, at: int) -> int | None:
        """Give where the head that begins at `at` ends, as `end_of_head`, and search on later."""
        end = end_of_head(data, at, self._searched)
        self._searched = len(data) - at if end is None else 0
        return end

    def _read_fields(self, fields: bytes) -> None:
        self._found: list[tuple[bytes, bytes]] = []
        self.hosts = 0
        self.left, self.expects, self.options = 0, False, set()
        self._in_head, self.is_complete = True, False
        try:
            self._parser.feed_data(NOTHING + fields)
        except httptools.HttpParserUpgrade:  # it takes an offer for accepted, and sees no body
            self._parser = httptools.HttpRequestParser(self)
            self._read_fields(UPGRADE.sub(b"", fields))
        self._in_head = False

    def body(self, data: bytes, at: int) -> int:
        """Read on in the body; give where it stopped. Raises RefusedError."""
        if self.left is not None:
            end = min(len(data), at + self.left)
            self.left -= end - at
        else:
            # The empty line may have begun in what was read before.
            seen = self._tail + data[at:] if self._tail else data[at:]
            found = seen.find(END)
            end = len(data) if found < 0 else at + found + len(END) - len(self._tail)
            self._tail = seen[-3:] if found < 0 else b""
            self._beside += end - at
        try:
            self._parser.feed_data(data[at:end])
        except httptools.HttpParserError:
            raise RefusedError(400) from None
        if self._beside > 0:
            raise RefusedError(431)
        return end

    def close(self) -> None:
        """Read no more: the parser calls this reader, which would keep both alive."""
        del self._parser

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; of trailers there is no use."""
        if not self._in_head:
            return
        name, value = name.lower(), value.rstrip(b" \t")
        if name == b"host":
            self.hosts += 1 if len(value) <= HOST_BYTES else 2  # refused as two are
        elif name in SPECIAL:
            if name == b"upgrade":  # nothing else is spoken here
                return
            self._note(name, value)
        self._found.append((name, value))

    def _note(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            self.left = int(value)  # llhttp has seen that it is digits
        elif name == b"transfer-encoding":
            self.left = None
        elif name == b"expect":
            self.expects = value.lower() == b"100-continue" and self.line.version != "1.0"
        else:
            self.options.update(map(bytes.strip, value.lower().split(b",", MOST_OPTIONS)))

    def on_body(self, piece: bytes) -> None:
        """Take a piece of the body, and allow for what stands beside a chunk's data."""
        self._beside -= len(piece) + LINE_BYTES
        self.pieces.append(piece)

    def on_message_complete(self) -> None:
        """Note that the request is whole."""
        self.is_complete = True


SPECIAL = FRAMING | {b"expect", b"connection", b"upgrade"}


def end_of_head(data: bytes, at: int, searched: int = 0) -> int | None:
    """Give where the head that begins at `at` ends, if it is whole. Raises RefusedError.

    Bytes that cannot become a head any more are refused at once. searched: the bytes behind `at`
    in which an earlier search has seen no end.
    """
    begin = at + max(0, searched - len(END) + 1)
    end = data.find(END, begin) + len(END)
    is_whole = end >= len(END)
    if (end if is_whole else len(data)) - at > HEAD_BYTES:
        raise RefusedError(431)
    if is_whole:
        return end
    is_new_line = data.find(b"\n", at) >= begin
    is_refused = is_new_line and REQUEST_LINE.match(data, at) is None
    if is_refused or BEGINNING.match(data, at) is None:
        raise RefusedError(400)
    return None
