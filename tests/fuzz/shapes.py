"""Strategies of hypothesis: requests for any route, of shapes that may be expensive."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import quart.wrappers.request
import werkzeug.sansio.request
from hypothesis import strategies as st

import service

HEAD, BODY = 60_000, 65_536  # bytes of a request at most, without its own lines
MAX_HEADERS = 95
# Names of headers in the code of the framework and of this service.
SOURCES = (
    Path(werkzeug.sansio.request.__file__),
    Path(quart.wrappers.request.__file__),
    *(
        Path(service.__file__).parent / name
        for name in ("http/cors.py", "http/responses.py", "openapi/headers.py")
    ),
)
NAME = re.compile(r'"([A-Z][A-Za-z]*(?:-[A-Z]\w+)*)"')
FIELDS = sorted(
    {"Connection", "Cookie", "Expect", "Forwarded", "Host", "TE", "Trailer", "Upgrade"}.union(
        *(NAME.findall(path.read_text(encoding="utf-8")) for path in SOURCES)
    )
)
# Text that some part of the stack splits, folds, expands, decodes or searches for.
PIECES = [
    "a", " ", "\t", ",", ", ", ";", "&", "=", "%", "+", "-", "- ", ".", "..", "/", ":", "@", "a@",
    "b.", '"', "\\", "\\\\", '\\"', "'", "(", "[", "{", "<", "*", "0", "9", "0.", "1,", "1-2,",
    "1e9,", "a=b; ", '"a", ', 'W/"a", ', "a/b;q=1,",
    "%20", "%C3%A9", "%ff", "%00", "\\n", "\\u0041", "\\ud83d\\ude00", "é", "ß", "ŉ", "ﷺ",
    "\u0958", "İ", "ΐ",
    "\u0301", "\u200b", "\u3000", "\u3002", "Ａ", "가", "각", "\U0001d15e",
    "\u0301\u0323", "xn--", "xn--a.", "Bearer ", "a.b.c", "gzip, ", "close, ",
]  # fmt: skip
SMALL_VALUES = [
    "0", "-1", "1.1", "1e9", "99999999999999999999", "null", "true", '""', '"a"', '"\\n"',
    '"\\u0041"', "[]", "{}", "[[]]", "[0]", '{"":0}', '{"a":[]}', '{"":"\\n"}', "NaN",
]  # fmt: skip

Draw = Callable[..., Any]


@dataclass(frozen=True)
class Operation:
    """A method of a route.

    template: its path, to be filled with `values`. query: names of its parameters. example: a
    valid body. required: a query string with the parameters that a valid request must have.
    """

    method: str
    rule: str
    template: str
    values: dict[str, Any]
    query: tuple[str, ...] = ()
    example: dict[str, Any] | None = None
    is_secured: bool = False
    required: str = ""

    @property
    def label(self) -> str:
        """The name of the operation."""
        return f"{self.method} {self.template}"


@dataclass
class Case:
    """A request. shape: a description of its parts."""

    operation: Operation
    target: bytes
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes | None = None
    chunk: int = 0
    shape: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, operation: Operation) -> "Case":
        """Make an ordinary request for an operation, without a token."""
        case = cls(operation, operation.template.format(**operation.values).encode())
        if operation.example is not None:
            case.body = json.dumps(operation.example).encode()
        return case

    def as_bytes(self) -> bytes:
        """Give the bytes of the request, which closes its connection."""
        given = {name.lower() for name, _ in self.headers}
        lines = [b"%b %b HTTP/1.1" % (self.operation.method.encode(), self.target)]
        own = [(b"Host", b"x")]
        body = self.body
        if body is not None:
            own.append((b"Content-Type", b"application/json"))
            if self.chunk:
                own.append((b"Transfer-Encoding", b"chunked"))
                parts = [body[at : at + self.chunk] for at in range(0, len(body), self.chunk)]
                body = (
                    b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
                )
            else:
                own.append((b"Content-Length", b"%d" % len(body)))
        lines += [b"%b: %b" % pair for pair in own if pair[0].lower() not in given]
        lines += [b"%b: %b" % pair for pair in [*self.headers, (b"Connection", b"close")]]
        return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")


pieces = st.one_of(st.sampled_from(PIECES), st.text(min_size=1, max_size=4))
sizes = st.one_of(st.just(BODY), st.integers(0, 16).map(lambda power: 2**power))


def fill(draw: Draw, size: int, case: Case, encode: Callable[[str], bytes]) -> bytes:
    """Draw a long text: a piece many times, and other pieces at the ends."""
    begin, piece, end = (draw(pieces) if draw(st.booleans()) else "" for _ in range(3))
    piece = piece or draw(st.sampled_from(PIECES))
    coded = encode(piece) or b"a"
    size = min(size, draw(sizes))
    number = max(0, size - len(encode(begin)) - len(encode(end))) // len(coded)
    case.shape.append(f"{begin + piece!r} x {number}")
    return encode(begin) + coded * number + encode(end)


def in_header(text: str) -> bytes:
    """Encode a header's value, without characters that end it."""
    return re.sub(rb"[\x00-\x08\x0a-\x1f\x7f]", b"", text.encode("utf-8", "surrogatepass"))


