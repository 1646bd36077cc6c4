"""FastAPI as its documentation writes it: dependencies, response models, a session of SQLAlchemy.

slowapi enforces the rate limits. redis-py caches books and the count in Redis, as JSON, as its
documentation shows; a new book deletes the cached count.
"""

from collections.abc import AsyncIterator
from datetime import datetime
from decimal import Decimal
from hashlib import md5
from typing import Annotated, Any, Literal

import jwt
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.security import OAuth2PasswordBearer
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer
from redis.asyncio import Redis
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded
from slowapi.util import get_remote_address
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from bench.peers import settings
from bench.peers.derived import author_key, search_words
from bench.peers.models import Book, User, price_key

Genre = Literal["Fiction", "Non-Fiction", "Science", "History"]
Price = Annotated[Decimal, PlainSerializer(float, return_type=float, when_used="json")]
LIMIT = f"{settings.RATE}/minute"
COUNT = "fastapi:count"

engine = create_async_engine(
    settings.DATABASE_URL.replace("postgresql://", "postgresql+asyncpg://", 1), **settings.POOL
)
session_maker = async_sessionmaker(engine, expire_on_commit=False)
redis = Redis.from_url(settings.REDIS_URL)
limiter = Limiter(key_func=get_remote_address, storage_uri=settings.REDIS_URL, headers_enabled=True)
oauth2_scheme = OAuth2PasswordBearer(tokenUrl="token")
app = FastAPI()
app.state.limiter = limiter
app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)


class BookCreate(BaseModel):
    """The body of a request that creates a book."""

    model_config = ConfigDict(extra="forbid")

    title: str = Field(min_length=1, max_length=200)
    author: str = Field(min_length=1, max_length=100)
    isbn: str | None = Field(None, pattern=r"^(\d{9}[\dX]|\d{13})$")
    published_year: int | None = Field(None, ge=1000, le=2100)
    genre: Genre | None = None
    price: Decimal | None = Field(None, ge=0, le=Decimal("99999999.99"), decimal_places=2)


class BookOut(BaseModel):
    """A book in a response."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    title: str
    author: str
    isbn: str | None
    published_year: int | None
    genre: Genre | None
    price: Price | None
    user_id: int | None
    version: int
    created_at: datetime
    updated_at: datetime


class Pagination(BaseModel):
    """The position of a page."""

    page: int
    per_page: int
    total_pages: int
    total_items: int
    has_next: bool
    has_prev: bool
    next_page: int | None
    prev_page: int | None


class BookPage(BaseModel):
    """A page of books."""

    items: list[BookOut]
    total: int
    pagination: Pagination
    links: dict[str, str]


class BookSlice(BaseModel):
    """Books after a cursor."""

    items: list[BookOut]
    has_more: bool
    next_cursor: int | None = None


class BookQuery(BaseModel):
    """The query parameters of a list."""

    model_config = ConfigDict(extra="forbid")

    page: int = Field(1, ge=1)
    per_page: int = Field(20, ge=1)
    cursor: int | None = Field(None, ge=1)
    limit: int | None = Field(None, ge=1)
    genre: Genre | None = None
    price_min: Decimal | None = None
    price_max: Decimal | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the conditions of the requested filters."""
        clauses: list[ColumnElement[bool]] = []
        if self.genre is not None:
            clauses.append(Book.genre == self.genre)
        if self.price_min is not None:
            clauses.append(price_key(Book) >= max(self.price_min, Decimal(0)))
        if self.price_max is not None:
            clauses.append(price_key(Book).between(0, self.price_max))
        return clauses


async def get_session() -> AsyncIterator[AsyncSession]:
    """Provide a session for one request."""
    async with session_maker() as session:
        yield session


Session = Annotated[AsyncSession, Depends(get_session)]


async def get_current_user(token: Annotated[str, Depends(oauth2_scheme)], session: Session) -> User:
    """Return the user of the token."""
    try:
        claims = jwt.decode(
            token,
            settings.SECRET_KEY,
            algorithms=[settings.ALGORITHM],
            audience=settings.AUDIENCE,
            issuer=settings.ISSUER,
        )
    except jwt.InvalidTokenError:
        raise HTTPException(401, "Could not validate credentials") from None
    user = await session.get(User, claims["user_id"])
    if user is None or user.token_version != claims["ver"]:
        raise HTTPException(401, "Could not validate credentials")
    return user


def is_known(request: Request, response: Response, *parts: Any) -> bool:
    """Set the headers of a public response; return whether the client has it already."""
    tag = f'"{md5(repr(parts).encode(), usedforsecurity=False).hexdigest()}"'
    response.headers["ETag"] = tag
    response.headers["Cache-Control"] = "no-cache"
    known: str | None = request.headers.get("if-none-match")
    return known == tag


