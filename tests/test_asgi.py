"""Quart, asked for a request that is there as a whole: the same answer, and no task for it."""

import asyncio
from typing import Any

import pytest
from quart import Response, request, url_for

from service.http import responses
from service.http.context import KEY, RequestContext
from service.http.quart_app import SENT_AT_ONCE, Application
from service.server.http1 import COMPLETE

WHOLE: dict[str, Any] = {"extensions": {COMPLETE: {}}}


def make() -> Application:
    """An application that tells what it was asked."""
    app = Application(__name__)

    @app.post("/things/<int:number>")
    async def thing(number: int) -> Response:
        tasks = len(asyncio.all_tasks())
        body: Any = await request.get_data()
        told = f"{number} {body.decode()} {url_for('thing', number=8)} {request.blueprints}"
        return Response(told, headers={"Tasks": str(tasks)})

    @app.get("/much")
    async def much() -> Response:
        return Response(b"x" * (SENT_AT_ONCE + 1))

    @app.get("/few")
    async def few() -> Response:
        return Response(b"x")

    @app.get("/pieces")
    async def pieces() -> Response:
        async def each() -> Any:
            yield b"a"
            yield b"b"

        return Response(each())

    return app


async def ask(
    app: Application, method: str, path: str, *parts: bytes, hangs: bool = False, **more: object
) -> list[Any]:
    """Give all that is sent. The last part is a request's whole body, or its end."""
    left = list(parts)
    sent: list[Any] = []

    async def receive() -> Any:
        if not left:
            await asyncio.sleep(60)
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    async def send(message: Any) -> None:
        sent.append(message)
        if hangs:
            await asyncio.sleep(60)

    scope: Any = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"x")],
        **more,
    }
    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("is_whole", [True, False])
async def test_it_is_handled_in_the_task_that_asks(is_whole: bool) -> None:
    app = make()
    before = len(asyncio.all_tasks())
    parts, more = ([b"ab"], WHOLE) if is_whole else ([b"a", b"b"], {})
    start, body, *_ = await ask(app, "POST", "/things/7", *parts, **more)
    assert body["body"] == b"7 ab /things/8 []"
    assert (int(dict(start["headers"])[b"tasks"]) == before) is is_whole


@pytest.mark.parametrize(("root_path", "status"), [("", 200), ("/things", 404)])
async def test_a_route_that_was_found_is_not_looked_for(root_path: str, status: int) -> None:
    app = make()
    matched = app.url_map.bind("").match("/things/9", "POST", return_rule=True)
    context = RequestContext()
    context.matched = matched
    more: Any = {**WHOLE, KEY: context, "root_path": root_path}
    start, body, *_ = await ask(app, "POST", "/things/7", b"ab", **more)
    assert start["status"] == status
    if status == 200:
        assert body["body"] == b"9 ab /things/8 []", "what was found counts"


async def test_bytes_are_one_piece_and_a_stream_is_many() -> None:
    app = make()
    assert len(await ask(app, "GET", "/much", b"", **WHOLE)) == 2
    sent = await ask(app, "GET", "/pieces", b"", **WHOLE)
    assert [message.get("body") for message in sent] == [None, b"a", b"b", b""]


@pytest.mark.parametrize(
    ("path", "is_ours", "is_waited_for"),
    [("/few", True, False), ("/much", True, True), ("/few", False, True)],
)
async def test_what_may_have_to_wait_has_a_time_out(
    path: str, is_ours: bool, is_waited_for: bool
) -> None:
    """Over HTTP/2 even a short answer waits for its client, and for ever if that has gone."""
    app = make()
    app.config["RESPONSE_TIMEOUT"] = 0.05
    more: Any = WHOLE if is_ours else {}
    ended = asyncio.create_task(ask(app, "GET", path, b"", hangs=True, **more))
    done, _ = await asyncio.wait({ended}, timeout=0.5)
    assert bool(done) is is_waited_for
    ended.cancel()


async def test_what_goes_past_quart_has_a_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "SEND_SECONDS", 0.05)

    async def send(message: Any) -> None:
        await asyncio.sleep(60)

    await asyncio.wait_for(responses.send_response(send, 503, [], b""), 5)
