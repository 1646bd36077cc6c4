"""The exchange of messages: the application's events, and the bytes that its client receives."""

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
from tests.http1.site import TIMEOUT, bare, read, respond
from tests.http1.test_corpus import next_response

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
BOTH = pytest.mark.parametrize("http1", ["httptools", "h11"])


def start(*headers: tuple[bytes, bytes], status: int = 200) -> Any:
    """Return the message that starts a response."""
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def part(body: bytes, more: bool = False) -> Any:
    """Return a message with a part of its body."""
    return {"type": "http.response.body", "body": body, "more_body": more}


def sending(*messages: Any) -> Callable[..., Awaitable[None]]:
    """Return an application that sends these messages for every request."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(dict(message))

    return app


async def received_from(app: Any, raw: bytes, **changed: Any) -> bytes:
    """Send bytes; return the bytes received until the connection ends."""
    async with bare(app, **changed) as site:
        reader, writer = await site.connect()
        writer.write(raw)
        try:
            return await asyncio.wait_for(reader.read(), TIMEOUT)
        finally:
            writer.close()


@pytest.mark.parametrize(
    ("app", "raw", "head", "body"),
    [
        (sending(start(), part(b"abc")), LAST, b"content-length: 3\r\n", b"abc"),
        (sending(start(), part(b"")), LAST, b"content-length: 0\r\n", b""),
        (
            sending(start(), part(b"a", True), part(b"", True), part(b"bc", True), part(b"")),
            LAST,
            b"transfer-encoding: chunked\r\n",
            b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
        ),
        (
            sending(start(), part(b"a", True), part(b"bc")),
            b"GET / HTTP/1.0\r\n\r\n",
            b"connection: close\r\n",
            b"abc",
        ),
        (
            sending(start((b"content-length", b"3")), part(b"a", True), part(b"bc")),
            b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + LAST,
            b"connection: keep-alive\r\n",
            None,
        ),
        (
            sending(start((b"content-length", b"3")), part(b"abc")),
            LAST.replace(b"GET", b"HEAD"),
            b"content-length: 3\r\n",
            b"",
        ),
        (
            sending(start(), part(b"abc")),
            LAST.replace(b"GET", b"HEAD"),
            b"content-length: 3\r\n",
            b"",
        ),
        (
            sending(start((b"content-length", b"0"), status=204), part(b"")),
            LAST,
            b"HTTP/1.1 204",
            b"",
        ),
        (
            sending(start((b"content-length", b"9"), status=304), part(b"")),
            LAST,
            b"content-length: 9\r\n",
            b"",
        ),
        (sending(start(), part(b"abc"), part(b"more")), LAST, b"content-length: 3\r\n", b"abc"),
        (
            sending(start((b"Transfer-Encoding", b"chunked")), part(b"abc")),
            LAST,
            b"content-length: 3\r\n",
            b"abc",
        ),
    ],
)
async def test_the_head_of_a_response_determines_its_length(
    app: Any, raw: bytes, head: bytes, body: Any
) -> None:
    start, _, rest = (await received_from(app, raw)).partition(b"\r\n\r\n")
    assert head in start + b"\r\n"
    assert b"\r\ndate: " in start
    assert start.count(b"content-length") + start.count(b"transfer-encoding") <= 1
    assert b"content-length" not in start or b" 204 " not in start
    if body is not None:
        assert rest == body


@pytest.mark.parametrize(
    "app",
    [
        sending(),
        sending(start()),
        sending(start(status=99), part(b"")),
        sending(start((b"a", b"b\r\nc: d")), part(b"")),
        sending(start((b"a", b"b\nc: d")), part(b"")),
        sending(start((b"a", b"b\x00")), part(b"")),
        sending(start((b"a b", b"c")), part(b"")),
        sending(start((b"a\r\nb", b"c")), part(b"")),
        sending(start((b"", b"c")), part(b"")),
        sending(start((b":status", b"c")), part(b"")),
        sending(start((b"content-length", b"+3")), part(b"abc")),
        sending(start((b"content-length", b"3"), (b"content-length", b"4")), part(b"abc")),
        sending(start((b"content-length", b"3")), part(b"ab")),
        sending(start((b"content-length", b"3")), part(b"abcd")),
        sending(part(b"abc")),
        sending({"type": "http.response.push"}),
    ],
)
async def test_an_invalid_response_becomes_a_problem_document_of_500(app: Any) -> None:
    head, _, body = (await received_from(app, GET)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 500 ")
    assert b"c: d" not in head
    assert b"content-type: application/problem+json" in head
    problem = json.loads(body)
    assert problem["status"] == 500
    assert f"x-request-id: {problem['request_id']}".encode() in head


@pytest.mark.parametrize(
    ("first", "parts"),
    [
        (start((b"content-length", b"9")), [part(b"abc", True)]),
        (start((b"content-length", b"9")), [part(b"abc", True), part(b"d")]),
        (start((b"content-length", b"4")), [part(b"abc", True), part(b"de")]),
        (start(), [part(b"abc", True)]),
    ],
)
async def test_an_incomplete_response_is_recognisable(first: Any, parts: list[Any]) -> None:
    head, _, body = (await received_from(sending(first, *parts), GET)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body in {b"abc", b"3\r\nabc\r\n"}
    with pytest.raises(ConnectionResetError):  # in HTTP/1.0 the end of the connection ends the body
        await received_from(sending(start(), *parts[:1]), b"GET / HTTP/1.0\r\n\r\n")


async def test_a_response_takes_1_write_and_1_task(monkeypatch: pytest.MonkeyPatch) -> None:
    writes, tasks, timers = [], [], set()
    write = Connection.write

    def counted(self: Connection, parts: list[bytes]) -> None:
        writes.append(parts)
        timers.add(self._timer)  # private: counts timers
        write(self, parts)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tasks.append(len(asyncio.all_tasks()))
        await receive()
        await respond(send, 200, b"abc")

    monkeypatch.setattr(Connection, "write", counted)
    async with bare(app) as site:
        reader, writer = await site.connect()
        await site.until_connected()
        before = len(asyncio.all_tasks())
        for _ in range(50):
            writer.write(GET)
            assert await next_response(reader) == (200, b"abc")
        writer.close()
    assert len(writes) == 50
    assert set(tasks) == {before + 1}
    assert len(timers) == 1


async def test_pipelined_requests_run_in_order_and_one_at_a_time() -> None:
    running = most = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        path = scope["path"]
        await asyncio.sleep(0.05 if path == "/0" else 0)
        running -= 1
        await respond(send, 200, path.encode())

    async with bare(app, keep_alive_max_requests=2_000) as site:
        reader, writer = await site.connect()
        writer.write(b"".join(GET.replace(b"/ ", b"/%d " % n) for n in range(2_000)))
        for n in range(2_000):
            assert await next_response(reader) == (200, b"/%d" % n)
        assert await reader.read() == b"", "there is no further response"
        writer.close()
    assert most == 1


async def test_each_request_has_its_own_context() -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="none")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen = var.get()
        var.set("left behind")
        await respond(send, 200, seen.encode())

    async with bare(app) as site:
        reader, writer = await site.connect()
        writer.write(GET * 3)
        for _ in range(3):
            assert await next_response(reader) == (200, b"none")
        writer.close()


@BOTH
async def test_the_scope_is_the_same_over_both_parsers(http1: str) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["mine"] = 1  # belongs to this request alone
        seen.append(scope)
        await respond(send, 200, b"")

    raw = (
        b"POST /a%20b?c=%20d HTTP/1.1\r\nHOST: x\r\nX-A:  b \r\nContent-Length: 0\r\nx-a: c\r\n\r\n"
    )
    async with bare(app, http1=http1, root_path="/root") as site:
        for _ in range(2):
            reader, writer = await site.connect()
            writer.write(raw)
            await next_response(reader)
            host, port = writer.get_extra_info("sockname")
            seen[-1]["extensions"].pop(COMPLETE, None)
            seen[-1]["headers"] = [*seen[-1]["headers"]]  # any iterable
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
async def test_a_request_is_complete_if_receive_returns_its_whole_body(takes_first: bool) -> None:
    seen: list[bool] = []
    bodies: list[bytes] = []
    arrived = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(is_complete(scope))
        if takes_first:
            bodies.append((await receive())["body"])
        arrived.set()
        while not is_complete(scope) and len(bodies) < 2:
            await asyncio.sleep(0.01)
            if takes_first:
                bodies.append((await receive())["body"])
        seen.append(is_complete(scope))
        if not takes_first:
            bodies.append((await receive())["body"])
        await respond(send, 200, b"")

    async with bare(app) as site:
        reader, writer = await site.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
        await arrived.wait()
        writer.write(b"cd")
        await next_response(reader)
        writer.close()
    assert seen == [False, not takes_first]
    assert bodies == ([b"ab", b"cd"] if takes_first else [b"abcd"])


async def test_receive_returns_the_end_of_a_request_once_and_then_the_disconnect() -> None:
    events: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        events.append(await receive())
        await respond(send, 200, b"")
        events.append(await receive())

    await received_from(app, LAST)
    assert events == [
        {"type": "http.request", "body": b"", "more_body": False},
        {"type": "http.disconnect"},
    ]


@pytest.mark.parametrize("raw", [GET, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab"])
async def test_the_application_receives_a_disconnect(raw: bytes) -> None:
    events: list[Any] = []
    began, over = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not events or events[-1] != "http.disconnect":
            events.append((await receive())["type"])
            began.set()
        over.set()
        for _ in range(100):  # no client reads it
            await send(start())
            await send(part(b"a" * 10_000, True))

    async with bare(app) as site:
        _, writer = await site.connect()
        try:
            writer.write(raw)
            await asyncio.wait_for(began.wait(), TIMEOUT)
        finally:
            writer.transport.abort()
        await asyncio.wait_for(over.wait(), TIMEOUT)
    assert events == ["http.request", "http.disconnect"]


async def test_a_client_that_closed_its_sending_side_still_receives_responses() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.1)
        await respond(send, 200, b"abc")

    async with bare(app) as site:
        reader, writer = await site.connect()
        writer.write(GET * 2)
        writer.write_eof()
        received = await asyncio.wait_for(reader.read(), TIMEOUT)
        assert received.count(b"\r\n\r\nabc") == 2
        writer.close()


async def test_100_continue_is_sent_when_the_application_reads_the_body() -> None:
    expecting = b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    reads = True
    events: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.1)  # long enough for a 100 that comes too early
        events.append("reads")
        body = await read(receive) if reads else b"not read"
        assert body is not None
        await respond(send, 200, body)

    async with bare(app) as site:
        reader, writer = await site.connect()
        for _ in range(2):
            writer.write(expecting)
            assert await next_response(reader) == (100, b"")
            events.append("100")
            writer.write(b"abc")
            assert await next_response(reader) == (200, b"abc")
        assert events == ["reads", "100"] * 2
        reads = False
        writer.write(expecting)
        rest = await asyncio.wait_for(reader.read(), TIMEOUT)
        assert rest.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in rest
        writer.close()


@pytest.mark.parametrize(
    ("size", "is_chunked", "stays"),
    [(10_000, False, True), (3_000_000, False, False), (3_000_000, True, False)],
)
async def test_an_unread_body_is_discarded_or_ends_the_connection(
    size: int, is_chunked: bool, stays: bool
) -> None:
    framing = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % size
    async with bare(sending(start(), part(b"abc"))) as site:
        reader, writer = await site.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n")
        await asyncio.sleep(0.05)
        body = b"a" * size
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (size, body) if is_chunked else body)
        await asyncio.sleep(0.1)  # a client that reads late still receives the response
        head = await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(3) == b"abc"
        assert (b"connection: close" not in head) is stays
        if stays:
            writer.write(GET)
            assert await next_response(reader) == (200, b"abc")
        else:
            assert await reader.read() == b""
        writer.close()


async def test_an_invalid_body_is_400_although_its_request_runs() -> None:
    events: list[str] = []
    began = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not events or events[-1] != "http.disconnect":
            events.append((await receive())["type"])
            began.set()
        await respond(send, 200, b"too late")

    async with bare(app) as site:
        reader, writer = await site.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await asyncio.wait_for(began.wait(), TIMEOUT)
        writer.write(b"nonsense\r\n")
        head, _, body = (await asyncio.wait_for(reader.read(), TIMEOUT)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert json.loads(body)["status"] == 400
        writer.close()
    assert events == ["http.request", "http.disconnect"]


async def test_a_request_that_arrives_byte_by_byte_is_read() -> None:
    raw = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw += b"4\r\n\r\n\r\n\r\n3;a=b\r\nabc\r\n0\r\nA: b\r\n\r\n" + GET
    async with bare() as site:
        reader, writer = await site.connect()
        for n in range(len(raw)):
            writer.write(raw[n : n + 1])
            await asyncio.sleep(0.001)
        first, second = await next_response(reader), await next_response(reader)
        assert first is not None
        assert second is not None
        assert json.loads(first[1])["body"] == "\r\n\r\nabc"
        assert json.loads(second[1])["path"] == "/"
        writer.close()


IN_HEAD = GET[:-2] + b"A: "
IN_BODY = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n"
NEVER = 600.0  # seconds
PHASES = ("keep_alive_timeout", "header_seconds", "STALL_SECONDS")


@pytest.mark.parametrize(
    ("timeouts", "begin", "piece"),
    [
        ({"keep_alive_timeout": 0.3}, b"", b""),
        ({"keep_alive_timeout": 0.3}, GET, b""),
        ({"header_seconds": 0.3}, IN_HEAD, b""),
        ({"header_seconds": 0.3}, IN_HEAD, b"x"),
        ({"STALL_SECONDS": 0.3}, IN_BODY, b""),
    ],
)
async def test_each_phase_of_a_request_has_its_own_timeout(
    monkeypatch: pytest.MonkeyPatch, timeouts: dict[str, float], begin: bytes, piece: bytes
) -> None:
    """The other timeouts are long: only the timeout of the phase can end the connection."""
    changed: dict[str, Any] = dict.fromkeys(PHASES, NEVER)
    changed |= timeouts
    monkeypatch.setattr(transport, "STALL_SECONDS", changed.pop("STALL_SECONDS"))
    loop = asyncio.get_running_loop()
    async with bare(**changed) as site:
        begun = loop.time()
        reader, writer = await site.connect()
        try:
            writer.write(begin)
            ended = asyncio.ensure_future(reader.read())
            async with asyncio.timeout(TIMEOUT):
                while not ended.done():
                    await asyncio.wait({ended}, timeout=0.1)
                    if not writer.is_closing():
                        writer.write(piece)
            assert loop.time() - begun > 0.25, "it has not ended before its timeout"
        finally:
            writer.close()


async def test_a_body_that_makes_progress_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes 3 times as long as a client may stall."""
    monkeypatch.setattr(transport, "STALL_SECONDS", 2.0)
    async with bare() as site:
        reader, writer = await site.connect()
        try:
            writer.write(IN_BODY)
            ended = asyncio.ensure_future(reader.read())
            for _ in range(60):
                writer.write(b"x")
                await asyncio.wait({ended}, timeout=0.1)
            assert not ended.done()
            ended.cancel()
        finally:
            writer.close()


