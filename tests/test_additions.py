"""Hooks and middleware that are added to the application see every request."""

import asyncio
import os
import socket
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import sentry_sdk
import uvicorn
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from pydantic import BaseModel
from quart import Quart, Response, g, request, signals
from quart_schema import validate_request, validate_response
from sentry_sdk.integrations.asgi import SentryAsgiMiddleware
from sentry_sdk.transport import Transport

from service.app import create_app
from service.books import books_bp
from service.config import Settings
from service.errors import ResourceNotFoundError
from tests.conftest import Site, settings_for, visiting
from tests.factories import Factory
from tests.test_cli import killed

pytestmark = pytest.mark.one_database
ROOT = str(Path(__file__).parent.parent)
Seen = list[str]  # an item for each request that an addition saw
Add = Callable[[Quart, Seen], None]


def before_request(app: Quart, seen: Seen) -> None:
    @app.before_request
    async def hook() -> None:
        seen.append(request.path)


def after_request(app: Quart, seen: Seen) -> None:
    @app.after_request
    async def hook(response: Response) -> Response:
        seen.append(request.path)
        response.headers["X-Added"] = "1"
        return response


def teardown_request(app: Quart, seen: Seen) -> None:
    @app.teardown_request
    async def hook(error: BaseException | None) -> None:
        seen.append("")


def tenant(app: Quart, seen: Seen) -> None:
    @app.url_value_preprocessor
    def hook(endpoint: str | None, values: dict[str, Any] | None) -> None:
        g.tenant = request.headers.get("X-Tenant", "none")
        seen.append(g.tenant)


def signal(app: Quart, seen: Seen) -> None:
    async def receive(sender: Quart, **_: Any) -> None:
        seen.append("")

    signals.request_started.connect(receive, app)
    app.extensions["receiver"] = receive  # a signal holds its receivers weakly


class ProxyFix:
    """Takes the client's address from a header, as hypercorn.middleware does."""

    def __init__(self, inner: Any, seen: Seen) -> None:
        self._inner, self._seen = inner, seen

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self._seen.append(scope["path"])
            scope = {**scope, "client": ("10.9.8.7", 0)}
        await self._inner(scope, receive, send)


def middleware(app: Quart, seen: Seen) -> None:
    app.asgi_app = ProxyFix(app.asgi_app, seen)  # type: ignore[method-assign]  # Quart's way in


def open_telemetry(app: Quart, seen: Seen) -> None:
    served: Any = app
    served.asgi_app = OpenTelemetryMiddleware(
        served.asgi_app, server_request_hook=lambda span, scope: seen.append(scope["path"])
    )


def sentry(app: Quart, seen: Seen) -> None:
    class Collector(Transport):
        """Keeps the envelopes instead of sending them."""

        def capture_envelope(self, envelope: Any) -> None:
            seen.extend("" for _ in envelope.items)

    sentry_sdk.init(
        "http://key@127.0.0.1:1/1",
        transport=Collector,
        traces_sample_rate=1.0,
        default_integrations=False,
        auto_enabling_integrations=False,
    )
    served: Any = app
    served.asgi_app = SentryAsgiMiddleware(served.asgi_app)


def connection_class(app: Quart, seen: Seen) -> None:
    class Connection(app.asgi_http_class):  # type: ignore[misc, name-defined]  # of the application
        """Records requests."""

        async def handle_request(self, request: Any, send: Any) -> None:
            seen.append(request.path)
            await super().handle_request(request, send)

    app.asgi_http_class = Connection


