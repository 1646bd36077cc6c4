"""Litestar as its documentation writes it: its rate limit and stores on Redis, msgspec's structs.

A store caches books and the count. Litestar's cache of whole responses is not used: it supports no
conditional requests, and a new book does not invalidate it. The session is SQLAlchemy's, created in
a dependency.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from hashlib import md5
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlencode

import jwt
import msgspec
from litestar import Litestar, Request, Response, get, post
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import NotAuthorizedException, NotFoundException
from litestar.handlers.base import BaseRouteHandler
from litestar.middleware.rate_limit import RateLimitConfig
from litestar.params import Parameter
from litestar.stores.redis import RedisStore
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from bench.peers import settings
from bench.peers.derived import author_key, search_words
from bench.peers.models import Book, User, price_key

Genre = Literal["Fiction", "Non-Fiction", "Science", "History"]
AnyRequest: TypeAlias = Request[Any, Any, State]
Positive = Annotated[int, Parameter(ge=1)]


class BookCreate(msgspec.Struct, forbid_unknown_fields=True):  # type: ignore[call-arg]  # no types when absent
    """The body of a request that creates a book."""

    title: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    author: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    isbn: Annotated[str, msgspec.Meta(pattern=r"^(\d{9}[\dX]|\d{13})$")] | None = None
    published_year: Annotated[int, msgspec.Meta(ge=1000, le=2100)] | None = None
    genre: Genre | None = None
    price: Annotated[float, msgspec.Meta(ge=0, le=99_999_999.99)] | None = None


class BookOut(msgspec.Struct):
    """A book in a response."""

    id: int
    title: str
    author: str
    isbn: str | None
    published_year: int | None
    genre: str | None
    price: float | None
    user_id: int | None
    version: int
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, book: Book) -> "BookOut":
        """Create it from a row."""
        return cls(
            id=book.id,
            title=book.title,
            author=book.author,
            isbn=book.isbn,
            published_year=book.published_year,
            genre=book.genre,
            price=None if book.price is None else float(book.price),
            user_id=book.user_id,
            version=book.version,
            created_at=book.created_at,
            updated_at=book.updated_at,
        )


class Pagination(msgspec.Struct):
    """The position of a page."""

    page: int
    per_page: int
    total_pages: int
    total_items: int
    has_next: bool
    has_prev: bool
    next_page: int | None
    prev_page: int | None


class BookPage(msgspec.Struct):
    """A page of books."""

    items: list[BookOut]
    total: int
    pagination: Pagination
    links: dict[str, str]


class BookSlice(msgspec.Struct, omit_defaults=True):  # type: ignore[call-arg]  # no types when absent
    """Books after a cursor."""

    items: list[BookOut]
    has_more: bool
    next_cursor: int | None = None


@asynccontextmanager
async def database(app: Litestar) -> AsyncIterator[None]:
    """Connect while the application runs."""
    url = settings.DATABASE_URL.replace("postgresql://", "postgresql+asyncpg://", 1)
    app.state.engine = engine = create_async_engine(url, **settings.POOL)
    app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
    yield
    await engine.dispose()


async def provide_session(state: State) -> AsyncIterator[AsyncSession]:
    """Provide a session for one request."""
    async with state.sessions() as session:
        yield session


async def token_required(
    connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler
) -> None:
    """Admit a request with a valid token, and store its claims."""
    token = connection.headers.get("authorization", "").removeprefix("Bearer ")
    try:
        claims = jwt.decode(
            token,
            settings.SECRET_KEY,
            algorithms=[settings.ALGORITHM],
            audience=settings.AUDIENCE,
            issuer=settings.ISSUER,
        )
    except jwt.InvalidTokenError:
        raise NotAuthorizedException("Invalid or expired token") from None
    connection.state.claims = claims


def revalidated(request: AnyRequest, content: Any, *parts: Any) -> Response[Any]:
    """Return the response, or 304 if the client has it already."""
    tag = f'"{md5(repr(parts).encode(), usedforsecurity=False).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(None, status_code=304, headers=headers)
    return Response(content, headers=headers)


@get("/api/books/{book_id:int}")
async def get_book(book_id: int, request: AnyRequest, session: AsyncSession) -> Response[Any]:
    """Return a book."""
    store = request.app.stores.get("books")
    cached = await store.get(str(book_id))
    if cached is not None:
        book = msgspec.json.decode(cached, type=BookOut)
    else:
        row = await session.get(Book, book_id)
        if row is None:
            raise NotFoundException(f"Book with id {book_id} not found")
        book = BookOut.of(row)
        await store.set(str(book_id), msgspec.json.encode(book), expires_in=settings.ITEM_SECONDS)
    return revalidated(request, book, book.id, book.version)


@get("/api/books")
async def list_books(
    request: AnyRequest,
    session: AsyncSession,
    page: Positive = 1,
    per_page: Positive = 20,
    cursor: Positive | None = None,
    limit: Positive | None = None,
    genre: Genre | None = None,
    price_min: Decimal | None = None,
    price_max: Decimal | None = None,
) -> Response[Any]:
    """Return a page, or the books after a cursor."""
    where = conditions(genre, price_min, price_max)
    if cursor is not None or limit is not None:
        listed = await list_by_cursor(session, where, cursor, min(limit or 20, 100))
        parts: list[Any] = [listed.has_more]
    else:
        result = await list_by_page(request, session, where, page, min(per_page, 100))
        listed, parts = result, [result.total]
    versions = [(book.id, book.version) for book in listed.items]
    return revalidated(request, listed, str(request.url), parts, versions)


def conditions(
    genre: str | None, price_min: Decimal | None, price_max: Decimal | None
) -> list[ColumnElement[bool]]:
    """Return the conditions of the requested filters."""
    clauses: list[ColumnElement[bool]] = []
    if genre is not None:
        clauses.append(Book.genre == genre)
    if price_min is not None:
        clauses.append(price_key(Book) >= max(price_min, 0))
    if price_max is not None:
        clauses.append(price_key(Book).between(0, price_max))
    return clauses


async def list_by_cursor(
    session: AsyncSession, where: list[ColumnElement[bool]], cursor: int | None, limit: int
) -> Any:
    """Return the books after an id."""
    query = select(Book).where(*where).order_by(Book.id).limit(limit + 1)
    if cursor is not None:
        query = query.where(Book.id > cursor)
    books = (await session.scalars(query)).all()
    items = [BookOut.of(book) for book in books[:limit]]
    if len(books) > limit:
        return BookSlice(items, True, items[-1].id)
    return BookSlice(items, False)


async def list_by_page(
    request: AnyRequest,
    session: AsyncSession,
    where: list[ColumnElement[bool]],
    page: int,
    size: int,
) -> BookPage:
    """Return a page, newest books first."""
    query = select(Book).where(*where).order_by(Book.created_at.desc(), Book.id.desc())
    books = (await session.scalars(query.limit(size).offset((page - 1) * size))).all()
    total = await count_books(request, session, where)
    last = -(-total // size)
    has_next, has_prev = page < last, page > 1
    pages = {"self": page, "first": 1, "last": max(1, last)}
    if has_next:
        pages["next"] = page + 1
    if has_prev:
        pages["prev"] = page - 1
    return BookPage(
        items=[BookOut.of(book) for book in books],
        total=total,
        pagination=Pagination(
            page=page,
            per_page=size,
            total_pages=last,
            total_items=total,
            has_next=has_next,
            has_prev=has_prev,
            next_page=page + 1 if has_next else None,
            prev_page=page - 1 if has_prev else None,
        ),
        links={
            name: str(request.url.with_replacements(query=_query(request, number)))
            for name, number in pages.items()
        },
    )


def _query(request: AnyRequest, page: int) -> str:
    return urlencode({**request.query_params, "page": page})


async def count_books(
    request: AnyRequest, session: AsyncSession, where: list[ColumnElement[bool]]
) -> int:
    """Count books; the number of all of them is cached."""
    store = request.app.stores.get("books")
    if not where and (cached := await store.get("count")) is not None:
        return int(cached)
    total = await session.scalar(select(func.count()).select_from(Book).where(*where)) or 0
    if not where:
        await store.set("count", str(total), expires_in=settings.COUNT_SECONDS)
    return total


@post("/api/books", guards=[token_required])
async def create_book(
    data: BookCreate, request: AnyRequest, session: AsyncSession
) -> Response[BookOut]:
    """Create a book, owned by the user of the token."""
    claims = request.state.claims
    user = await session.get(User, claims["user_id"])
    if user is None or user.token_version != claims["ver"]:
        raise NotAuthorizedException("User not found")
    book = Book(
        **msgspec.structs.asdict(data),
        user_id=user.id,
        author_key=author_key(data.author),
        search=search_words(data.title, data.author),
    )
    session.add(book)
    await session.commit()
    await request.app.stores.get("books").delete("count")
    location = f"{request.base_url}api/books/{book.id}"
    return Response(BookOut.of(book), headers={"Location": location})


root_store = RedisStore.with_client(url=settings.REDIS_URL)
app = Litestar(
    [get_book, list_books, create_book],
    lifespan=[database],
    dependencies={"session": Provide(provide_session)},
    stores={
        "books": root_store.with_namespace("books"),
        "rate_limit": root_store.with_namespace("rate_limit"),
    },
    middleware=[RateLimitConfig(("minute", settings.RATE), store="rate_limit").middleware],
)
