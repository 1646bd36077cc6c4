"""An application and its client: what each of them gets, whatever the other does."""

import asyncio
import contextvars
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from service.http.quart_app import is_complete
from service.server.http1 import COMPLETE, transport
from service.server.http1.connection import Connection
from tests.http1.site import answer, bare, read
from tests.http1.test_corpus import next_answer

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
BOTH = pytest.mark.parametrize("http1", ["httptools", "h11"])


def start(*headers: tuple[bytes, bytes], status: int = 200) -> Any:
    """Begin an answer."""
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def part(body: bytes, more: bool = False) -> Any:
    """Go on with it."""
    return {"type": "http.response.body", "body": body, "more_body": more}


def saying(*messages: Any) -> Callable[..., Awaitable[None]]:
    """Make an application that says this, whatever it is asked."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(dict(message))

    return app


async def got(app: Any, raw: bytes, **changed: Any) -> bytes:
    """Send bytes, and read to the end of the connection."""
    async with bare(app, **changed) as site:
        reader, writer = await site.connect()
        writer.write(raw)
        try:
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()


@pytest.mark.parametrize(
    ("app", "raw", "head", "body"),
    [
        (saying(start(), part(b"abc")), LAST, b"content-length: 3\r\n", b"abc"),
        (saying(start(), part(b"")), LAST, b"content-length: 0\r\n", b""),
        (
            saying(start(), part(b"a", True), part(b"", True), part(b"bc", True), part(b"")),
            LAST,
            b"transfer-encoding: chunked\r\n",
            b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
        ),
        (
            saying(start(), part(b"a", True), part(b"bc")),
            b"GET / HTTP/1.0\r\n\r\n",
            b"connection: close\r\n",
            b"abc",
        ),
        (
            saying(start((b"content-length", b"3")), part(b"a", True), part(b"bc")),
            b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + LAST,
            b"connection: keep-alive\r\n",
            None,
        ),
        (
            saying(start((b"content-length", b"3")), part(b"abc")),
            LAST.replace(b"GET", b"HEAD"),
            b"content-length: 3\r\n",
            b"",
        ),
        (
            saying(start(), part(b"abc")),
            LAST.replace(b"GET", b"HEAD"),
            b"content-length: 3\r\n",
            b"",
        ),
        (
            saying(start((b"content-length", b"0"), status=204), part(b"")),
            LAST,
            b"HTTP/1.1 204",
            b"",
        ),
        (
            saying(start((b"content-length", b"9"), status=304), part(b"")),
            LAST,
            b"content-length: 9\r\n",
            b"",
        ),
        (saying(start(), part(b"abc"), part(b"more")), LAST, b"content-length: 3\r\n", b"abc"),
        (
            saying(start((b"Transfer-Encoding", b"chunked")), part(b"abc")),
            LAST,
            b"content-length: 3\r\n",
            b"abc",
        ),
    ],
)
async def test_how_an_answer_ends_is_told(app: Any, raw: bytes, head: bytes, body: Any) -> None:
    told, _, rest = (await got(app, raw)).partition(b"\r\n\r\n")
    assert head in told + b"\r\n"
    assert b"\r\ndate: " in told
    assert told.count(b"content-length") + told.count(b"transfer-encoding") <= 1
    assert b"content-length" not in told or b" 204 " not in told
    if body is not None:
        assert rest == body


@pytest.mark.parametrize(
    "app",
    [
        saying(),
        saying(start()),
        saying(start(status=99), part(b"")),
        saying(start((b"a", b"b\r\nc: d")), part(b"")),
        saying(start((b"a", b"b\nc: d")), part(b"")),
        saying(start((b"a", b"b\x00")), part(b"")),
        saying(start((b"a b", b"c")), part(b"")),
        saying(start((b"a\r\nb", b"c")), part(b"")),
        saying(start((b"", b"c")), part(b"")),
        saying(start((b":status", b"c")), part(b"")),
        saying(start((b"content-length", b"+3")), part(b"abc")),
        saying(start((b"content-length", b"3"), (b"content-length", b"4")), part(b"abc")),
        saying(start((b"content-length", b"3")), part(b"ab")),
        saying(start((b"content-length", b"3")), part(b"abcd")),
        saying(part(b"abc")),
        saying({"type": "http.response.push"}),
    ],
)
async def test_an_answer_that_is_none_is_500_in_the_one_shape(app: Any) -> None:
    head, _, body = (await got(app, GET)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 500 ")
    assert b"c: d" not in head
    assert b"content-type: application/problem+json" in head
    told = json.loads(body)
    assert told["status"] == 500
    assert f"x-request-id: {told['request_id']}".encode() in head


@pytest.mark.parametrize(
    ("told", "parts"),
    [
        (start((b"content-length", b"9")), [part(b"abc", True)]),
        (start((b"content-length", b"9")), [part(b"abc", True), part(b"d")]),
        (start((b"content-length", b"4")), [part(b"abc", True), part(b"de")]),
        (start(), [part(b"abc", True)]),
    ],
)
async def test_half_an_answer_does_not_look_whole(told: Any, parts: list[Any]) -> None:
    head, _, body = (await got(saying(told, *parts), GET)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body in {b"abc", b"3\r\nabc\r\n"}
    with pytest.raises(ConnectionResetError):  # for there it is the end that tells the end
        await got(saying(start(), *parts[:1]), b"GET / HTTP/1.0\r\n\r\n")


async def test_an_answer_is_one_write_and_one_task(monkeypatch: pytest.MonkeyPatch) -> None:
    writes, tasks, timers = [], [], set()
    write = Connection.write

    def counted(self: Connection, parts: list[bytes]) -> None:
        writes.append(parts)
        timers.add(self._timer)
        write(self, parts)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks.append(len(asyncio.all_tasks()))
        await receive()
        await answer(send, 200, b"abc")

    monkeypatch.setattr(Connection, "write", counted)
    async with bare(app) as site:
        reader, writer = await site.connect()
        await asyncio.sleep(0.05)
        before = len(asyncio.all_tasks())
        for _ in range(50):
            writer.write(GET)
            assert await next_answer(reader) == (200, b"abc")
        writer.close()
    assert len(writes) == 50
    assert set(tasks) == {before + 1}
    assert len(timers) == 1


async def test_requests_are_answered_in_their_order_one_at_a_time() -> None:
    running = most = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        path = scope["path"]
        await asyncio.sleep(0.05 if path == "/0" else 0)
        running -= 1
        await answer(send, 200, path.encode())

    async with bare(app, keep_alive_max_requests=2_000) as site:
        reader, writer = await site.connect()
        writer.write(b"".join(GET.replace(b"/ ", b"/%d " % n) for n in range(2_000)))
        for n in range(2_000):
            assert await next_answer(reader) == (200, b"/%d" % n)
        assert await reader.read() == b"", "and no more than these"
        writer.close()
    assert most == 1


async def test_each_request_has_a_context_of_its_own() -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="none")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen = var.get()
        var.set("left behind")
        await answer(send, 200, seen.encode())

    async with bare(app) as site:
        reader, writer = await site.connect()
        writer.write(GET * 3)
        for _ in range(3):
            assert await next_answer(reader) == (200, b"none")
        writer.close()


@BOTH
async def test_the_application_sees_the_same_over_both(http1: str) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["mine"] = 1  # of this request alone
        seen.append(scope)
        await answer(send, 200, b"")

    raw = (
        b"POST /a%20b?c=%20d HTTP/1.1\r\nHOST: x\r\nX-A:  b \r\nContent-Length: 0\r\nx-a: c\r\n\r\n"
    )
    async with bare(app, http1=http1, root_path="/root") as site:
        for _ in range(2):
            reader, writer = await site.connect()
            writer.write(raw)
            await next_answer(reader)
            host, port = writer.get_extra_info("sockname")
            seen[-1]["extensions"].pop(COMPLETE, None)
            seen[-1]["headers"] = [*seen[-1]["headers"]]  # whatever it is that gives them
            assert seen[-1].pop("client") == (host, port)
            assert seen[-1].pop("server") == (host, site.port)
            writer.close()
    assert seen[0] == seen[1]
    assert seen[0] == {
        "type": "http",
        "http_version": "1.1",
        "asgi": {"spec_version": "2.1", "version": "3.0"},
        "method": "POST",
        "scheme": "http",
        "path": "/a b",
        "raw_path": b"/a%20b",
        "query_string": b"c=%20d",
        "root_path": "/root",
        "headers": [(b"host", b"x"), (b"x-a", b"b"), (b"content-length", b"0"), (b"x-a", b"c")],
        "state": {"mine": 1},
        "extensions": {},
    }


@pytest.mark.parametrize("takes_first", [True, False])
async def test_a_request_is_called_whole_if_it_can_come_in_one_piece(takes_first: bool) -> None:
    seen: list[bool] = []
    bodies: list[bytes] = []
    come = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(is_complete(scope))
        if takes_first:
            bodies.append((await receive())["body"])
        come.set()
        while not is_complete(scope) and len(bodies) < 2:
            await asyncio.sleep(0.01)
            if takes_first:
                bodies.append((await receive())["body"])
        seen.append(is_complete(scope))
        if not takes_first:
            bodies.append((await receive())["body"])
        await answer(send, 200, b"")

    async with bare(app) as site:
        reader, writer = await site.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
        await come.wait()
        writer.write(b"cd")
        await next_answer(reader)
        writer.close()
    assert seen == [False, not takes_first]
    assert bodies == ([b"ab", b"cd"] if takes_first else [b"abcd"])


async def test_the_end_of_a_request_is_told_once_and_then_that_all_is_over() -> None:
    told: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        told.append(await receive())
        await answer(send, 200, b"")
        told.append(await receive())

    await got(app, LAST)
    assert told == [
        {"type": "http.request", "body": b"", "more_body": False},
        {"type": "http.disconnect"},
    ]


@pytest.mark.parametrize("raw", [GET, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab"])
async def test_who_is_gone_is_told_of(raw: bytes) -> None:
    told: list[Any] = []
    over = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not told or told[-1] != "http.disconnect":
            told.append((await receive())["type"])
        over.set()
        for _ in range(100):  # which nobody hears
            await send(start())
            await send(part(b"a" * 10_000, True))

    async with bare(app) as site:
        _, writer = await site.connect()
        writer.write(raw)
        await asyncio.sleep(0.1)
        writer.transport.abort()
        await asyncio.wait_for(over.wait(), 5)
    assert told == ["http.request", "http.disconnect"]


async def test_one_half_that_is_closed_still_gets_its_answers() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.1)
        await answer(send, 200, b"abc")

    async with bare(app) as site:
        reader, writer = await site.connect()
        writer.write(GET * 2)
        writer.write_eof()
        answers = await asyncio.wait_for(reader.read(), 5)
        assert answers.count(b"\r\n\r\nabc") == 2
        writer.close()


async def test_continue_is_told_when_the_body_is_asked_for() -> None:
    expecting = b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    asks = True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.1)
        body = await read(receive) if asks else b"not asked for"
        assert body is not None
        await answer(send, 200, body)

    async with bare(app) as site:
        reader, writer = await site.connect()
        for _ in range(2):
            writer.write(expecting)
            begun = asyncio.get_running_loop().time()
            assert await next_answer(reader) == (100, b"")
            assert asyncio.get_running_loop().time() - begun > 0.09
            writer.write(b"abc")
            assert await next_answer(reader) == (200, b"abc")
        asks = False
        writer.write(expecting)
        rest = await asyncio.wait_for(reader.read(), 5)
        assert rest.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in rest
        writer.close()


@pytest.mark.parametrize(
    ("size", "is_chunked", "stays"),
    [(10_000, False, True), (3_000_000, False, False), (3_000_000, True, False)],
)
async def test_a_body_that_nobody_read_is_thrown_away_or_the_end(
    size: int, is_chunked: bool, stays: bool
) -> None:
    told = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % size
    async with bare(saying(start(), part(b"abc"))) as site:
        reader, writer = await site.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\n" + told + b"\r\n\r\n")
        await asyncio.sleep(0.05)
        body = b"a" * size
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (size, body) if is_chunked else body)
        await asyncio.sleep(0.1)  # whoever reads late has the answer all the same
        head = await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(3) == b"abc"
        assert (b"connection: close" not in head) is stays
        if stays:
            writer.write(GET)
            assert await next_answer(reader) == (200, b"abc")
        else:
            assert await reader.read() == b""
        writer.close()


async def test_a_body_that_goes_wrong_ends_what_it_began() -> None:
    told: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not told or told[-1] != "http.disconnect":
            told.append((await receive())["type"])
        await answer(send, 200, b"too late")

    async with bare(app) as site:
        reader, writer = await site.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await asyncio.sleep(0.1)
        writer.write(b"nonsense\r\n")
        head, _, body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert json.loads(body)["status"] == 400
        writer.close()
    assert told == ["http.request", "http.disconnect"]


async def test_a_request_byte_by_byte_is_the_same() -> None:
    raw = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw += b"4\r\n\r\n\r\n\r\n3;a=b\r\nabc\r\n0\r\nA: b\r\n\r\n" + GET
    async with bare() as site:
        reader, writer = await site.connect()
        for n in range(len(raw)):
            writer.write(raw[n : n + 1])
            await asyncio.sleep(0.001)
        first, second = await next_answer(reader), await next_answer(reader)
        assert first is not None
        assert second is not None
        assert json.loads(first[1])["body"] == "\r\n\r\nabc"
        assert json.loads(second[1])["path"] == "/"
        writer.close()


async def test_what_takes_too_long_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by its own measure; what makes progress is not."""
    monkeypatch.setattr(transport, "STALL_SECONDS", 0.6)
    loop = asyncio.get_running_loop()
    heads = b"GET / HTTP/1.1\r\nHost: x\r\nA: "
    body = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"

    async def lasted(begin: bytes, drip: bytes = b"") -> float:
        begun = loop.time()
        reader, writer = await site.connect()
        writer.write(begin)
        ended = asyncio.ensure_future(reader.read())
        while not ended.done() and loop.time() < begun + 2:
            await asyncio.wait({ended}, timeout=0.1)
            if not writer.is_closing():
                writer.write(drip)
        ended.cancel()
        writer.close()
        return loop.time() - begun

    async with bare(keep_alive_timeout=0.3, header_seconds=0.9) as site:
        found = await asyncio.gather(
            lasted(b""),
            lasted(GET),
            lasted(heads),
            lasted(heads, b"x"),
            lasted(body),
            lasted(body, b"x"),
        )
    wanted = (0.3, 0.3, 0.9, 0.9, 0.6, 2.0)
    for seconds, want in zip(found, wanted, strict=True):
        assert want - 0.05 < seconds < want + 0.6


