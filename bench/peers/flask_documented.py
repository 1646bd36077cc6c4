"""Flask as the guide writes it: Flask-SQLAlchemy, Flask-Limiter, Flask-Caching, Marshmallow, jose.

This is the guide's "production pattern": books and the count are memoized, pages are not. Unlike in
the guide, a new book deletes the memoized count, so that the guide's own test of totals passes.
"""

from collections.abc import Callable
from decimal import Decimal
from functools import wraps
from typing import Any
from urllib.parse import urlencode

from flask import Flask, Response, jsonify, request
from flask_caching import Cache
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_sqlalchemy import SQLAlchemy
from jose import JWTError, jwt
from marshmallow import Schema, ValidationError, fields, validate
from sqlalchemy import ColumnElement, func, select
from werkzeug.middleware.proxy_fix import ProxyFix

from bench.peers import settings
from bench.peers.derived import author_key, search_words
from bench.peers.models import Base, BookColumns, UserColumns, price_key

db = SQLAlchemy(model_class=Base, disable_autonaming=True)
limiter = Limiter(key_func=get_remote_address)
cache = Cache()


class User(UserColumns, db.Model):  # type: ignore[name-defined]  # the extension creates it
    """A user account."""

    __tablename__ = "users"
    __table_args__ = {"extend_existing": True}  # noqa: RUF012  (SQLAlchemy expects this form)


class Book(BookColumns, db.Model):  # type: ignore[name-defined]  # the extension creates it
    """A book."""

    __tablename__ = "books"
    __table_args__ = {"extend_existing": True}  # noqa: RUF012  (read only)

    def to_dict(self) -> dict[str, Any]:
        """Return a book as it is in a response."""
        return {
            "id": self.id,
            "title": self.title,
            "author": self.author,
            "isbn": self.isbn,
            "published_year": self.published_year,
            "genre": self.genre,
            "price": None if self.price is None else float(self.price),
            "user_id": self.user_id,
            "version": self.version,
            "created_at": self.created_at.isoformat(),
            "updated_at": self.updated_at.isoformat(),
        }


class BookSchema(Schema):
    """The body of a request that creates a book."""

    title = fields.Str(required=True, validate=validate.Length(min=1, max=200))
    author = fields.Str(required=True, validate=validate.Length(min=1, max=100))
    isbn = fields.Str(validate=validate.Regexp(r"^(\d{9}[\dX]|\d{13})$"))
    published_year = fields.Int(validate=validate.Range(min=1000, max=2100))
    genre = fields.Str(validate=validate.OneOf(["Fiction", "Non-Fiction", "Science", "History"]))
    price = fields.Float(validate=validate.Range(min=0))


book_schema = BookSchema()


@cache.memoize(timeout=settings.ITEM_SECONDS)
def get_book_details(book_id: int) -> dict[str, Any] | None:
    """Return a book."""
    book = db.session.get(Book, book_id)
    return None if book is None else book.to_dict()


@cache.memoize(timeout=settings.COUNT_SECONDS)
def get_books_count() -> int:
    """Return the number of all books."""
    return db.session.scalar(select(func.count()).select_from(Book)) or 0


