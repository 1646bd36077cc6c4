"""Requests that meet a lock of a write under way."""

import asyncio
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import text

from service.http.auth import CurrentUser
from tests.conftest import Site
from tests.factories import Member

LOCK_WAITS = "SELECT count(*) FROM pg_locks WHERE NOT granted"


def current_user(site: Site, member: Member, *, is_admin: bool = False) -> CurrentUser:
    """Return a member as the guard passes them to a route."""
    claims = site.app.extensions["tokens"].read(member.token)
    return CurrentUser(
        id=member.id,
        username=member.username,
        email=member.email,
        tier=claims.tier,
        is_admin=is_admin,
        created_at=datetime.now(UTC),
        jti=claims.jti,
        ver=claims.ver,
    )


async def until_blocked(site: Site, request: "asyncio.Future[Any]") -> None:
    """Wait until a request waits for a lock of PostgreSQL, or has a response.

    On SQLite the request waits for the only connection that writes.
    """
    if site.database.url.get_backend_name() == "sqlite":
        return
    async with asyncio.timeout(30):
        while not request.done():
            async with site.database.session() as db:
                if await db.scalar(text(LOCK_WAITS)):
                    return
            await asyncio.sleep(0.01)