async def test_an_application_may_think_longer_than_a_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also about a body that it had to wait for."""
    monkeypatch.setattr(transport, "STALL_SECONDS", 0.3)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = await read(receive)
        await asyncio.sleep(1)
        await answer(send, 200, body or b"")

    async with bare(app) as site:
        reader, writer = await site.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
        await asyncio.sleep(0.1)
        writer.write(b"abc")
        found = await next_answer(reader)
        assert found is not None
        assert found[1] == b"abc"
        writer.close()


async def test_who_does_not_read_is_cut_whatever_they_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of a body that nobody asked for is no sign of reading."""
    monkeypatch.setattr(transport, "STALL_SECONDS", 0.4)
    loop = asyncio.get_running_loop()
    app = saying(start(), *[part(b"a" * 100_000, True)] * 300, part(b""))
    async with bare(app) as site:
        _, writer = await asyncio.open_connection("127.0.0.1", site.port, limit=1_000)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nab")
        await asyncio.sleep(0.2)
        writer.write(b"c")
        begun = loop.time()
        while site.config.serving.connections and loop.time() < begun + 3:
            await asyncio.sleep(0.02)
        assert not site.config.serving.connections
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_who_does_not_read_is_cut_and_who_reads_slowly_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "STALL_SECONDS", 0.5)
    sent = ended = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent, ended
        await send(start())
        for _ in range(300):
            await send(part(b"a" * 100_000, True))
            sent += 1
        await send(part(b""))
        ended += 1

    async with bare(app) as site:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port, limit=1_000)
        writer.write(GET)
        for _ in range(25):  # longer than a stall may be
            await asyncio.sleep(0.06)
            assert await reader.read(200_000)
        assert not reader.at_eof()
        before, stopped = sent, asyncio.get_running_loop().time()
        assert before < 300
        while site.config.serving.connections:
            await asyncio.sleep(0.02)
        assert asyncio.get_running_loop().time() - stopped < 3
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    assert ended == 1, "it was not left waiting"