def in_target(text: str) -> bytes:
    """Encode a target, with escapes. Text with the form of an escape stays."""
    raw = text.encode("utf-8", "surrogatepass")
    return b"".join(b"%c" % c if 33 <= c <= 126 else b"%%%02X" % c for c in raw).replace(b"#", b"a")


def in_string(text: str) -> bytes:
    """Encode a JSON string without its quotes. Text with the form of an escape stays."""
    escaped = (
        text if text.startswith(("\\u", "\\n")) else json.dumps(text, ensure_ascii=False)[1:-1]
    )
    return escaped.encode("utf-8", "surrogatepass")


def members(draw: Draw, room: int, case: Case) -> bytes:
    """Draw many members with unknown names."""
    stem, value = in_string(draw(pieces)), draw(st.sampled_from(SMALL_VALUES)).encode()
    stem *= draw(st.sampled_from([1, 1, 1, 10, 100]))
    each = len(stem) + len(value) + 8
    number = min(room, draw(sizes)) // each
    case.shape.append(f"{number} members {stem[:20]!r}: {value.decode()}")
    return b",".join(b'"%b%x":%b' % (stem, n, value) for n in range(number))


def value(draw: Draw, room: int, case: Case) -> bytes:
    """Draw a member's value: a long string or number, many values, or nested values."""
    kind = draw(st.sampled_from(["string", "many", "number", "nested", "object", "small"]))
    case.shape.append(kind)
    if kind == "string":
        return b'"%b"' % fill(draw, room, case, in_string)
    if kind == "many":
        small = draw(st.sampled_from(SMALL_VALUES))
        number = max(1, min(room, draw(sizes)) // (len(small) + 1))
        case.shape.append(f"{small} x {number}")
        return b"[%b]" % b",".join([small.encode()] * number)
    if kind == "number":
        return fill(draw, room, case, lambda text: re.sub("[^0-9.e-]", "9", text).encode())
    if kind == "nested":
        begin, end = draw(st.sampled_from([("[", "]"), ('{"":', "}")]))
        depth = min(room, draw(sizes)) // (len(begin) + len(end))
        return f"{begin * depth}0{end * depth}".encode()
    if kind == "object":
        return b"{%b}" % members(draw, room, case)
    return str(draw(st.sampled_from(SMALL_VALUES))).encode()


def draw_body(draw: Draw, case: Case) -> None:
    """Draw a body: known members with valid or other values, unknown members, and blanks."""
    example = case.operation.example or {}
    room = BODY - 300
    parts: list[bytes] = []
    names = list(example)
    hostile = draw(st.sets(st.sampled_from(names), max_size=3)) if names else set()
    for name in names:
        if name in hostile:
            case.shape.append(name)
            parts.append(b'"%b":%b' % (name.encode(), value(draw, room, case)))
        elif draw(st.integers(0, 9)):
            parts.append(b'"%b":%b' % (name.encode(), json.dumps(example[name]).encode()))
        room = BODY - 300 - sum(map(len, parts))
    if draw(st.booleans()):
        parts.append(members(draw, max(0, room), case))
    body = b"{%b}" % b",".join(filter(None, parts))
    if draw(st.integers(0, 3)) == 0:
        blank = draw(st.sampled_from([b" ", b"\n", b"\t ", b"\xff", b"}", b","]))
        body += blank * (max(0, BODY - len(body)) // len(blank))
        case.shape.append(f"end {blank!r}")
    case.body = body
    case.chunk = draw(st.sampled_from([0, 0, 0, 1, 7, 1_000]))
    if case.chunk:
        case.shape.append(f"chunks of {case.chunk}")


def draw_query(draw: Draw, case: Case) -> None:
    """Draw few or many parameters, known and unknown."""
    number = draw(st.one_of(st.integers(1, 4), st.integers(1, 60)))
    room = HEAD // number - 20
    known = st.sampled_from(case.operation.query) if case.operation.query else st.nothing()
    names = st.one_of(known.map(str.encode), st.just(b""))
    pairs = []
    sample = fill(draw, room, case, in_target)
    for n in range(number):
        name = draw(names) or (sample if draw(st.booleans()) else b"") + b"%d" % n
        text = sample if draw(st.booleans()) else b"1"
        pairs.append(name + b"=" + text if draw(st.integers(0, 5)) else name)
    case.shape.append(f"in {number} parameters {b'&'.join(p[:12] for p in pairs[:4])!r}")
    case.target += b"?" + b"&".join(pairs)


def draw_path(draw: Draw, case: Case) -> None:
    """Draw a longer path or another path."""
    text = fill(draw, HEAD, case, in_target)
    begin = draw(st.sampled_from([case.target, case.target + b"/", b"/", b"http://", b"*"]))
    last = case.target.rpartition(b"/")[0] + b"/"
    case.target = draw(st.sampled_from([begin, last])) + text
    case.shape.append(f"path {case.target[:24]!r}")


def draw_headers(draw: Draw, case: Case) -> None:
    """Draw one long header, or many headers of one name or of several names."""
    number = draw(st.sampled_from([1, 1, 2, 10, MAX_HEADERS, 3_000]))
    room = max(0, HEAD // number - 40)
    name, text = draw(st.sampled_from(FIELDS)), fill(draw, room, case, in_header)
    case.shape.append(f"in {number} {name}")
    same = number == 1 or draw(st.booleans())
    for n in range(number):
        each = name if same else f"X-{n}"
        case.headers.append((each.encode(), text))
    if draw(st.booleans()):
        case.headers += [
            (draw(st.sampled_from(FIELDS)).encode(), draw(st.sampled_from(PIECES)).encode())
            for _ in range(2)
        ]


PLACES = {"body": draw_body, "query": draw_query, "path": draw_path, "headers": draw_headers}


@st.composite
def cases(draw: Draw, operation: Operation, place: str, token: str) -> Case:
    """Draw a request for an operation that is unusual in a place, and perhaps in a second place.

    A secured operation gets a token in some of the requests.
    """
    case = Case.of(operation)
    if operation.is_secured and draw(st.booleans()):
        case.headers.append((b"Authorization", b"Bearer " + token.encode()))
        case.shape.append("signed in")
    names = [name for name in PLACES if name != "body" or operation.example is not None]
    for each in {place: 1, draw(st.sampled_from([place, *names])): 1}:
        PLACES[each](draw, case)
    return case
