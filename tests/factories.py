"""Rows for tests, made by the functions of the service."""

import itertools
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from quart import Quart

from service.auth.service import login
from service.books.schemas import BookCreate
from service.books.service import new_book
from service.models import Book, User
from service.users.service import create_user

PASSWORD = "correct horse battery"
_numbers = itertools.count(1)
_hashes: dict[str, str] = {}


@dataclass(frozen=True)
class Member:
    """A user who is signed in."""

    id: int
    username: str
    email: str
    token: str
    refresh_token: str
    password: str = PASSWORD

    @property
    def headers(self) -> dict[str, str]:
        """The headers that authenticate their requests."""
        return {"Authorization": f"Bearer {self.token}"}


class Factory:
    """Makes rows in the database of an application."""

    def __init__(self, app: Quart) -> None:
        self.app = app
        self._database = app.extensions["database"]

    async def member(
        self, username: str | None = None, *, is_admin: bool = False, tier: str = "free"
    ) -> Member:
        """Make a user and sign them in."""
        name = username or f"member{next(_numbers)}"
        password_hash = await self._password_hash()

        async def work(db: Any) -> User:
            user = await create_user(
                db, name, f"{name}@example.org", password_hash, is_admin=is_admin
            )
            user.tier = tier
            return user

        user: User = await self._database.write(work)
        return await self.signed_in(user)

    async def _password_hash(self) -> str:
        """Hash PASSWORD, once for all tests: a hash takes longer than most of the tests."""
        if PASSWORD not in _hashes:
            _hashes[PASSWORD] = await self.app.extensions["passwords"].hash(PASSWORD)
        return _hashes[PASSWORD]

    async def admin(self) -> Member:
        """Make an administrator and sign them in."""
        return await self.member(is_admin=True)

    async def signed_in(self, user: User | Member) -> Member:
        """Open another session of a user."""
        tokens = self.app.extensions["tokens"]

        async def work(db: Any) -> Any:
            row = await db.get(User, user.id)
            return await login(db, row.id, row.password_hash, None, tokens, 3600)

        pair = await self._database.write(work)
        return Member(user.id, user.username, user.email, pair.token, pair.refresh_token)

    async def book(self, owner: Member | None = None, **fields: Any) -> Book:
        """Make a book."""
        values = {"title": f"Book {next(_numbers)}", "author": "Somebody"} | fields
        if isinstance(values.get("price"), float):
            values["price"] = Decimal(str(values["price"]))
        data = BookCreate.model_validate(values)
        owner_id = owner.id if owner else None

        async def work(db: Any) -> Book:
            row = new_book(owner_id, data)
            db.add(row)
            await db.flush()
            return row

        book: Book = await self._database.write(work)
        return book