def token_required(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Require a valid token for a route; the route gets `current_user`."""

    @wraps(handler)
    def decorated(*args: Any, **kwargs: Any) -> Any:
        token = request.headers.get("Authorization")
        if not token:
            return jsonify({"error": "Token is missing"}), 401
        try:
            payload = jwt.decode(
                token.removeprefix("Bearer "),
                settings.SECRET_KEY,
                algorithms=[settings.ALGORITHM],
                audience=settings.AUDIENCE,
                issuer=settings.ISSUER,
            )
        except JWTError:
            return jsonify({"error": "Invalid or expired token"}), 401
        user = db.session.get(User, payload["user_id"])
        if user is None or user.token_version != payload["ver"]:
            return jsonify({"error": "User not found"}), 401
        return handler(*args, current_user=user, **kwargs)

    return decorated


def conditions() -> list[ColumnElement[bool]]:
    """Return the conditions of the requested filters."""
    clauses: list[ColumnElement[bool]] = []
    if genre := request.args.get("genre"):
        clauses.append(Book.genre == genre)
    if (least := request.args.get("price_min", type=price)) is not None:
        clauses.append(price_key(Book) >= max(least, 0))
    if (most := request.args.get("price_max", type=price)) is not None:
        clauses.append(price_key(Book).between(0, most))
    return clauses


def price(value: str) -> Decimal:
    """Parse a price. Raises ValueError, which Flask treats as a missing parameter."""
    try:
        return Decimal(value)
    except ArithmeticError:
        raise ValueError(value) from None


def revalidated(response: Response) -> Any:
    """Return 304 if the client has the response already."""
    response.cache_control.no_cache = True
    response.add_etag()
    return response.make_conditional(request)


def build_links(page: int, last: int) -> dict[str, str]:
    """Return the links of a page."""

    def build_url(number: int) -> str:
        return f"{request.base_url}?{urlencode({**request.args, 'page': number})}"

    links = {"self": build_url(page), "first": build_url(1), "last": build_url(max(1, last))}
    if page < last:
        links["next"] = build_url(page + 1)
    if page > 1:
        links["prev"] = build_url(page - 1)
    return links


def list_by_cursor() -> Any:
    """Return the books after an id."""
    cursor = request.args.get("cursor", type=int)
    limit = min(request.args.get("limit", 20, type=int), 100)
    query = select(Book).order_by(Book.id)
    if cursor:
        query = query.where(Book.id > cursor)
    books = db.session.scalars(query.limit(limit + 1)).all()
    has_more = len(books) > limit
    response = {"items": [book.to_dict() for book in books[:limit]], "has_more": has_more}
    if has_more:
        response["next_cursor"] = books[limit - 1].id
    return revalidated(jsonify(response))


def list_by_page() -> Any:
    """Return a page: its ids are read, its books and the count are memoized."""
    page = request.args.get("page", 1, type=int)
    per_page = min(request.args.get("per_page", 20, type=int), 100)
    where = conditions()
    query = select(Book.id).where(*where).order_by(Book.created_at.desc(), Book.id.desc())
    ids = db.session.scalars(query.limit(per_page).offset((page - 1) * per_page)).all()
    books = [get_book_details(book_id) for book_id in ids]
    if where:
        total = db.session.scalar(select(func.count()).select_from(Book).where(*where)) or 0
    else:
        total = get_books_count()
    last = -(-total // per_page)
    return revalidated(
        jsonify(
            {
                "items": books,
                "total": total,
                "pagination": {
                    "page": page,
                    "per_page": per_page,
                    "total_pages": last,
                    "total_items": total,
                    "has_next": page < last,
                    "has_prev": page > 1,
                    "next_page": page + 1 if page < last else None,
                    "prev_page": page - 1 if page > 1 else None,
                },
                "links": build_links(page, last),
            }
        )
    )


def create_app() -> Flask:
    """Create the application."""
    app = Flask(__name__)
    app.config.update(
        SQLALCHEMY_DATABASE_URI=settings.DATABASE_URL,
        SQLALCHEMY_ENGINE_OPTIONS=settings.POOL,
        CACHE_TYPE="RedisCache",
        CACHE_REDIS_URL=settings.REDIS_URL,
        CACHE_KEY_PREFIX="flask:",
        RATELIMIT_STORAGE_URI=settings.REDIS_URL,
        RATELIMIT_HEADERS_ENABLED=True,
        RATELIMIT_DEFAULT=f"{settings.RATE} per minute",
    )
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1)  # type: ignore[method-assign]  # the entry point of Flask
    db.init_app(app)
    limiter.init_app(app)
    cache.init_app(app)

    @app.get("/api/books/<int:book_id>")
    def get_book(book_id: int) -> Any:
        book = get_book_details(book_id)
        if book is None:
            return jsonify({"error": "Not Found"}), 404
        return revalidated(jsonify(book))

    @app.get("/api/books")
    def list_books() -> Any:
        by_cursor = "cursor" in request.args or "limit" in request.args
        return list_by_cursor() if by_cursor else list_by_page()

    @app.post("/api/books")
    @token_required
    def create_book(current_user: User) -> Any:
        data = book_schema.load(request.get_json())
        book = Book(
            user_id=current_user.id,
            author_key=author_key(data["author"]),
            search=search_words(data["title"], data["author"]),
            **data,
        )
        db.session.add(book)
        db.session.commit()
        cache.delete_memoized(get_books_count)
        return jsonify(book.to_dict()), 201

    @app.errorhandler(ValidationError)
    def validation_error(error: ValidationError) -> Any:
        return jsonify({"error": "Validation Error", "messages": error.messages}), 400

    return app