def not_modified(response: Response) -> Response:
    """Return 304: the client has the response already."""
    return Response(status_code=304, headers=dict(response.headers))


@app.get("/api/books/{book_id}", response_model=BookOut)
@limiter.limit(LIMIT)
async def get_book(request: Request, response: Response, book_id: int, session: Session) -> Any:
    """Return a book."""
    key = f"fastapi:book:{book_id}"
    cached = await redis.get(key)
    if cached is not None:
        book = BookOut.model_validate_json(cached)
    else:
        row = await session.get(Book, book_id)
        if row is None:
            raise HTTPException(404, f"Book with id {book_id} not found")
        book = BookOut.model_validate(row)
        await redis.set(key, book.model_dump_json(), ex=settings.ITEM_SECONDS)
    if is_known(request, response, book.id, book.version):
        return not_modified(response)
    return book


@app.get("/api/books", response_model=BookPage | BookSlice, response_model_exclude_unset=True)
@limiter.limit(LIMIT)
async def list_books(
    request: Request, response: Response, query: Annotated[BookQuery, Query()], session: Session
) -> Any:
    """Return a page, or the books after a cursor."""
    if query.cursor is not None or query.limit is not None:
        result: BookPage | BookSlice = await list_by_cursor(query, session)
        parts: list[Any] = [result.model_dump(include={"has_more"})]
    else:
        result = await list_by_page(request, query, session)
        parts = [result.total]
    versions = [(book.id, book.version) for book in result.items]
    if is_known(request, response, str(request.url), parts, versions):
        return not_modified(response)
    return result


async def list_by_cursor(query: BookQuery, session: AsyncSession) -> BookSlice:
    """Return the books after an id."""
    limit = min(query.limit or 20, 100)
    statement = select(Book).where(*query.conditions()).order_by(Book.id).limit(limit + 1)
    if query.cursor is not None:
        statement = statement.where(Book.id > query.cursor)
    books = (await session.scalars(statement)).all()
    items = [BookOut.model_validate(book) for book in books[:limit]]
    if len(books) > limit:
        return BookSlice(items=items, has_more=True, next_cursor=items[-1].id)
    return BookSlice(items=items, has_more=False)


async def list_by_page(request: Request, query: BookQuery, session: AsyncSession) -> BookPage:
    """Return a page, newest books first."""
    size, where = min(query.per_page, 100), query.conditions()
    statement = select(Book).where(*where).order_by(Book.created_at.desc(), Book.id.desc())
    books = (await session.scalars(statement.limit(size).offset((query.page - 1) * size))).all()
    total = await count_books(session, where)
    last = -(-total // size)
    has_next, has_prev = query.page < last, query.page > 1
    pages = {"self": query.page, "first": 1, "last": max(1, last)}
    if has_next:
        pages["next"] = query.page + 1
    if has_prev:
        pages["prev"] = query.page - 1
    return BookPage(
        items=[BookOut.model_validate(book) for book in books],
        total=total,
        pagination=Pagination(
            page=query.page,
            per_page=size,
            total_pages=last,
            total_items=total,
            has_next=has_next,
            has_prev=has_prev,
            next_page=query.page + 1 if has_next else None,
            prev_page=query.page - 1 if has_prev else None,
        ),
        links={
            name: str(request.url.include_query_params(page=page)) for name, page in pages.items()
        },
    )


async def count_books(session: AsyncSession, where: list[ColumnElement[bool]]) -> int:
    """Count books; the number of all of them is cached."""
    if not where and (cached := await redis.get(COUNT)) is not None:
        return int(cached)
    total = await session.scalar(select(func.count()).select_from(Book).where(*where)) or 0
    if not where:
        await redis.set(COUNT, total, ex=settings.COUNT_SECONDS)
    return total


@app.post("/api/books", response_model=BookOut, status_code=201)
@limiter.limit(LIMIT)
async def create_book(
    request: Request,
    response: Response,
    data: BookCreate,
    user: Annotated[User, Depends(get_current_user)],
    session: Session,
) -> Any:
    """Create a book, owned by the user of the token."""
    book = Book(
        **data.model_dump(),
        user_id=user.id,
        author_key=author_key(data.author),
        search=search_words(data.title, data.author),
    )
    session.add(book)
    await session.commit()
    await redis.delete(COUNT)
    response.headers["Location"] = str(request.url_for("get_book", book_id=book.id))
    return book
