"""Quart and complete requests: the same response, and no task for each request."""

import asyncio
from typing import Any

import pytest
from quart import Response, request, url_for

from service.http import responses
from service.http.context import KEY, RequestContext
from service.http.quart_app import SENT_AT_ONCE, Application
from service.server.http1 import COMPLETE
from tests.http_client import TIMEOUT

COMPLETE_REQUEST: dict[str, Any] = {"extensions": {COMPLETE: {}}}


def make_app() -> Application:
    """An application whose responses show its request."""
    app = Application(__name__)

    @app.post("/things/<int:number>")
    async def thing(number: int) -> Response:
        tasks = len(asyncio.all_tasks())
        body: Any = await request.get_data()
        shown = f"{number} {body.decode()} {url_for('thing', number=8)} {request.blueprints}"
        return Response(shown, headers={"Tasks": str(tasks)})

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


async def send_request(
    app: Application, method: str, path: str, *parts: bytes, hangs: bool = False, **more: object
) -> list[Any]:
    """Return the messages of the response. The last part ends the request body."""
    left = list(parts)
    sent: list[Any] = []

    async def receive() -> Any:
        if not left:
            await asyncio.sleep(3_600)
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    async def send(message: Any) -> None:
        sent.append(message)
        if hangs:
            await asyncio.sleep(3_600)

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


@pytest.mark.parametrize("is_complete", [True, False])
async def test_a_complete_request_is_handled_in_the_task_of_its_caller(is_complete: bool) -> None:
    app = make_app()
    before = len(asyncio.all_tasks())
    parts, more = ([b"ab"], COMPLETE_REQUEST) if is_complete else ([b"a", b"b"], {})
    start, body, *_ = await send_request(app, "POST", "/things/7", *parts, **more)
    assert body["body"] == b"7 ab /things/8 []"
    assert (int(dict(start["headers"])[b"tasks"]) == before) is is_complete


@pytest.mark.parametrize(("root_path", "status"), [("", 200), ("/things", 404)])
async def test_a_route_that_is_known_is_not_matched_again(root_path: str, status: int) -> None:
    app = make_app()
    matched = app.url_map.bind("").match("/things/9", "POST", return_rule=True)
    context = RequestContext()
    context.matched = matched
    more: Any = {**COMPLETE_REQUEST, KEY: context, "root_path": root_path}
    start, body, *_ = await send_request(app, "POST", "/things/7", b"ab", **more)
    assert start["status"] == status
    if status == 200:
        assert body["body"] == b"9 ab /things/8 []", "the known route is used"


async def test_bytes_are_sent_in_one_message_and_a_stream_in_several() -> None:
    app = make_app()
    assert len(await send_request(app, "GET", "/much", b"", **COMPLETE_REQUEST)) == 2
    sent = await send_request(app, "GET", "/pieces", b"", **COMPLETE_REQUEST)
    assert [message.get("body") for message in sent] == [None, b"a", b"b", b""]


@pytest.mark.parametrize(
    ("path", "is_complete", "has_timeout"),
    [("/few", True, False), ("/much", True, True), ("/few", False, True)],
)
async def test_a_response_that_may_have_to_wait_for_its_client_has_a_timeout(
    path: str, is_complete: bool, has_timeout: bool
) -> None:
    """Over HTTP/2 even a short response waits for its client, without end if that has gone."""
    app = make_app()
    app.config["RESPONSE_TIMEOUT"] = 0.05
    more: Any = COMPLETE_REQUEST if is_complete else {}
    sending = asyncio.create_task(send_request(app, "GET", path, b"", hangs=True, **more))
    try:
        done, _ = await asyncio.wait({sending}, timeout=TIMEOUT if has_timeout else 0.5)
        assert bool(done) is has_timeout
    finally:
        sending.cancel()


async def test_a_response_that_bypasses_quart_has_a_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(responses, "SEND_SECONDS", 0.05)

    async def send(message: Any) -> None:
        await asyncio.sleep(3_600)

    await asyncio.wait_for(responses.send_response(send, 503, [], b""), TIMEOUT)
