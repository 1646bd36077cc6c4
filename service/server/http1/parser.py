"""Parse requests with llhttp (httptools), one message at a time, and refuse ambiguous messages.

llhttp parses the header fields and the framing, and is strict: no bare LF, no folded lines, no
Content-Length together with Transfer-Encoding. This module parses the request line, because llhttp
is less exact there: it accepts two spaces, HTTP/0.9 and RTSP, accepts only the methods on its list,
and refuses targets that the application should refuse. So llhttp gets each head with a placeholder
request line.
"""

import re
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote

import httptools

from service.server.http1.codings import FRAMING, are_unknown, codings_of

HEAD_BYTES = 65_536  # maximum of a request's head; a token of 60,000 bytes still gets 401
HOST_BYTES = 260  # maximum of a host name (253) and a port
MAX_HEADERS = 100
MAX_OPTIONS = 50  # maximum number of options of a Connection field that are split
MAX_SECTIONS, MAX_SECTION_BYTES = (
    2_048,
    1_024,
)  # maximum of cached header sections, and size of each
LINE_BYTES = 16  # overhead of a chunk: size, two line ends, and a margin
SPARE_BYTES = 16_384  # maximum of further overhead of a body: chunk extensions and trailers
REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/(\d)\.(\d)\r\n")
LINE_END = b"\r\n"
BEGINNING = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]|\r?\Z")
NOTHING = b"POST / HTTP/1.1\r\n"  # the placeholder request line
UPGRADE = re.compile(rb"(?im)^upgrade:[^\r\n]*\r\n")
END = b"\r\n\r\n"  # end of a head, and of a chunked body

MAX_DECODED_PATH = 2_048  # bytes of a path that is percent-decoded; a longer path stays as it is


