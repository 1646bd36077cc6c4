"""Every write for a user holds the user's row: tokens are revoked before the write or after it.

A logout that has a response is final: no write of the revoked token is committed after it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from service.books.schemas import BookCreate, BookUpdate
from service.books.service import create_books, delete_book, update_book
from service.http.auth import CurrentUser
from service.users.service import update_profile
from tests.conftest import Site
from tests.factories import Factory
from tests.locks import current_user, until_blocked

DATA = BookCreate(title="T", author="A")
WRITES: dict[str, Callable[[Any, CurrentUser, int], Awaitable[object]]] = {
    "create": lambda db, user, book_id: create_books(db, [(DATA, user)], True),
    "create together": lambda db, user, book_id: create_books(db, [(DATA, user)] * 2, False),
    "update": lambda db, user, book_id: update_book(db, book_id, BookUpdate(title="N"), user),
    "delete": lambda db, user, book_id: delete_book(db, book_id, user),
    "profile": lambda db, user, book_id: update_profile(
        db, user, username="another name", email=None, password_hash=None, checked_hash=None
    ),
}


@pytest.mark.parametrize("write", WRITES)
async def test_a_logout_waits_for_a_write_under_way(
    site: Site, client: httpx.AsyncClient, make: Factory, write: str
) -> None:
    member = await make.member()
    book = await make.book(member)

    async def work(db: Any) -> "asyncio.Task[httpx.Response]":
        await WRITES[write](db, current_user(site, member), book.id)
        logout = asyncio.create_task(client.post("/api/auth/logout", headers=member.headers))
        await until_blocked(site, logout)
        assert not logout.done(), "the response came before the write was committed"
        return logout

    response = await (await site.database.write(work))
    assert response.status_code == 204
    refused = await client.get("/api/profile", headers=member.headers)
    assert refused.status_code == 401
