"""The guard: who was recognised is recognised again in the write that acts for them."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import jwt
import pytest

from service.admin.service import delete_user, update_rights
from service.auth.service import logout
from service.books.schemas import BookCreate, BookUpdate
from service.books.service import create_books, delete_book, update_book
from service.errors import APIError
from service.http.auth import CurrentUser
from service.users.service import update_profile
from tests.conftest import Site
from tests.factories import PASSWORD, Factory, Member
from tests.test_auth import alive

Act = Callable[[Any, CurrentUser, int, int], Awaitable[object]]

BOOK = BookCreate(title="T", author="A")
ACTS: dict[str, Act] = {
    "create": lambda db, who, book, user: create_books(db, [(BOOK, who)], True),
    "update": lambda db, who, book, user: update_book(db, book, BookUpdate(title="New"), who),
    "delete": lambda db, who, book, user: delete_book(db, book, who),
    "profile": lambda db, who, book, user: update_profile(
        db, who, username="other name", email=None, password_hash=None, checked_hash=None
    ),
    "password": lambda db, who, book, user: update_profile(
        db, who, username=None, email=None, password_hash="x", checked_hash=None
    ),
    "logout": lambda db, who, book, user: logout(db, who),
    "rights": lambda db, who, book, user: update_rights(
        db, who, user, tier="premium", is_admin=None
    ),
    "delete user": lambda db, who, book, user: delete_user(db, who, user),
}


def recognised(member: Member, *, is_admin: bool) -> CurrentUser:
    """Give what the guard has made of a member's token."""
    claims = jwt.decode(member.token, options={"verify_signature": False})
    return CurrentUser(
        id=member.id,
        username=member.username,
        email=member.email,
        tier=claims["tier"],
        is_admin=is_admin,
        created_at=datetime.now(UTC),
        jti=claims["jti"],
        ver=claims["ver"],
    )


@pytest.mark.parametrize("ended", ["signed out", "demoted", "deleted"])
@pytest.mark.parametrize("act", ACTS)
async def test_nothing_is_written_for_a_user_who_lost_their_rights_meanwhile(
    site: Site, client: httpx.AsyncClient, make: Factory, act: str, ended: str
) -> None:
    admin, boss, other = await make.admin(), await make.admin(), await make.member()
    book = await make.book(boss)
    who = recognised(admin, is_admin=True)
    path = f"/admin/users/{admin.id}"
    if ended == "signed out":
        await client.post("/api/auth/logout", headers=admin.headers)
    elif ended == "demoted":
        await client.patch(path, json={"is_admin": False}, headers=boss.headers)
    else:
        await client.delete(path, headers=boss.headers)
    with pytest.raises(APIError) as caught:
        await site.database.write(lambda db: ACTS[act](db, who, book.id, other.id))
    assert caught.value.status_code == 401
    assert not await alive(client, admin.token)
    shown = (await client.get("/api/books")).json()["items"]
    assert [item["title"] for item in shown] == [book.title]
    assert await alive(client, other.token)


@pytest.mark.parametrize("act", ACTS)
async def test_a_user_who_is_still_who_they_were_may(site: Site, make: Factory, act: str) -> None:
    admin, boss, other = await make.admin(), await make.admin(), await make.member()
    book = await make.book(boss)
    who = recognised(admin, is_admin=True)
    await site.database.write(lambda db: ACTS[act](db, who, book.id, other.id))


async def test_logout_is_not_undone_by_a_password_change_under_way(
    client: httpx.AsyncClient, make: Factory
) -> None:
    for _ in range(4):
        member = await make.member()
        change = {"password": "another password", "current_password": PASSWORD}
        changed = asyncio.ensure_future(
            client.patch("/api/profile", json=change, headers=member.headers)
        )
        await asyncio.sleep(0.02)  # within the hashing
        out = await client.post("/api/auth/logout", headers=member.headers)
        assert out.status_code == 204
        assert (await changed).status_code in {200, 401}
        assert not await alive(client, member.token)
