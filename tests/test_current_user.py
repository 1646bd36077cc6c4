"""The current user: authenticated before the handler, and checked again within each write."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import jwt
import pytest
from argon2 import PasswordHasher

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
    "create": lambda db, actor, book, user: create_books(db, [(BOOK, actor)], True),
    "update": lambda db, actor, book, user: update_book(db, book, BookUpdate(title="New"), actor),
    "delete": lambda db, actor, book, user: delete_book(db, book, actor),
    "profile": lambda db, actor, book, user: update_profile(
        db, actor, username="other name", email=None, password_hash=None, checked_hash=None
    ),
    "password": lambda db, actor, book, user: update_profile(
        db, actor, username=None, email=None, password_hash="x", checked_hash=None
    ),
    "logout": lambda db, actor, book, user: logout(db, actor),
    "rights": lambda db, actor, book, user: update_rights(
        db, actor, user, tier="premium", is_admin=None
    ),
    "delete user": lambda db, actor, book, user: delete_user(db, actor, user),
}


def current_user(member: Member, *, is_admin: bool) -> CurrentUser:
    """Give the CurrentUser that a member's token stands for."""
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
async def test_a_write_is_refused_if_its_user_lost_their_rights_meanwhile(
    site: Site, client: httpx.AsyncClient, make: Factory, act: str, ended: str
) -> None:
    admin, boss, other = await make.admin(), await make.admin(), await make.member()
    book = await make.book(boss)
    actor = current_user(admin, is_admin=True)
    path = f"/admin/users/{admin.id}"
    if ended == "signed out":
        await client.post("/api/auth/logout", headers=admin.headers)
    elif ended == "demoted":
        await client.patch(path, json={"is_admin": False}, headers=boss.headers)
    else:
        await client.delete(path, headers=boss.headers)
    with pytest.raises(APIError) as caught:
        await site.database.write(lambda db: ACTS[act](db, actor, book.id, other.id))
    assert caught.value.status_code == 401
    assert not await alive(client, admin.token)
    shown = (await client.get("/api/books")).json()["items"]
    assert [item["title"] for item in shown] == [book.title]
    assert await alive(client, other.token)


@pytest.mark.parametrize("act", ACTS)
async def test_a_write_succeeds_if_its_user_is_unchanged(
    site: Site, make: Factory, act: str
) -> None:
    admin, boss, other = await make.admin(), await make.admin(), await make.member()
    book = await make.book(boss)
    actor = current_user(admin, is_admin=True)
    await site.database.write(lambda db: ACTS[act](db, actor, book.id, other.id))


@pytest.mark.parametrize("step", ["verify", "hash"])
async def test_a_logout_is_not_undone_by_a_password_change_under_way(
    client: httpx.AsyncClient, make: Factory, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    member = await make.member()
    begun, may_end = threading.Event(), threading.Event()
    run = getattr(PasswordHasher, step)

    def blocked(*arguments: Any, **options: Any) -> Any:
        begun.set()
        may_end.wait(60)
        return run(*arguments, **options)

    monkeypatch.setattr(PasswordHasher, step, blocked)
    change = {"password": "another password", "current_password": PASSWORD}
    changed = asyncio.ensure_future(
        client.patch("/api/profile", json=change, headers=member.headers)
    )
    try:
        assert await asyncio.to_thread(begun.wait, 60)
        out = await client.post("/api/auth/logout", headers=member.headers)
    finally:
        may_end.set()
    assert out.status_code == 204
    assert (await changed).status_code == 401
    assert not await alive(client, member.token)
    assert await alive(client, (await make.signed_in(member)).token), "the password is the old one"
