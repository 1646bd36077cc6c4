"""The tables, as models. Constraints repeat the checks of the schemas, and ensure uniqueness."""

import unicodedata
from datetime import datetime
from decimal import Decimal

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    func,
    literal_column,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from service.models.cached import cached
from service.models.search import book_words
from service.models.types import Money, SearchWords, UtcDateTime, UtcNow

GENRES = ("Fiction", "Non-Fiction", "Science", "History")
TIERS = ("free", "standard", "premium", "service")
Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite generates ids only for INTEGER


def fold(value: str) -> str:
    """Return the form for comparison of authors and e-mail addresses: case-folded, NFC."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", value).casefold())


class Base(DeclarativeBase):
    """The base of all models. Every constraint has a name, for errors and migrations."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )
    # INSERT and UPDATE return the values that the database computes: no lazy load.
    __mapper_args__ = {"eager_defaults": True}


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


@cached("user")
class User(Base):
    """A user account. A valid access token has the claim `ver` equal to `token_version`."""

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("length(username) BETWEEN 3 AND 50", name="username"),
        CheckConstraint(_one_of("tier", TIERS), name="tier"),
        Index("ix_users_created_at", "created_at", "id"),
        {"sqlite_autoincrement": True},  # ids are never reused
    )

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    username: Mapped[str] = mapped_column(String(50))
    username_key: Mapped[str] = mapped_column(Text, unique=True)
    email: Mapped[str] = mapped_column(String(254))
    email_key: Mapped[str] = mapped_column(Text, unique=True)
    password_hash: Mapped[str] = mapped_column(String(200))
    tier: Mapped[str] = mapped_column(String(20), server_default="free")
    is_admin: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    token_version: Mapped[int] = mapped_column(default=1, server_default="1")
    # The `jti` of the token that stays valid after a change of the password: that request's token.
    kept_jti: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=UtcNow())


