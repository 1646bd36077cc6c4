"""The wall clock of one worker steps by an hour or a day: effects on tokens, limits and cache.

One process stands for several workers: the step is undone before another worker would act.
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
    """Change the wall clock of this process, but not its monotonic clock."""
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
async def test_refresh_tokens_expire_by_the_clock_of_the_database(
    site: Site,
    client: httpx.AsyncClient,
    make: Factory,
    monkeypatch: pytest.MonkeyPatch,
    seconds: int,
) -> None:
    member, other = await make.member(), await make.member()  # for an hour
    with stepped(monkeypatch, seconds):
        response = await client.post(
            "/api/auth/refresh", json={"refresh_token": member.refresh_token}
        )
        assert response.status_code == 200
        body = {"email": member.email, "password": member.password}
        assert (await client.post("/api/auth/login", json=body)).status_code == 200
    again = await client.post(
        "/api/auth/refresh", json={"refresh_token": response.json()["refresh_token"]}
    )
    assert again.status_code == 200, "other workers accept the token"
    async with site.database.session() as db:
        now = (await db.execute(select(NOW))).scalar_one()
        rows = (await db.execute(select(RefreshToken.user_id, RefreshToken.expires_at))).all()
    assert other.id in {row.user_id for row in rows}, "no valid token was deleted as expired"
    ends = [(row.expires_at - now).total_seconds() for row in rows if row.user_id == member.id]
    assert len(ends) == 4
    assert [round(end, -2) for end in sorted(ends)] == [HOUR, MONTH, MONTH, MONTH]


@pytest.mark.parametrize("seconds", STEPS)
async def test_access_tokens_are_valid_again_when_the_clock_is_right(
    site: Site, make: Factory, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    member = await make.member()
    worker = tokens.Tokens(site.app.extensions["settings"])  # its cache is empty
    with stepped(monkeypatch, seconds):
        if seconds == HOUR:
            worker.read(member.token)
        else:  # the token is not valid yet, or has expired
            with pytest.raises(UnauthorizedError):
                worker.read(member.token)
    assert worker.read(member.token).user_id == member.id, "no refusal is cached"
    with stepped(monkeypatch, seconds):
        if seconds > DAY:
            with pytest.raises(UnauthorizedError):
                worker.read(member.token)
        else:
            worker.read(member.token)  # its signature was checked when the clock was right


@pytest.mark.parametrize(
    ("seconds", "is_valid"), [(20, True), (-20, True), (HOUR, False), (DAY, False), (-HOUR, True)]
)
async def test_access_tokens_that_a_stepped_worker_has_issued(
    client: httpx.AsyncClient,
    make: Factory,
    monkeypatch: pytest.MonkeyPatch,
    seconds: int,
    is_valid: bool,
) -> None:
    with stepped(monkeypatch, seconds):
        member = await make.member()
    response = await client.get("/api/books", headers=member.headers)
    assert response.status_code == (200 if is_valid else 401)
    fresh = await make.signed_in(member)
    assert (await client.get("/api/books", headers=fresh.headers)).status_code == 200


@pytest.mark.parametrize("store", ["memory", "redis"])
@pytest.mark.parametrize("seconds", STEPS)
async def test_rate_limits_do_not_depend_on_the_wall_clock(
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
async def test_the_cache_does_not_depend_on_the_wall_clock(
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
            response = await client.patch(path, json=title, headers=fresh.headers)
            assert response.status_code == 200
            responses = [await client.get(path) for _ in range(3)]
            titles.append({response.json()["title"] for response in responses})
            assert responses[-1].headers["Cache-Status"] == "Octavo; hit", "the lease still holds"
    assert titles == [{"Title 0"}, {"Title 1"}, {"Title 2"}]
