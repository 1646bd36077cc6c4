"""The request edge: the answer of last resort, and what passes through untouched."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from quart import Quart

from service import config
from service.http.context import context_of
from service.middleware.request_edge import RequestEdge
from tests.conftest import Site, serving, settings_for, visiting
from tests.test_web import is_problem


def failing(when: str) -> Any:
    """Make an inner application that fails before or within its answer."""

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        if when == "within":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("outside of everything")

    return inner


def replace_inner(when: str) -> Any:
    """Put a failing application behind the request edge, once it serves."""

    def prepare(app: Quart) -> None:
        edge: Any = app.extensions["request_edge"]
        whole, broken = edge._inner, failing(when)

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            await (broken if scope["type"] == "http" else whole)(scope, receive, send)

        edge._inner = inner

    return prepare


async def test_when_all_else_fails_there_is_still_an_answer(
    site: Site, folder: Path, tmp_path: Path
) -> None:
    settings = settings_for(site.another_url, folder, log_dir=tmp_path)
    async with visiting(settings, replace_inner("before")) as client:
        answer = await client.get("/api/books")
        is_problem(answer, 500, "Internal Server Error")
        assert answer.json()["message"] == "An unexpected error occurred"
    assert "outside of everything" in (tmp_path / "app.log").read_text(encoding="utf-8")


async def test_half_an_answer_does_not_look_whole(site: Site, folder: Path) -> None:
    settings = settings_for(site.another_url, folder)
    async with visiting(settings, replace_inner("within")) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/api/books")


async def test_debugging_by_the_environment_shows_nothing(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUART_DEBUG", "1")
    monkeypatch.setenv("FLASK_DEBUG", "1")

    def faulty(app: Quart) -> None:
        @app.get("/api/defect")
        async def defect() -> str:
            raise RuntimeError("a secret")

    async with visiting(settings_for(site.another_url, folder), faulty) as client:
        answer = await client.get("/api/defect")
        is_problem(answer, 500, "Internal Server Error")
        assert "secret" not in answer.text


def requests_under_way() -> int:
    """Count the tasks in which Quart handles requests."""
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]  # tasks are of coroutines
    return sum(name.startswith("ASGIHTTPConnection") for name in names)


async def test_nothing_is_left_of_a_request_that_was_answered(client: httpx.AsyncClient) -> None:
    await asyncio.gather(*(client.get("/api/books") for _ in range(20)))
    async with asyncio.timeout(5):
        while requests_under_way():
            await asyncio.sleep(0)


async def test_a_client_that_hangs_up_does_not_cancel_the_handler(site: Site, folder: Path) -> None:
    began, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def prepare(app: Quart) -> None:
        @app.get("/api/slow")
        async def slow() -> str:
            began.set()
            await go_on.wait()
            ended.set()
            return ""

    async with serving(settings_for(site.another_url, folder), prepare) as slow_site:
        _, writer = await asyncio.open_connection("127.0.0.1", slow_site.port)
        writer.write(b"GET /api/slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await began.wait()
        writer.transport.abort()
        async with httpx.AsyncClient(base_url=slow_site.url) as client:
            assert (await client.get("/health/live")).status_code == 200
        go_on.set()
        async with asyncio.timeout(5):
            await ended.wait()


async def test_a_websocket_is_closed_before_it_opens() -> None:
    sent: list[Any] = []

    async def never(*_: Any) -> Any:
        raise AssertionError("there are no websockets here")

    async def send(message: Any) -> None:
        sent.append(message["type"])

    edge: Any = RequestEdge(Quart(__name__), never, config.Testing())
    await edge({"type": "websocket", "path": "/", "headers": []}, never, send)
    assert sent == ["websocket.close"]


async def test_no_more_than_the_cap_is_ever_passed_on() -> None:
    passed, drained = 0, 0
    ended = asyncio.Event()

    async def endless() -> Any:
        nonlocal drained
        drained += 1
        if drained > 1_000:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": b" " * 1_000, "more_body": True}

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        nonlocal passed
        message: Any = {"more_body": True}
        while message["more_body"]:
            message = await receive()
            passed += len(message["body"])
        assert context_of(scope).is_too_large
        rest = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        assert not rest.done(), "the end of the connection comes after the answer"
        await send({"type": "http.response.start", "status": 413, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        assert (await rest)["type"] == "http.disconnect"
        ended.set()

    async def send(message: Any) -> None:
        pass

    edge: Any = RequestEdge(Quart(__name__), inner, config.Testing(max_body_bytes=64_000))
    await edge({"type": "http", "path": "/", "headers": []}, endless, send)
    assert ended.is_set()
    assert passed == 64_000
    assert drained > 1_000, "what is over the cap is read, and thrown away"


async def test_nothing_is_left_of_who_has_gone(site: Site) -> None:
    """They claim a body, or send a part of it, and are gone before or after the answer."""
    edge = site.app.extensions["request_edge"]
    for sent in (b"", b"{", b"{" * 70_000):
        for wait in (False, True):
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            writer.write(
                b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 1000000\r\n\r\n" + sent
            )
            await writer.drain()
            if wait:
                assert (await reader.readline()).startswith(b"HTTP/1.1 413")
            writer.close()
    async with asyncio.timeout(15):
        while edge.in_flight:
            await asyncio.sleep(0.05)