async def test_an_application_may_take_longer_than_a_client_may_stall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also after a body for which it had to wait."""
    monkeypatch.setattr(transport, "STALL_SECONDS", 2.0)
    began = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        began.set()
        body = await read(receive)
        await asyncio.sleep(5)
        await respond(send, 200, body or b"")

    async with bare(app) as site:
        reader, writer = await site.connect()
        try:
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
            await asyncio.wait_for(began.wait(), TIMEOUT)
            writer.write(b"abc")
            assert await next_response(reader) == (200, b"abc")
        finally:
            writer.close()


async def test_a_client_that_does_not_read_is_cut_although_it_sends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rest of a body that the application does not read is no progress."""
    monkeypatch.setattr(transport, "STALL_SECONDS", 0.4)
    app = sending(start(), *[part(b"a" * 100_000, True)] * 300, part(b""))
    async with bare(app) as site:
        _, writer = await site.connect(limit=1_000)
        try:
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nab")
            await asyncio.sleep(0.2)
            writer.write(b"c")
            await site.until_closed()
        finally:
            writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_client_that_stops_reading_is_cut_and_a_slow_client_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "STALL_SECONDS", 2.0)
    sent = ended = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent, ended
        await send(start())
        try:
            for _ in range(300):
                await send(part(b"a" * 100_000, True))
                sent += 1
        finally:
            ended += 1

    async with bare(app) as site:
        reader, writer = await site.connect(limit=1_000)
        try:
            writer.write(GET)
            for _ in range(25):  # for 3 times as long as a client may stall
                await asyncio.sleep(0.24)
                assert await reader.read(200_000)
            assert not reader.at_eof()
            assert sent < 300
            assert site.config.serving.connections, "the slow client is still connected"
            await site.until_closed()
        finally:
            writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    assert ended == 1, "the application is not left waiting"
    assert sent < 300, "the application does not make the rest of its response"
