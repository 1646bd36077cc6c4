"""Requests as bytes, their responses, and the different responses of h11 with the reason.

`statuses` are those of all responses, in order, 100 included. Then the connection is `open` (a
further request has a response), `closed`, or the server `waits` for more.
"""

from dataclasses import dataclass

OPEN, CLOSED, WAITS = "open", "closed", "waits"
HEAD_LIMIT = 65_536


@dataclass(frozen=True)
class Case:
    """One connection, from its first byte."""

    name: str
    raw: bytes
    statuses: tuple[int, ...]
    end: str = OPEN
    body: str | None = None  # of the first request, as the application receives it
    shown: tuple[str, str] | None = (
        None  # another part of the request that the application receives
    )
    h11: tuple[tuple[int, ...], str, str] | str | None = None  # statuses, end, reason


H = b"Host: x\r\n"
GET = b"GET / HTTP/1.1\r\n" + H
POST = b"POST / HTTP/1.1\r\n" + H
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
EXPECT = b"Expect: 100-continue\r\n"
REFUSED = ((400,), CLOSED)
OK = (200,)


def line(name: str, raw: bytes, *more: object, **named: object) -> Case:
    """Return a case of a request line; a Host header follows it."""
    return Case(name, raw + b"\r\n" + H + b"\r\n", *more, **named)  # type: ignore[arg-type]  # passed on


def field(name: str, raw: bytes, *more: object, **named: object) -> Case:
    """Return a case of header lines of a GET request."""
    return Case(name, GET + raw + b"\r\n\r\n", *more, **named)  # type: ignore[arg-type]  # passed on


def chunks(name: str, raw: bytes, *more: object, **named: object) -> Case:
    """Return a case of a chunked body."""
    return Case(f"chunks: {name}", CHUNKED + raw, *more, **named)  # type: ignore[arg-type]  # passed on


