"""The request edge: the last error handler, bodies, and clients that disconnect."""

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
from tests.http_client import TIMEOUT, assert_problem


def failing(when: str) -> Any:
    """Return an inner application that fails before or within its response."""

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        if when == "within":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("outside of everything")

    return inner


def replace_inner(when: str) -> Any:
    """Return a function that puts a failing application behind the request edge."""

    def prepare(app: Quart) -> None:
        edge: Any = app.extensions["request_edge"]
        working, broken = edge._inner, failing(when)  # private: there is no other way in

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            await (broken if scope["type"] == "http" else working)(scope, receive, send)

        edge._inner = inner  # private: as above

    return prepare


async def test_a_failure_outside_of_all_handlers_is_500(
    site: Site, folder: Path, tmp_path: Path
) -> None:
    settings = settings_for(site.another_url, folder, log_dir=tmp_path)
    async with visiting(settings, replace_inner("before")) as client:
        response = await client.get("/api/books")
        assert_problem(response, 500, "Internal Server Error")
        assert response.json()["message"] == "An unexpected error occurred"
    assert "outside of everything" in (tmp_path / "app.log").read_text(encoding="utf-8")


async def test_a_failure_within_a_response_cuts_the_connection(site: Site, folder: Path) -> None:
    settings = settings_for(site.another_url, folder)
    async with visiting(settings, replace_inner("within")) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/api/books")


async def test_debug_variables_of_the_environment_reveal_nothing(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUART_DEBUG", "1")
    monkeypatch.setenv("FLASK_DEBUG", "1")

    def add_route(app: Quart) -> None:
        @app.get("/api/defect")
        async def defect() -> str:
            raise RuntimeError("a secret")

    async with visiting(settings_for(site.another_url, folder), add_route) as client:
        response = await client.get("/api/defect")
        assert_problem(response, 500, "Internal Server Error")
        assert "secret" not in response.text


def tasks_of_requests() -> int:
    """Count the tasks in which Quart handles requests."""
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]  # tasks are of coroutines
    return sum(name.startswith("ASGIHTTPConnection") for name in names)


async def test_a_request_leaves_no_task(client: httpx.AsyncClient) -> None:
    await asyncio.gather(*(client.get("/api/books") for _ in range(20)))
    async with asyncio.timeout(TIMEOUT):
        while tasks_of_requests():
            await asyncio.sleep(0.01)


async def test_a_client_that_disconnects_does_not_cancel_the_handler(
    site: Site, folder: Path
) -> None:
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
        try:
            writer.write(b"GET /api/slow HTTP/1.1\r\nHost: x\r\n\r\n")
            await began.wait()
            writer.transport.abort()
            async with httpx.AsyncClient(base_url=slow_site.url, timeout=TIMEOUT) as client:
                assert (await client.get("/health/live")).status_code == 200
        finally:
            go_on.set()
            writer.transport.abort()
        async with asyncio.timeout(TIMEOUT):
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


async def test_no_more_of_a_body_than_the_limit_reaches_the_application() -> None:
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
        assert not rest.done(), "the disconnect follows the response"
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
    assert drained > 1_000, "bytes over the limit are read and discarded"


async def test_a_client_that_disconnects_leaves_no_request_in_flight(site: Site) -> None:
    """Clients announce a body, send a part at most, and disconnect before or after the response."""
    edge = site.app.extensions["request_edge"]
    for sent in (b"", b"{", b"{" * 70_000):
        for wait in (False, True):
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            try:
                writer.write(
                    b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\n"
                    b"Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n" + sent
                )
                await writer.drain()
                if wait:
                    assert (await reader.readline()).startswith(b"HTTP/1.1 413")
            finally:
                writer.close()
    async with asyncio.timeout(TIMEOUT):
        while edge.in_flight:
            await asyncio.sleep(0.05)
