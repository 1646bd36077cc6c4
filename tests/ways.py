"""The short way and the ordinary one, asked the same: what each answers, counts and logs."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from quart import Quart

from tests.conftest import Site, serving, settings_for
from tests.factories import Member

SHOP, ELSEWHERE = "https://shop.example.org", "https://elsewhere.example.org"
RATE = "30 per hour"  # a few of the questions of each caller are refused
EACH = 200  # questions of a caller
TICKING = re.compile(r"(?<=t=)\d+")
INTERIM = re.compile(rb"\AHTTP/1.1 1.*?\r\n\r\n", re.DOTALL)
CHANCE = re.compile(r"(cache|user)=\S+ ")  # who comes first finds less; each has its own callers
OWN = {"date", "x-request-id"}  # of one answer
SECONDS = {"ratelimit-reset", "retry-after"}


@dataclass(frozen=True)
class Answered:
    """What came back."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """Give the header of a name, if there is one."""
        return dict(self.headers).get(name)


@dataclass
class Asked:
    """One of the two applications, and what was noted beside its answers."""

    site: Site
    number: int
    token: str
    books: list[int]  # their ids
    framework: int = 0  # requests that it saw
    lines: list[str] = field(default_factory=list)

    def address(self, n: int) -> str:
        """Give the address of a caller that asks a few questions of this one alone."""
        return f"172.16.{n // EACH}.{self.number}"

    @property
    def hits(self) -> int:
        """How many reads the cache has answered."""
        hits: int = self.site.app.extensions["cache"].counters.hits
        return hits

    def spy(self, level: str, log: Callable[..., None]) -> Callable[..., None]:
        """Give what notes lines, all but how long it took, before they are logged."""

        def note(message: str, *told: Any, **more: Any) -> None:
            is_access = told and isinstance(told[0], dict)
            kept = ({**told[0], "milliseconds": 0.0},) if is_access else told
            if is_access or level != "info":
                self.lines.append(f"{level} {message % (kept[0] if is_access else kept)}")
            log(message, *told, **more)

        return note

    async def ask(self, request: bytes, *cuts: int) -> Answered:
        """Send bytes over a connection of their own; `cuts`: where a piece ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.site.port)
        for begin, end in pairwise([0, *cuts, len(request)]):
            writer.write(request[begin:end])
            await asyncio.sleep(0.001 if end < len(request) else 0)
        async with asyncio.timeout(20):
            raw = await reader.read()
        writer.close()
        head, _, body = INTERIM.sub(b"", raw).partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines]
        headers = sorted((name.lower(), value) for name, value in pairs)
        return Answered(int(first.split()[1]), headers, body)

    async def metrics(self) -> Counter[str]:
        """Give how many requests there were of each kind, and what the cache counted."""
        metrics = self.site.app.extensions["metrics"]
        told = (await metrics.text()).decode()
        found = re.findall(
            r"(?m)^(octavo_(?:request_seconds_count|limit_dec\w+_total)\S*) (\S+)$", told
        )
        return Counter({name: int(float(number)) for name, number in found})


@asynccontextmanager
async def asked(
    site: Site, folder: Path, number: int, member: Member, books: list[int], **changed: Any
) -> AsyncIterator[Asked]:
    """Serve the same catalogue, and note what Quart sees of it, and what is logged."""
    found = Asked(site, number, member.headers["Authorization"].removeprefix("Bearer "), books)

    def prepare(app: Quart) -> None:
        @app.before_request
        async def note() -> None:
            found.framework += 1

        for level in ("info", "warning", "error"):
            setattr(app.logger, level, found.spy(level, getattr(app.logger, level)))
        app.extensions["additions"].accept()

    settings = settings_for(
        site.another_url,
        folder,
        ratelimit_storage_url=None,
        ratelimit_books_item=RATE,
        ratelimit_books_list=f"{RATE};1000 per day",
        trusted_proxy_hops=1,
        cors_origins=[SHOP],
        **{"ratelimit_default": "1000000 per hour", **changed},  # none of it comes back meanwhile
    )
    async with serving(settings, prepare) as served:
        found.site = served
        yield found


@dataclass(frozen=True)
class Question:
    """A request, but for who asks."""

    first: str
    headers: list[tuple[str, str]]
    tokens: str
    body: bytes = b""

    def by(self, address: str, token: str = "") -> bytes:
        """Give the bytes of it."""
        tokens = {"": [], "own": [token], "false": [f"{token}x"], "two": [token, token]}
        lines = [self.first, *(f"{name}: {value}" for name, value in self.headers)]
        lines += [f"Authorization: Bearer {one}" for one in tokens[self.tokens] if token]
        lines += [f"X-Forwarded-For: {address}", "Connection: close", "", ""]
        return "\r\n".join(lines).encode("latin-1") + self.body


def plain(answer: Answered) -> Any:
    """Leave out what differs from answer to answer: the time, and an id that was given."""
    headers = [
        (name, "s" if name in SECONDS else TICKING.sub("s", value))
        for name, value in answer.headers
        if name not in OWN
    ]
    body = re.sub(rb'"(request_id":"\w+|retry_after":\d+)"?', b"", answer.body)
    return answer.status, headers, body