class RefreshToken(Base):
    """A refresh token, stored as a digest. Used rows stay until they expire, to detect reuse.

    family: shared by the tokens of one sign-in. access_jti: the `jti` of its access token.
    """

    __tablename__ = "refresh_tokens"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    family: Mapped[str] = mapped_column(String(32), index=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    access_jti: Mapped[str] = mapped_column(String(32))
    used: Mapped[bool] = mapped_column(default=False)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


@cached("book", lists=True)
class Book(Base):
    """A book. `user_id` is its owner. Without an owner, only administrators may edit it."""

    __tablename__ = "books"
    __table_args__ = (
        CheckConstraint("length(title) BETWEEN 1 AND 200 AND trim(title) <> ''", name="title"),
        CheckConstraint("length(author) BETWEEN 1 AND 100 AND trim(author) <> ''", name="author"),
        CheckConstraint("length(isbn) IN (10, 13)", name="isbn"),
        CheckConstraint("published_year BETWEEN 1000 AND 2100", name="published_year"),
        CheckConstraint(_one_of("genre", GENRES), name="genre"),
        CheckConstraint("price BETWEEN 0 AND 99999999.99", name="price").ddl_if("postgresql"),
        CheckConstraint("price BETWEEN 0 AND 9999999999", name="price").ddl_if("sqlite"),
        CheckConstraint("version >= 1", name="version"),
        # The index of each filter continues with the order of the list: newest first.
        Index("ix_books_created_at", "created_at", "id"),
        Index("ix_books_author_key", "author_key", "created_at", "id"),
        Index("ix_books_genre", "genre", "created_at", "id"),
        Index("ix_books_user_id", "user_id", "created_at", "id"),
        Index("ix_books_isbn", "isbn"),
        Index("ix_books_title", "title", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    title: Mapped[str] = mapped_column(
        # Collation "C" compares by code point, as SQLite does, whatever the server's locale is.
        String(200).with_variant(String(200, collation="C"), "postgresql")
    )
    author: Mapped[str] = mapped_column(String(100))
    author_key: Mapped[str] = mapped_column(Text)
    isbn: Mapped[str | None] = mapped_column(String(13))
    published_year: Mapped[int | None]
    genre: Mapped[str | None] = mapped_column(String(20))
    price: Mapped[Decimal | None] = mapped_column(Money)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    search: Mapped[str] = mapped_column(SearchWords, deferred=True, deferred_raiseload=True)
    version: Mapped[int] = mapped_column(server_default="1")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=UtcNow())
    updated_at: Mapped[datetime] = mapped_column(
        UtcDateTime, server_default=UtcNow(), onupdate=UtcNow()
    )

    __mapper_args__ = {"version_id_col": version, "eager_defaults": True}

    @staticmethod
    def derived(title: str, author: str) -> dict[str, str]:
        """Return the columns that are computed from title and author, for filters and search."""
        return {"author_key": fold(author), "search": book_words(title, author)}


class BookCount(Base):
    """Number of books of a genre ('' for none): the sum of `n`. Triggers on `books` update it.

    On PostgreSQL a genre may have several rows, so that writers do not wait for each other.
    """

    __tablename__ = "book_counts"

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    genre: Mapped[str] = mapped_column(Text)
    n: Mapped[int] = mapped_column(BigInteger)


class ImportedRecord(Base):
    """The imported record of a book, as the digest of its normalised fields."""

    __tablename__ = "imported_records"

    book_id: Mapped[int] = mapped_column(
        Id, ForeignKey("books.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    digest: Mapped[bytes] = mapped_column(LargeBinary(16), unique=True)


class BookViews(Base):
    """Number of views of a book. A separate table, so that a view does not change the version.

    Without a foreign key, so that no writer of books waits for a writer of views. A trigger deletes
    the views of a deleted book, except while they are being written: join with books.
    """

    __tablename__ = "book_views"
    __table_args__ = (
        CheckConstraint("views >= 0", name="views"),
        Index("ix_book_views_views", "views", "book_id"),
    )

    book_id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=False)
    views: Mapped[int] = mapped_column(BigInteger)


class CacheState(Base):
    """State of the cache, in one row: on or off, its store, time of the change (Unix seconds)."""

    __tablename__ = "cache_state"
    __table_args__ = (
        CheckConstraint("id = 1", name="id"),
        CheckConstraint("mode IN ('on', 'off')", name="mode"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    epoch: Mapped[int] = mapped_column(BigInteger)
    token: Mapped[str] = mapped_column(Text)
    mode: Mapped[str] = mapped_column(String(3))
    run_id: Mapped[str] = mapped_column(Text)
    changed_at: Mapped[float] = mapped_column(Double)


# Sort keys without NULL: one index serves the whole order, and a cursor needs one comparison.
# NULL becomes the highest value when ascending and the lowest when descending, so NULLs are last.
YEAR_ASC = func.coalesce(Book.__table__.c.published_year, literal_column("9999"))
YEAR_DESC = func.coalesce(Book.__table__.c.published_year, literal_column("-1"))
PRICE_ASC = func.coalesce(Book.__table__.c.price, literal_column("10000000000"))
PRICE_DESC = func.coalesce(Book.__table__.c.price, literal_column("-1"))

# INCLUDE lets PostgreSQL count rows by an index-only scan: it does not detect that the expression
# is sufficient.
Index("ix_books_year_asc", YEAR_ASC, Book.id, postgresql_include=["published_year"])
Index("ix_books_year_desc", YEAR_DESC, Book.id, postgresql_include=["published_year"])
Index("ix_books_price_asc", PRICE_ASC, Book.id, postgresql_include=["price"])
Index("ix_books_price_desc", PRICE_DESC, Book.id, postgresql_include=["price"])
# On SQLite, the first migration creates an FTS5 table instead.
Index("ix_books_search", Book.search, postgresql_using="gin").ddl_if(dialect="postgresql")