def request_class(app: Quart, seen: Seen) -> None:
    class Request(app.request_class):  # type: ignore[misc, name-defined]  # of the application
        """Records requests."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            seen.append(self.path)

    app.request_class = Request


def method(app: Quart, seen: Seen) -> None:
    handle = app.handle_request

    async def handle_request(request: Any) -> Any:
        seen.append(request.path)
        return await handle(request)

    app.handle_request = handle_request  # type: ignore[method-assign]  # as some libraries do


ADDITIONS: dict[str, Add] = {
    "before_request": before_request,
    "after_request": after_request,
    "teardown_request": teardown_request,
    "url_value_preprocessor": tenant,
    "request_started": signal,
    "asgi_app": middleware,
    "asgi_app: opentelemetry": open_telemetry,
    "asgi_app: sentry_sdk": sentry,
    "asgi_http_class": connection_class,
    "request_class": request_class,
    "handle_request": method,
}


@pytest.fixture(autouse=True)
def no_sentry() -> Iterator[None]:
    """Switch Sentry off after each test."""
    yield
    sentry_sdk.init(default_integrations=False, auto_enabling_integrations=False)


@asynccontextmanager
async def under_uvicorn(
    settings: Settings, prepare: Callable[[Quart], None]
) -> AsyncIterator[httpx.AsyncClient]:
    """Serve an application with uvicorn, and give a client of it."""
    app = create_app(settings)
    prepare(app)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([listener]))
    try:
        async with asyncio.timeout(60):
            while not server.started and not task.done():
                await asyncio.sleep(0.01)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        await task


SERVERS: dict[str, Any] = {"octavo": visiting, "uvicorn": under_uvicorn}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("name", ADDITIONS)
async def test_an_addition_sees_every_request_and_switches_the_fast_path_off(
    site: Site, make: Factory, folder: Path, name: str, server: str
) -> None:
    member = await make.member()
    book = await make.book(member)
    seen: Seen = []
    warnings: list[str] = []

    def prepare(app: Quart) -> None:
        ADDITIONS[name](app, seen)
        logger: Any = app.logger
        logger.warning = lambda line, *values: warnings.append(line % values)

    async with SERVERS[server](settings_for(site.another_url, folder), prepare) as client:
        for _ in range(3):  # now they are cached
            await client.get(f"/api/books/{book.id}")
            await client.get("/api/books")
        new = {"title": "New", "author": "Somebody"}
        send = partial(client.request, headers={"X-Tenant": "a", **member.headers})
        for request, status in (
            (send("GET", f"/api/books/{book.id}"), 200),
            (send("GET", "/api/books"), 200),
            (send("POST", "/api/books", json=new), 201),
            (send("GET", "/api/books/7000"), 404),
            (client.get("/api/books", headers={"Authorization": "Bearer x"}), 401),
            (client.get("/health/live"), 200),
        ):
            count = len(seen)
            response = await request
            assert response.status_code == status
            assert len(seen) > count, response.request.url
            assert name != "after_request" or response.headers["X-Added"] == "1"
        health = (await client.get("/health")).json()
        kind = name.partition(":")[0]
        assert health["fast_path"].startswith("off (")
        assert kind in health["fast_path"]
    hints = [line for line in warnings if line.startswith("Every request takes Quart's way")]
    assert len(hints) == 1
    assert kind in hints[0]


@pytest.mark.parametrize("server", SERVERS)
async def test_a_maintenance_hook_refuses_every_request(
    site: Site, make: Factory, folder: Path, server: str
) -> None:
    member = await make.member()
    book = await make.book(member)

    def prepare(app: Quart) -> None:
        @app.before_request
        async def maintain() -> tuple[str, int]:
            return "closed", 503

    async with SERVERS[server](settings_for(site.another_url, folder), prepare) as client:
        new = {"title": "New", "author": "Somebody"}
        responses = [
            await client.post("/api/books", json=new, headers=member.headers),
            await client.get(f"/api/books/{book.id}"),
            await client.get("/api/books"),
        ]
    assert [(response.status_code, response.text) for response in responses] == [
        (503, "closed")
    ] * 3
    async with visiting(settings_for(site.another_url, folder)) as client:
        assert (await client.get("/api/books")).json()["total"] == 1


async def test_a_blueprints_hook_that_is_older_than_the_application_is_called(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Seen = []

    async def hook() -> None:
        seen.append(request.path)

    hooks = [*books_bp.before_request_funcs.get(None, []), hook]
    monkeypatch.setitem(books_bp.before_request_funcs, None, hooks)
    async with visiting(settings_for(site.another_url, folder), lambda app: None) as client:
        for count in (1, 2, 3):
            await client.get("/api/books")
            assert len(seen) == count
        assert "before_request: tests.test_additions" in (await client.get("/health")).text


@pytest.mark.parametrize("error", [401, 404, 429])
async def test_an_error_handler_is_called_for_requests_refused_before_quart(
    site: Site, folder: Path, error: int
) -> None:
    def prepare(app: Quart) -> None:
        @app.errorhandler(Exception)
        async def handle(problem: Exception) -> tuple[str, int]:
            return f"handled {type(problem).__name__}", error

    settings = settings_for(site.another_url, folder, ratelimit_books_list="2 per hour")
    async with visiting(settings, prepare) as client:
        if error == 429:
            for _ in range(2):
                assert (await client.get("/api/books")).status_code == 200
        headers = {"Authorization": "Bearer x"} if error == 401 else {}
        path = "/api/books/7000" if error == 404 else "/api/books"
        response = await client.get(path, headers=headers)
    names = {401: "InvalidTokenError", 404: "ResourceNotFoundError", 429: "RateLimitedError"}
    assert (response.status_code, response.text) == (error, f"handled {names[error]}")


async def test_sentry_is_detected_after_its_usual_init(folder: Path) -> None:
    """Its integration replaces methods of Quart, once for a process."""
    code = (
        "import sentry_sdk; sentry_sdk.init('http://key@127.0.0.1:1/1')\n"
        "from service import config; from service.app import create_app\n"
        f"app = create_app(config.Testing(database_url='sqlite://', secret_key={'x' * 40!r}))\n"
        "additions = app.extensions['additions']; additions.search(); print(additions.names)"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=folder, stdout=PIPE, env={**os.environ, "PYTHONPATH": ROOT}
    )
    try:
        out, _ = await process.communicate()
    finally:
        await killed(process)
    assert b"Quart.__call__: sentry_sdk.integrations.quart" in out


async def test_without_additions_the_fast_path_is_on(site: Site, client: httpx.AsyncClient) -> None:
    assert (await client.get("/health")).json()["fast_path"] == "on"


async def test_health_shows_that_the_fast_path_is_switched_off(site: Site, folder: Path) -> None:
    async with visiting(settings_for(site.another_url, folder, fast_path=False)) as client:
        assert (await client.get("/health")).json()["fast_path"] == "off (FAST_PATH=false)"


async def test_a_removed_addition_switches_the_fast_path_on_again(
    site: Site, folder: Path, make: Factory
) -> None:
    async def receive(sender: Quart, **_: Any) -> None:
        """Receive a signal."""

    served: list[Quart] = []
    async with visiting(settings_for(site.another_url, folder), served.append) as client:
        (app,) = served
        additions = app.extensions["additions"]
        signals.request_finished.connect(receive, app)
        try:
            additions.search()
            assert additions.exist
        finally:
            signals.request_finished.disconnect(receive, app)
        additions.search()
        assert not additions.exist
        assert (await client.get("/health")).json()["fast_path"] == "on"


class Thing(BaseModel):
    """The body of a request and of a response of an added view."""

    name: str


async def test_a_view_may_return_a_model(site: Site, folder: Path) -> None:
    """The documented way of quart-schema."""

    def prepare(app: Quart) -> None:
        @app.post("/things")
        @validate_request(Thing)
        @validate_response(Thing, 201)
        async def add(data: Thing) -> tuple[Thing, int]:
            if data.name == "none":
                raise ResourceNotFoundError
            return Thing(name=data.name.upper()), 201

    async with visiting(settings_for(site.another_url, folder), prepare) as client:
        response = await client.post("/things", json={"name": "a"})
        assert (response.status_code, response.json()) == (201, {"name": "A"})
        wrong = await client.post("/things", json={"name": 1})
        assert wrong.status_code == 400
        assert wrong.json()["messages"] == {"name": ["Not a valid string."]}
        assert (await client.post("/things", json={"name": "none"})).status_code == 404
        assert (await client.get("/health")).json()["fast_path"] == "on"