class RefusedError(Exception):
    """The request is refused. status: of the error response."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class HeaderFields(tuple[tuple[bytes, bytes], ...]):
    """Header fields, with names in lower case.

    parsed: the application may store its own parse result here. Later requests with the same bytes
    get the same object.
    """

    parsed: Any = None


class Target(NamedTuple):
    """A request target in the form of ASGI. path: percent-decoded."""

    raw_path: bytes
    query: bytes
    path: str


class Line(NamedTuple):
    """A request line. target: as received. parsed: the target as path and query."""

    method: str
    target: bytes
    version: str
    minor: bytes
    parsed: Target


@lru_cache(MAX_SECTIONS)
def read_line(raw: bytes) -> Line:
    """Parse a request line, with its CRLF. Raises RefusedError (400, 501, 505)."""
    match = REQUEST_LINE.fullmatch(raw)
    if match is None:
        raise RefusedError(400)
    method, target, major, minor = match.groups()
    if major != b"1":
        raise RefusedError(505)
    if method != method.upper() or method == b"CONNECT":  # tunnels are not supported
        raise RefusedError(501)
    version = "1.0" if minor == b"0" else "1.1"
    return Line(method.decode(), target, version, minor, read_target(target))


def read_target(target: bytes) -> Target:
    """Split a target into path and query."""
    raw_path, _, query = target.partition(b"?")
    path = raw_path.decode()
    is_coded = "%" in path and len(path) <= MAX_DECODED_PATH
    return Target(raw_path, query, unquote(path) if is_coded else path)


ANY = read_line(b"GET / HTTP/1.1\r\n")  # placeholder before the first request


class HeaderCache(dict[bytes, tuple[HeaderFields, set[bytes]]]):
    """Cache of parsed header sections and their connection options, by their bytes.

    Most clients repeat their header section, and equal client programs send equal sections.
    """

    def keep(self, raw: bytes, fields: HeaderFields, options: set[bytes]) -> None:
        """Add a header section. A full cache is cleared first."""
        if len(raw) <= MAX_SECTION_BYTES:
            if len(self) >= MAX_SECTIONS:
                self.clear()
            self[raw] = fields, options


class Reader:
    """Parses requests in order: `head` once, then `body` until `is_complete`.

    llhttp never gets data beyond the end of a message: a body with Content-Length is cut at its
    end, and a chunked body ends with an empty line, as a head does. So the position of the next
    request is known, and its data stay unparsed until the current request is complete.
    """

    headers = HeaderFields()
    left: int | None = 0  # remaining bytes of the body; None: it is chunked
    expects = False
    _searched = 0  # bytes of the next head that were searched for its end

    def __init__(self, known: HeaderCache) -> None:
        self._known = known
        self.line = ANY
        self.options: set[bytes] = set()  # connection options
        self._parser = httptools.HttpRequestParser(self)
        self.is_complete = True
        self.pieces: list[bytes] = []  # parts of the body that the connection has not taken yet

    def head(self, raw: bytes) -> None:
        """Parse a head, from its first byte to its empty line. Raises RefusedError."""
        end = raw.find(LINE_END) + len(LINE_END)
        line, fields = raw[:end], raw[end:]
        self.line = read_line(line) if end <= MAX_SECTION_BYTES else read_line.__wrapped__(line)
        minor = self.line.minor
        if minor == b"1" and (known := self._known.get(fields)) is not None:
            self.headers, self.options = known
            self.left, self.expects, self.is_complete = 0, False, True
            return
        if fields.count(LINE_END) - 1 > MAX_HEADERS:  # before the cost of parsing them
            raise RefusedError(431)
        self._beside, self._tail = -SPARE_BYTES, b""
        try:
            self._read_fields(fields)
        except httptools.HttpParserError:
            raise RefusedError(501 if are_unknown(codings_of(raw)) else 400) from None
        self.headers = HeaderFields(self._fields)
        if self.hosts > 1 or (self.hosts == 0 and minor != b"0"):
            raise RefusedError(400)
        if self.left is None:
            codings = codings_of(raw)
            if are_unknown(codings):
                raise RefusedError(501)
            if minor == b"0" or codings != [b"chunked"]:  # HTTP/1.0 has no codings (RFC 9112, 6.1)
                raise RefusedError(400)
        if self.is_complete and minor == b"1":
            self._known.keep(fields, self.headers, self.options)

    def find_end(self, data: bytes, at: int) -> int | None:
        """Return the result of `end_of_head`. The next call continues the search of this call."""
        end = end_of_head(data, at, self._searched)
        self._searched = len(data) - at if end is None else 0
        return end

    def _read_fields(self, fields: bytes) -> None:
        self._fields: list[tuple[bytes, bytes]] = []
        self.hosts = 0
        self.left, self.expects, self.options = 0, False, set()
        self._in_head, self.is_complete = True, False
        try:
            self._parser.feed_data(NOTHING + fields)
        except httptools.HttpParserUpgrade:  # llhttp treats Upgrade as accepted, and parses no body
            self._parser = httptools.HttpRequestParser(self)
            self._read_fields(UPGRADE.sub(b"", fields))
        self._in_head = False

    def body(self, data: bytes, at: int) -> int:
        """Parse more of the body, from position `at`; return the end. Raises RefusedError."""
        if self.left is not None:
            end = min(len(data), at + self.left)
            self.left -= end - at
        else:
            # The empty line may have started in earlier data.
            seen = self._tail + data[at:] if self._tail else data[at:]
            index = seen.find(END)
            end = len(data) if index < 0 else at + index + len(END) - len(self._tail)
            self._tail = seen[-3:] if index < 0 else b""
            self._beside += end - at
        try:
            self._parser.feed_data(data[at:end])
        except httptools.HttpParserError:
            raise RefusedError(400) from None
        if self._beside > 0:
            raise RefusedError(431)
        return end

    def close(self) -> None:
        """Break the reference cycle between this reader and its parser. Call no method after."""
        del self._parser

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header field. Trailer fields are ignored."""
        if not self._in_head:
            return
        name, value = name.lower(), value.rstrip(b" \t")
        if name == b"host":
            self.hosts += 1 if len(value) <= HOST_BYTES else 2  # too long: refused as two would be
        elif name in SPECIAL:
            if name == b"upgrade":  # no other protocol is supported
                return
            self._note(name, value)
        self._fields.append((name, value))

    def _note(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            self.left = int(value)  # llhttp has checked that the value is digits
        elif name == b"transfer-encoding":
            self.left = None
        elif name == b"expect":
            self.expects = value.lower() == b"100-continue" and self.line.version != "1.0"
        else:
            self.options.update(map(bytes.strip, value.lower().split(b",", MAX_OPTIONS)))

    def on_body(self, piece: bytes) -> None:
        """Add a piece of the body, and permit the overhead of its chunk."""
        self._beside -= len(piece) + LINE_BYTES
        self.pieces.append(piece)

    def on_message_complete(self) -> None:
        """Mark the request as complete."""
        self.is_complete = True


SPECIAL = FRAMING | {b"expect", b"connection", b"upgrade"}


def end_of_head(data: bytes, at: int, searched: int = 0) -> int | None:
    """Return the end of the head that starts at `at`; None if it is incomplete.

    Raises RefusedError as soon as the data cannot become a valid head. searched: number of bytes
    after `at` that an earlier call has searched.
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