BY_CHANCE = "the limit depends on how the bytes are split into reads"
LENIENT = "accepts LF as CRLF"
ANYTHING = "accepts any bytes"
REQUEST_LINES = [
    line("the simplest", b"GET / HTTP/1.1", OK),
    line("a query", b"GET /a?b=c HTTP/1.1", OK, shown=("query", "b=c")),
    line("two question marks", b"GET /a?b?c HTTP/1.1", OK, shown=("query", "b?c")),
    line("an escaped path", b"GET /a%20b HTTP/1.1", OK, shown=("path", "/a b")),
    line("an escaped slash", b"GET /a%2Fb HTTP/1.1", OK, shown=("raw_path", "/a%2Fb")),
    line("an invalid escape", b"GET /%zz HTTP/1.1", OK, shown=("path", "/%zz")),
    line("an escaped NUL", b"GET /%00 HTTP/1.1", OK, shown=("path", "/\x00")),
    line("a fragment", b"GET /a#b HTTP/1.1", OK, shown=("path", "/a#b")),
    line("odd characters", b'GET /"<>{}|\\^` HTTP/1.1', OK, shown=("path", '/"<>{}|\\^`')),
    line("a target that is not a path", b"GET ? HTTP/1.1", OK, shown=("path", "")),
    line("a target without a slash", b"GET a/b HTTP/1.1", OK, shown=("path", "a/b")),
    line("a target with a scheme", b"GET x:/a HTTP/1.1", OK, shown=("path", "x:/a")),
    line("two slashes", b"GET //a HTTP/1.1", OK, shown=("path", "//a")),
    line("an absolute target", b"GET http://y/a?b HTTP/1.1", OK, shown=("path", "/a")),
    line("an absolute target alone", b"GET http://y HTTP/1.1", OK, shown=("path", "/")),
    line("an absolute target, a query", b"GET http://y?b HTTP/1.1", OK, shown=("query", "b")),
    line("an absolute target in capitals", b"GET HTTP://y/a HTTP/1.1", OK, shown=("path", "/a")),
    line("an asterisk", b"OPTIONS * HTTP/1.1", OK, shown=("path", "*")),
    line("an authority", b"CONNECT y:80 HTTP/1.1", (501,), CLOSED),
    line("CONNECT to a path", b"CONNECT / HTTP/1.1", (501,), CLOSED),
    line("a method unknown here", b"BREW / HTTP/1.1", OK, shown=("method", "BREW")),
    line("a method of marks", b"M-SEARCH / HTTP/1.1", OK, shown=("method", "M-SEARCH")),
    line("a method of digits", b"123 / HTTP/1.1", OK, shown=("method", "123")),
    line("TRACE", b"TRACE / HTTP/1.1", OK, shown=("method", "TRACE")),
    line("a small method", b"get / HTTP/1.1", (501,), CLOSED),
    line("a mixed method", b"Get / HTTP/1.1", (501,), CLOSED),
    line("no method", b" / HTTP/1.1", *REFUSED),
    line("a method that is not a token", b"GE(T / HTTP/1.1", *REFUSED),
    line("a method with a control", b"GE\x01T / HTTP/1.1", *REFUSED),
    line("no target", b"GET HTTP/1.1", *REFUSED),
    line("an empty target", b"GET  HTTP/1.1", *REFUSED),
    line("two spaces before the target", b"GET  / HTTP/1.1", *REFUSED),
    line("two spaces after the target", b"GET /  HTTP/1.1", *REFUSED),
    line("a space in the target", b"GET /a b HTTP/1.1", *REFUSED),
    line("a space at the end", b"GET / HTTP/1.1 ", *REFUSED),
    line("a space at the beginning", b" GET / HTTP/1.1", *REFUSED),
    line("a tab", b"GET\t/ HTTP/1.1", *REFUSED),
    line("a vertical tab", b"GET /\x0b HTTP/1.1", *REFUSED),
    line("a NUL in the target", b"GET /\x00 HTTP/1.1", *REFUSED),
    line("a DEL in the target", b"GET /\x7f HTTP/1.1", *REFUSED),
    line("a CR in the target", b"GET /\rX HTTP/1.1", *REFUSED),
    line("bytes beyond ASCII in the target", b"GET /\xff HTTP/1.1", *REFUSED),
    line("UTF-8 in the target", "GET /ä HTTP/1.1".encode(), *REFUSED),
    line("version 1.0", b"GET / HTTP/1.0", OK, CLOSED, shown=("version", "1.0")),
    line("version 1.2", b"GET / HTTP/1.2", OK, shown=("version", "1.1"),
         h11=(OK, OPEN, "gives the application the version of the client, not of the connection")),
    line("version 2.0", b"GET / HTTP/2.0", (505,), CLOSED),
    line("version 3.0", b"GET / HTTP/3.0", (505,), CLOSED),
    line("version 0.9", b"GET / HTTP/0.9", (505,), CLOSED),
    line("no version", b"GET /", *REFUSED),
    line("a version without a dot", b"GET / HTTP/11", *REFUSED),
    line("a version of two digits", b"GET / HTTP/1.10", *REFUSED),
    line("a version with a zero", b"GET / HTTP/01.1", *REFUSED),
    line("a version with a comma", b"GET / HTTP/1,1", *REFUSED),
    line("a small protocol", b"GET / http/1.1", *REFUSED),
    line("another protocol", b"GET / ICE/1.0", *REFUSED),
    line("RTSP", b"GET / RTSP/1.0", *REFUSED),
    Case("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (505,), CLOSED),
    Case("the beginning of TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", *REFUSED),
    Case("a NUL first", b"\x00" + GET + b"\r\n", *REFUSED),
    Case("half a request line", b"GET / HT", (), WAITS),
    Case("nothing", b"", (), WAITS),
    Case("an empty line before", b"\r\n" + GET + b"\r\n", OK, h11=(*REFUSED, "refuses it")),
    Case("a CR alone", b"\r", (), WAITS, h11=(*REFUSED, "refuses it")),
    Case("two empty lines before", b"\r\n\r\n" + GET + b"\r\n", *REFUSED),
    Case("a LF before", b"\n" + GET + b"\r\n", *REFUSED),
    Case("LF after the request line", b"GET / HTTP/1.1\nHost: x\r\n\r\n", *REFUSED,
         h11=(OK, OPEN, LENIENT)),
    Case("LF everywhere", b"GET / HTTP/1.1\nHost: x\n\n", *REFUSED, h11=(OK, OPEN, LENIENT)),
    Case("half of an invalid line", b"GET /\r\nHost: x", *REFUSED,
         h11=((), WAITS, "parses complete heads only")),
]  # fmt: skip

HEADERS = [
    field("a header", b"A: b", OK),
    field("no space after the colon", b"A:b", OK),
    field("spaces around the value", b"A: \t b \t ", OK),
    field("an empty value", b"A:", OK),
    field("a tab in the value", b"A: b\tc", OK),
    field("bytes beyond ASCII in the value", b"A: \xff\xe4", OK),
    field("a header twice", b"A: b\r\nA: c", OK),
    field("marks in the name", b"!#$%&'*+-.^_`|~9: b", OK),
    field("a colon in the value", b"A: b:c", OK),
    field("a space before the colon", b"A : b", *REFUSED),
    field("a tab before the colon", b"A\t: b", *REFUSED),
    field("a space in the name", b"A B: c", *REFUSED),
    field("no name", b": b", *REFUSED),
    field("no colon", b"A", *REFUSED),
    field("a bracket in the name", b"A(: b", *REFUSED),
    field("a slash in the name", b"A/: b", *REFUSED),
    field("a NUL in the name", b"A\x00: b", *REFUSED),
    field("bytes beyond ASCII in the name", b"\xe4: b", *REFUSED),
    field("a NUL in the value", b"A: b\x00c", *REFUSED),
    field("a control in the value", b"A: b\x01c", *REFUSED,
          h11=(OK, OPEN, "accepts every control but NUL, CR and LF")),
    field("a DEL in the value", b"A: b\x7fc", *REFUSED,
          h11=(OK, OPEN, "accepts every control but NUL, CR and LF")),
    field("a CR in the value", b"A: b\rc", *REFUSED),
    field("a CR before the value's end", b"A: b\r", *REFUSED),
    field("a LF in the value", b"A: b\nC: d", *REFUSED, h11=(OK, OPEN, LENIENT)),
    field("a folded line", b"A: b\r\n c", *REFUSED, h11=(OK, OPEN, "unfolds it")),
    field("a line folded by a tab", b"A: b\r\n\tc", *REFUSED, h11=(OK, OPEN, "unfolds it")),
    Case("a space before the first header", b"GET / HTTP/1.1\r\n Host: x\r\n\r\n", *REFUSED),
    Case("a space as the first header", b"GET / HTTP/1.1\r\n \r\nHost: x\r\n\r\n", *REFUSED),
    Case("no host", b"GET / HTTP/1.1\r\n\r\n", *REFUSED),
    Case("no host in 1.0", b"GET / HTTP/1.0\r\n\r\n", OK, CLOSED),
    Case("no host with an absolute target", b"GET http://y/ HTTP/1.1\r\n\r\n", *REFUSED),
    Case("an empty host", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", OK),
    Case("the longest host", b"GET / HTTP/1.1\r\nHost: " + b"a" * 260 + b"\r\n\r\n", OK),
    Case("a host too long", b"GET / HTTP/1.1\r\nHost: " + b"a" * 261 + b"\r\n\r\n", *REFUSED),
    line("an absolute target, its host too long", b"GET http://" + b"a" * 261 + b"/ HTTP/1.1",
         *REFUSED),
    field("two hosts", b"Host: y", *REFUSED),
    field("the same host twice", b"Host: x", *REFUSED),
    field("two hosts, spelled otherwise", b"HOST: x", *REFUSED),
    Case("two hosts in 1.0", b"GET / HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n", *REFUSED),
    field("as long as it may be", b"A: " + b"b" * (HEAD_LIMIT - len(GET) - 7), OK,
          h11=BY_CHANCE),
    field("one byte longer", b"A: " + b"b" * (HEAD_LIMIT - len(GET) - 6), (431,), CLOSED,
          h11=BY_CHANCE),
    field("much too long", b"A: " + b"b" * 300_000, (431,), CLOSED),
    Case("endless headers", GET + b"A: b\r\n" * 20_000, (431,), CLOSED),
    Case("an endless request line", b"GET /" + b"a" * 100_000, (431,), CLOSED),
    line("a long target", b"GET /" + b"a" * 60_000 + b" HTTP/1.1", OK, h11=BY_CHANCE),
    line("a target too long", b"GET /" + b"a" * 70_000 + b" HTTP/1.1", (431,), CLOSED),
    Case("100 headers", GET + b"A: b\r\n" * 99 + b"\r\n", OK),
    Case("101 headers", GET + b"A: b\r\n" * 100 + b"\r\n", (431,), CLOSED,
         h11=(OK, OPEN, "has no limit of their number")),
    Case("headers that do not end", GET + b"A: b\r\n", (), WAITS),
]  # fmt: skip

FRAMING = [
    Case("a length", POST + b"Content-Length: 3\r\n\r\nabc", OK, body="abc"),
    Case("a length of 0", POST + b"Content-Length: 0\r\n\r\n", OK, body=""),
    Case("a length with zeros", POST + b"Content-Length: 0003\r\n\r\nabc", OK, body="abc"),
    Case("a length and spaces", POST + b"Content-Length:  3 \r\n\r\nabc", OK, body="abc"),
    Case("no length", POST + b"\r\n", OK, body=""),
    Case("a body of a GET", GET + b"Content-Length: 3\r\n\r\nabc", OK, body="abc"),
    Case("a large body", POST + b"Content-Length: 300000\r\n\r\n" + b"a" * 300_000, OK),
    Case("less than the length", POST + b"Content-Length: 3\r\n\r\nab", (), WAITS),
    Case("more than the length", POST + b"Content-Length: 3\r\n\r\nabc(\r\n\r\n", (200, 400),
         CLOSED),
    Case("a negative length", POST + b"Content-Length: -1\r\n\r\n", *REFUSED),
    Case("a length with a plus", POST + b"Content-Length: +3\r\n\r\nabc", *REFUSED),
    Case("a hexadecimal length", POST + b"Content-Length: 0x3\r\n\r\nabc", *REFUSED),
    Case("a length with a point", POST + b"Content-Length: 3.0\r\n\r\nabc", *REFUSED),
    Case("a length with an underscore", POST + b"Content-Length: 1_0\r\n\r\nabc", *REFUSED),
    Case("an empty length", POST + b"Content-Length:\r\n\r\n", *REFUSED),
    Case("a length in two", POST + b"Content-Length: 1 3\r\n\r\nabc", *REFUSED),
    Case("a length of other digits", POST + "Content-Length: ٣\r\n\r\nabc".encode(), *REFUSED),
    Case("a length of 30 digits", POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
         *REFUSED),
    Case("two lengths", POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", *REFUSED),
    Case("a length twice", POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", *REFUSED,
         h11=(OK, OPEN, "accepts equal values, as RFC 9110, 8.6 allows")),
    Case("a length twice in a line", POST + b"Content-Length: 3, 3\r\n\r\nabc", *REFUSED,
         h11=(OK, OPEN, "accepts equal values, as RFC 9110, 8.6 allows")),
    Case("two lengths in a line", POST + b"Content-Length: 3, 4\r\n\r\nabc", *REFUSED),
    Case("length, then chunked",
         POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", *REFUSED,
         h11=(OK, OPEN, "reads the chunks, and leaves the connection open")),
    Case("chunked, then length",
         POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", *REFUSED,
         h11=(OK, OPEN, "reads the chunks, and leaves the connection open")),
    Case("length and another coding",
         POST + b"Transfer-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", *REFUSED,
         h11=((501,), CLOSED, "checks the coding first")),
    Case("Chunked", POST + b"Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n", OK, body=""),
    Case("a tab and chunked", POST + b"Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n", OK),
    Case("another coding", POST + b"Transfer-Encoding: gzip\r\n\r\n", (501,), CLOSED),
    Case("another coding, chunked", POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
         (501,), CLOSED),
    Case("chunked, another coding", POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
         (501,), CLOSED),
    Case("no coding, chunked", POST + b"Transfer-Encoding: a b, chunked\r\n\r\n0\r\n\r\n", *REFUSED,
         h11=((501,), CLOSED, "any other coding is unknown")),
    Case("identity", POST + b"Transfer-Encoding: identity\r\n\r\n", (501,), CLOSED),
    Case("xchunked", POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", (501,), CLOSED),
    Case("a coding in quotes", POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
         *REFUSED, h11=((501,), CLOSED, "reads it as the name of a coding")),
    Case("chunked with a parameter", POST + b"Transfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n",
         (501,), CLOSED),
    Case("chunked and a control", POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
         *REFUSED),
    Case("chunked twice", POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", *REFUSED,
         h11=((501,), CLOSED, "reads it as the name of a coding")),
    Case("chunked in two lines",
         POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
         *REFUSED, h11=((501,), CLOSED, "refuses more than 1")),
    Case("a coding and chunked in two lines",
         POST + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
         (501,), CLOSED),
    Case("an empty coding", POST + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n", *REFUSED,
         h11=((501,), CLOSED, "reads it as the name of a coding")),
    Case("a folded coding", POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", *REFUSED,
         h11=(OK, OPEN, "unfolds it")),
    Case("a space before a coding's colon", POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
         *REFUSED),
    Case("chunked in 1.0",
         b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", *REFUSED,
         h11=(OK, CLOSED, "accepts it in 1.0 (RFC 9112, 6.1: faulty)")),
    Case("a trailing coding", GET + b"TE: trailers\r\n\r\n", OK),
]  # fmt: skip

CHUNKS = [
    chunks("1 chunk", b"3\r\nabc\r\n0\r\n\r\n", OK, body="abc"),
    chunks("no chunk", b"0\r\n\r\n", OK, body=""),
    chunks("2 chunks", b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", OK, body="abc"),
    chunks("capitals", b"A\r\n0123456789\r\n0\r\n\r\n", OK, body="0123456789"),
    chunks("zeros before", b"0003\r\nabc\r\n000\r\n\r\n", OK, body="abc"),
    chunks("data like an end", b"9\r\n0\r\n\r\n0\r\n\r\r\n0\r\n\r\n", OK, body="0\r\n\r\n0\r\n\r"),
    chunks("data of line ends", b"8\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\n", OK, body="\r\n" * 4),
    chunks("an extension", b"3;a\r\nabc\r\n0\r\n\r\n", OK, body="abc"),
    chunks("an extension's value", b"3;a=b\r\nabc\r\n0;c\r\n\r\n", OK, body="abc"),
    chunks("an extension in quotes", b'3;a="b;\\"c"\r\nabc\r\n0\r\n\r\n', OK, body="abc"),
    chunks("a trailer", b"0\r\nA: b\r\n\r\n", OK, body=""),
    chunks("a trailer that must not be one", b"0\r\nContent-Length: 5\r\n\r\n", *REFUSED,
           h11=(OK, OPEN, "ignores trailers")),
    chunks("no size", b"\r\nabc\r\n0\r\n\r\n", *REFUSED),
    chunks("no hexadecimal size", b"g\r\nabc\r\n0\r\n\r\n", *REFUSED),
    chunks("a negative size", b"-3\r\nabc\r\n0\r\n\r\n", *REFUSED),
    chunks("a size with a plus", b"+3\r\nabc\r\n0\r\n\r\n", *REFUSED),
    chunks("a size with 0x", b"0x3\r\nabc\r\n0\r\n\r\n", *REFUSED),
    chunks("a space before the size", b" 3\r\nabc\r\n0\r\n\r\n", *REFUSED),
    chunks("a space after the size", b"3 \r\nabc\r\n0\r\n\r\n", *REFUSED,
           h11=(OK, OPEN, "accepts spaces there, for old clients")),
    chunks("a size of 17 digits", b"1" + b"0" * 16 + b"\r\nabc", *REFUSED,
           h11=((), WAITS, "accepts 20 digits")),
    chunks("a size of 20 digits", b"0" * 19 + b"3\r\nabc\r\n0\r\n\r\n", OK, body="abc"),
    chunks("LF after the size", b"3\nabc\r\n0\r\n\r\n", *REFUSED),
    chunks("LF after the data", b"3\r\nabc\n0\r\n\r\n", *REFUSED),
    chunks("no line end after the data", b"3\r\nabc0\r\n\r\n", *REFUSED),
    chunks("more data than the size", b"3\r\nabcd\r\n0\r\n\r\n", *REFUSED),
    chunks("less data than the size", b"5\r\nabc\r\n0\r\n\r\n", *REFUSED),
    chunks("a NUL in an extension", b"3;\x00\r\nabc\r\n0\r\n\r\n", *REFUSED,
           h11=(OK, OPEN, ANYTHING)),
    chunks("a LF in an extension", b"3;a\nb\r\nabc\r\n0\r\n\r\n", *REFUSED),
    chunks("a CR in an extension", b"3;a\rb\r\nabc\r\n0\r\n\r\n", *REFUSED,
           h11=(OK, OPEN, ANYTHING)),
    chunks("an extension too long", b"3;" + b"a" * 200_000, (431,), CLOSED),
    chunks("extensions too long together", (b"1;" + b"a" * 500 + b"\r\nb\r\n") * 200, (431,),
           CLOSED, h11=((), WAITS, "limits each extension alone")),
    chunks("trailers too long", b"0\r\n" + b"A: b\r\n" * 40_000, (431,), CLOSED),
    chunks("a trailer without a colon", b"0\r\nA\r\n\r\n", *REFUSED),
    chunks("a folded trailer", b"0\r\nA: b\r\n c\r\n\r\n", *REFUSED,
           h11=(OK, OPEN, "unfolds it")),
    chunks("a trailer with a NUL", b"0\r\nA: \x00\r\n\r\n", *REFUSED),
    chunks("LF at the end", b"0\r\n\n", *REFUSED, h11=(OK, OPEN, LENIENT)),
    chunks("no empty line at the end", b"0\r\n", (), WAITS),
    chunks("an end and a request", b"0\r\n\r\n" + GET + b"\r\n", (200, 200)),
    chunks("chunks of one byte", b"1\r\na\r\n" * 2_000 + b"0\r\n\r\n", OK),
]  # fmt: skip

CONNECTIONS = [
    field("close", b"Connection: close", OK, CLOSED),
    field("Close among others", b"Connection: foo, Close", OK, CLOSED),
    field("close in a second line", b"Connection: foo\r\nConnection: close", OK, CLOSED),
    field("keep-alive", b"Connection: keep-alive", OK),
    field("close and keep-alive", b"Connection: close, keep-alive", OK, CLOSED),
    field("keep-alive, then close", b"Connection: close\r\nConnection: keep-alive", OK, CLOSED),
    field("something else", b"Connection: closed", OK),
    Case("keep-alive in 1.0", b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", OK,
         h11=(OK, CLOSED, "does not keep 1.0 alive")),
    Case("both in 1.0", b"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", OK, CLOSED),
    Case("2 requests", (GET + b"\r\n") * 2, (200, 200)),
    Case("10 requests", (GET + b"\r\n") * 10, (200,) * 10),
    Case("2 requests with bodies", (POST + b"Content-Length: 3\r\n\r\nabc") * 2, (200, 200),
         body="abc"),
    Case("2 requests, an empty line between",
         (POST + b"Content-Length: 3\r\n\r\nabc\r\n") * 2, (200, 200),
         h11=((200, 400), CLOSED, "refuses it")),
    Case("chunked, then a length",
         CHUNKED + b"1\r\na\r\n0\r\n\r\n" + POST + b"Content-Length: 1\r\n\r\nb", (200, 200),
         body="a"),
    Case("close, and another behind", GET + b"Connection: close\r\n\r\n" + GET + b"\r\n", OK,
         CLOSED, h11=(*REFUSED, "refuses a request after close")),
    Case("a refused request behind", GET + b"\r\n" + b"GET\r\n\r\n" + GET + b"\r\n", (200, 400),
         CLOSED),
    Case("a refused request, and another behind", b"GET\r\n\r\n" + GET + b"\r\n", *REFUSED),
    Case("a request that is hidden in a body",
         POST + b"Content-Length: %d\r\n\r\n" % len(GET + b"\r\n") + GET + b"\r\n", OK),
    Case("half of the next request", GET + b"\r\nGET", OK, WAITS),
    Case("100-continue", POST + EXPECT + b"Content-Length: 3\r\n\r\n", (100,), WAITS),
    Case("100-continue in capitals", POST + b"Expect: 100-Continue\r\nContent-Length: 3\r\n\r\n",
         (100,), WAITS),
    Case("100-continue, and the body", POST + EXPECT + b"Content-Length: 3\r\n\r\nabc", OK,
         h11=((100, 200), OPEN, "sends it also if it has no use")),
    Case("100-continue without a body", POST + EXPECT + b"\r\n", OK,
         h11=((100, 200), OPEN, "sends it also if it has no use")),
    Case("100-continue in 1.0",
         b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", (), WAITS),
    Case("another expectation", POST + b"Expect: tea\r\nContent-Length: 3\r\n\r\nabc", OK),
    field("an offer of h2c", b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
          b"Connection: Upgrade, HTTP2-Settings", OK),
    field("an offer of websocket", b"Upgrade: websocket\r\nConnection: Upgrade", OK),
    Case("an offer with a body", POST + b"Upgrade: h2c\r\nConnection: Upgrade\r\n"
         b"Content-Length: 3\r\n\r\nabc", OK, body="abc"),
    Case("an offer with chunks", POST + b"Upgrade: h2c\r\nConnection: Upgrade\r\n"
         b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", OK, body="abc"),
    Case("two offers", (GET + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n") * 2, (200, 200)),
]  # fmt: skip

CASES = [*REQUEST_LINES, *HEADERS, *FRAMING, *CHUNKS, *CONNECTIONS]
