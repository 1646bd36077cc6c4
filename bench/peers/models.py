"""The tables of Octavo as ORM models, with the columns that the peers use."""

from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, DateTime, Numeric, String, Text, func, text
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The base class of the models."""


class UserColumns:
    """A user account."""

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    username: Mapped[str] = mapped_column(String(50))
    token_version: Mapped[int] = mapped_column(BigInteger)


class BookColumns:
    """A book."""

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    title: Mapped[str] = mapped_column(String(200))
    author: Mapped[str] = mapped_column(String(100))
    author_key: Mapped[str] = mapped_column(Text, deferred=True)
    isbn: Mapped[str | None] = mapped_column(String(13))
    published_year: Mapped[int | None]
    genre: Mapped[str | None] = mapped_column(String(20))
    price: Mapped[Decimal | None] = mapped_column(Numeric(13, 2))
    user_id: Mapped[int | None] = mapped_column(BigInteger)
    search: Mapped[str] = mapped_column(TSVECTOR, deferred=True)
    version: Mapped[int] = mapped_column(server_default="1")
    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.statement_timestamp()
    )
    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.statement_timestamp()
    )

    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012  (SQLAlchemy expects this form)


class User(UserColumns, Base):
    """A user account."""

    __tablename__ = "users"


class Book(BookColumns, Base):
    """A book."""

    __tablename__ = "books"


def price_key(model: Any) -> Any:
    """Return the expression that the schema has an index on: NULL sorts below all prices."""
    return func.coalesce(model.price, text("-1"))
