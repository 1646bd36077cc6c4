"""The wall clock of one worker steps, by an hour or a day: what depends on it, and what does not.

What a worker does while its clock is stepped, and what others do, is told apart by time: the step
is undone before the others are asked.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from pathlib import Path

import httpx
import jwt.api_jwt
import pytest
from sqlalchemy import select

from service.auth import service as auth
from service.auth.service import NOW
from service.errors import UnauthorizedError
from service.models import RefreshToken
from service.security import tokens
from tests.conftest import Site, settings_for, visiting
from tests.factories import Factory

HOUR, DAY = 3_600, 86_400
STEPS = [HOUR, -HOUR, DAY + 60, -DAY - 60]
MONTH = 2_592_000


@contextmanager
def stepped(monkeypatch: pytest.MonkeyPatch, seconds: float) -> Iterator[None]:
    """Set the wall clock of this process, and leave the monotonic one alone."""
    now = time.time

    class Stepped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]  # of the class itself
            return datetime.fromtimestamp(time.time(), tz)

    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + seconds)
        for module in (jwt.api_jwt, tokens, auth):
            patch.setattr(module, "datetime", Stepped)
        yield


@pytest.mark.parametrize("seconds", STEPS)
async def test_refresh_tokens_live_by_the_databases_clock(
    site: Site,
    client: httpx.AsyncClient,
    make: Factory,
    monkeypatch: pytest.MonkeyPatch,
    seconds: int,
) -> None:
    member, other = await make.member(), await make.member()  # for an hour
    with stepped(monkeypatch, seconds):
        answer = await client.post(
            "/api/auth/refresh", json={"refresh_token": member.refresh_token}
        )
        assert answer.status_code == 200
        body = {"email": member.email, "password": member.password}
        assert (await client.post("/api/auth/login", json=body)).status_code == 200
    again = await client.post(
        "/api/auth/refresh", json={"refresh_token": answer.json()["refresh_token"]}
    )
    assert again.status_code == 200, "what the stepped worker has given is good elsewhere"
    async with site.database.session() as db:
        now = (await db.execute(select(NOW))).scalar_one()
        rows = (await db.execute(select(RefreshToken.user_id, RefreshToken.expires_at))).all()
    assert other.id in {row.user_id for row in rows}, "nothing was taken for expired"
    ends = [(row.expires_at - now).total_seconds() for row in rows if row.user_id == member.id]
    assert len(ends) == 4
    assert [round(end, -2) for end in sorted(ends)] == [HOUR, MONTH, MONTH, MONTH]


@pytest.mark.parametrize("seconds", STEPS)
async def test_access_tokens_are_good_again_when_the_clock_is(
    site: Site, make: Factory, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    member = await make.member()
    worker = tokens.Tokens(site.app.extensions["settings"])  # which has seen none yet
    with stepped(monkeypatch, seconds):
        if seconds == HOUR:
            worker.read(member.token)
        else:  # it has not begun, or has ended
            with pytest.raises(UnauthorizedError):
                worker.read(member.token)
    assert worker.read(member.token).user_id == member.id, "no refusal is remembered"
    with stepped(monkeypatch, seconds):
        if seconds > DAY:
            with pytest.raises(UnauthorizedError):
                worker.read(member.token)
        else:
            worker.read(member.token)  # its signature was checked when the clock was right


@pytest.mark.parametrize(
    ("seconds", "is_good"), [(20, True), (-20, True), (HOUR, False), (DAY, False), (-HOUR, True)]
)
async def test_access_tokens_of_a_stepped_worker(
    client: httpx.AsyncClient,
    make: Factory,
    monkeypatch: pytest.MonkeyPatch,
    seconds: int,
    is_good: bool,
) -> None:
    with stepped(monkeypatch, seconds):
        member = await make.member()
    answer = await client.get("/api/books", headers=member.headers)
    assert answer.status_code == (200 if is_good else 401)
    fresh = await make.signed_in(member)
    assert (await client.get("/api/books", headers=fresh.headers)).status_code == 200


@pytest.mark.parametrize("store", ["memory", "redis"])
@pytest.mark.parametrize("seconds", STEPS)
async def test_limits_know_no_wall_clock(
    site: Site,
    folder: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    store: str,
    seconds: int,
) -> None:
    url = "memory://" if store == "memory" else request.getfixturevalue("redis_url")
    changed = {"ratelimit_default": "4 per hour", "trusted_proxy_hops": 1}
    settings = settings_for(site.another_url, folder, ratelimit_storage_url=url, **changed)
    address = {"X-Forwarded-For": f"10.7.{STEPS.index(seconds)}.{int(url != 'memory://')}"}
    if url != "memory://" and site.database.url.get_backend_name() != "sqlite":
        address["X-Forwarded-For"] = f"10.8.{STEPS.index(seconds)}.1"
    async with visiting(settings) as client:
        statuses = [(await client.get("/none", headers=address)).status_code for _ in range(3)]
        with stepped(monkeypatch, seconds):
            statuses += [(await client.get("/none", headers=address)).status_code for _ in range(2)]
            refused = await client.get("/none", headers=address)
        assert statuses == [404] * 4 + [429]
        assert HOUR - 60 < int(refused.headers["Retry-After"]) <= HOUR
        assert (await client.get("/none", headers=address)).status_code == 429


@pytest.mark.parametrize("seconds", STEPS)
async def test_the_cache_knows_no_wall_clock(
    site: Site,
    client: httpx.AsyncClient,
    make: Factory,
    monkeypatch: pytest.MonkeyPatch,
    seconds: int,
) -> None:
    book = await make.book()
    path = f"/api/books/{book.id}"
    titles: list[set[str]] = []
    admin = await make.admin()
    for step in (0, seconds, 0):
        with stepped(monkeypatch, step):
            fresh = await make.signed_in(admin)
            title = {"title": f"Title {len(titles)}"}
            answer = await client.patch(path, json=title, headers=fresh.headers)
            assert answer.status_code == 200
            answers = [await client.get(path) for _ in range(3)]
            titles.append({answer.json()["title"] for answer in answers})
            assert answers[-1].headers["Cache-Status"] == "Octavo; hit", "the lease is not lost"
    assert titles == [{"Title 0"}, {"Title 1"}, {"Title 2"}]
