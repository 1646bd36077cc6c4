"""The SQL of the tuned peers, and the body of a list.

A statement has `{}` for each value: `numbered` formats them for asyncpg, `unnamed` for psycopg.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import parse_qsl, urlencode

import orjson

from bench.peers import settings
from bench.peers.derived import words

COLUMNS = (
    "id, title, author, isbn, published_year, genre, price::float8 AS price, user_id, version, "
    "created_at, updated_at"
)
ITEM = f"SELECT {COLUMNS} FROM books WHERE id = {{}}"  # noqa: S608  (no input)
STORED_TOTAL = "SELECT coalesce(sum(n), 0)::int8 FROM book_counts"
MAX_ROWS = 100
PARAMETERS = {"page", "per_page", "cursor", "limit", "genre", "price_min", "price_max"}
# At most the newest 1,000 books that match are ranked.
MATCHING = (
    "SELECT id, search FROM books WHERE search @@ {}::text::tsquery ORDER BY id DESC LIMIT 1000"
)
SEARCH = (
    f"WITH matching AS ({MATCHING}), "  # noqa: S608  (no input)
    "ranked AS (SELECT id, ts_rank_cd(search, {}::text::tsquery, 2) AS rank FROM matching), "
    "best AS (SELECT id, rank FROM ranked ORDER BY rank DESC, id LIMIT {} OFFSET {}) "
    f"SELECT {COLUMNS}, (SELECT count(*) FROM matching) AS total FROM best JOIN books USING (id) "
    "ORDER BY rank DESC, id"
)
GENRES = ("Fiction", "Non-Fiction", "Science", "History")


class BadRequestError(Exception):
    """The query of the request is invalid."""


def to_json(value: Any) -> bytes:
    """Return JSON."""
    written: bytes = orjson.dumps(value, option=orjson.OPT_UTC_Z)
    return written


@dataclass(frozen=True)
class Statement:
    """SQL with its values."""

    sql: str
    values: tuple[Any, ...]

    def numbered(self) -> str:
        """Return the SQL with the placeholders of asyncpg."""
        return self.sql.format(*(f"${n}" for n in range(1, len(self.values) + 1)))

    def unnamed(self) -> str:
        """Return the SQL with the placeholders of psycopg."""
        return self.sql.format(*["%s"] * len(self.values))


@dataclass(frozen=True)
class Listing:
    """A requested list. `page` is None in cursor mode, in which `size + 1` rows are read."""

    rows: Statement
    total: Statement
    size: int
    page: int | None
    query: Sequence[tuple[str, str]]

    def body(self, rows: Sequence[Any], total: int) -> bytes:
        """Return the body of the response."""
        if self.page is None:
            kept = [dict(row) for row in rows[: self.size]]
            more = len(rows) > self.size
            result: dict[str, Any] = {"items": kept, "has_more": more}
            if more:
                result["next_cursor"] = kept[-1]["id"]
            return to_json(result)
        last = -(-total // self.size)
        has_next, has_prev = self.page < last, self.page > 1
        links = {"self": self._to(self.page), "first": self._to(1), "last": self._to(max(1, last))}
        if has_next:
            links["next"] = self._to(self.page + 1)
        if has_prev:
            links["prev"] = self._to(self.page - 1)
        result = {
            "items": [dict(row) for row in rows],
            "total": total,
            "pagination": {
                "page": self.page,
                "per_page": self.size,
                "total_pages": last,
                "total_items": total,
                "has_next": has_next,
                "has_prev": has_prev,
                "next_page": self.page + 1 if has_next else None,
                "prev_page": self.page - 1 if has_prev else None,
            },
            "links": links,
        }
        return to_json(result)

    def _to(self, number: int) -> str:
        others = [(name, value) for name, value in self.query if name != "page"]
        return f"{settings.PUBLIC_URL}/api/books?{urlencode([*others, ('page', number)])}"


@dataclass(frozen=True)
class Search:
    """A requested search."""

    rows: Statement
    total: Statement
    page: int

    def body(self, rows: Sequence[Any], total: int) -> bytes:
        """Return the body of the response. There is no second search with similar words."""
        return to_json({"results": [dict(row) for row in rows], "total": total, "fuzzy": False})


def read_search(query: str) -> Search:
    """Parse the query string of a search. Raises BadRequestError."""
    _, given = _pairs(query, {"q", "page", "per_page"})
    terms = words(given.get("q", ""))
    if not terms:
        raise BadRequestError("q has no word")
    *whole, last = (f"'{word}'" for word in terms)
    terms = [*whole, f"{last}:*"]
    size, page = min(_number(given, "per_page", 20), MAX_ROWS), _number(given, "page", 1)
    every, either = " & ".join(terms), " | ".join(terms)
    rows = Statement(SEARCH, (every, either, size, (page - 1) * size))
    total = Statement(f"SELECT count(*) FROM ({MATCHING}) AS matching", (every,))  # noqa: S608  (no input)
    return Search(rows, total, page)


def read(query: str) -> Listing:
    """Parse the query string of a list. Raises BadRequestError."""
    pairs, given = _pairs(query, PARAMETERS)
    where, values = _conditions(given)
    if "cursor" in given or "limit" in given:
        size = min(_number(given, "limit", 20), MAX_ROWS)
        if "cursor" in given:
            where.append("id > {}")
            values.append(_number(given, "cursor", 1))
        sql = f"SELECT {COLUMNS} FROM books{_where(where)} ORDER BY id LIMIT {{}}"  # noqa: S608  (no input)
        rows = Statement(sql, (*values, size + 1))
        return Listing(rows, Statement("SELECT 0", ()), size, None, pairs)
    size = min(_number(given, "per_page", 20), MAX_ROWS)
    page = _number(given, "page", 1)
    total = f"SELECT count(*) FROM books{_where(where)}" if where else STORED_TOTAL  # noqa: S608  (no input)
    sql = (
        f"SELECT {COLUMNS}, (SELECT total FROM counted) AS total FROM books{_where(where)} "  # noqa: S608  (no input)
        "ORDER BY created_at DESC, id DESC LIMIT {} OFFSET {}"
    )
    rows = Statement(
        f"WITH counted (total) AS ({total}) {sql}", (*values, *values, size, (page - 1) * size)
    )
    return Listing(rows, Statement(total, tuple(values)), size, page, pairs)


def _pairs(query: str, known: Set[str]) -> tuple[list[tuple[str, str]], dict[str, str]]:
    pairs = parse_qsl(query, keep_blank_values=True)
    given = dict(pairs)
    if len(given) < len(pairs) or given.keys() - known:
        raise BadRequestError("A parameter is unknown, or given twice")
    return pairs, given


def _conditions(given: Mapping[str, str]) -> tuple[list[str], list[Any]]:
    where: list[str] = []
    values: list[Any] = []
    if "genre" in given:
        if given["genre"] not in GENRES:
            raise BadRequestError("Unknown genre")
        where.append("genre = {}")
        values.append(given["genre"])
    for name, compared in (("price_min", ">="), ("price_max", "<=")):
        if name in given:
            # The schema has an index on this expression.
            where.append(f"coalesce(price, -1) {compared} {{}}")
            values.append(max(_price(given[name]), Decimal(0)))
    if where and "price_max" in given and "price_min" not in given:
        where.append("price IS NOT NULL")
    return where, values


def _where(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def _number(given: Mapping[str, str], name: str, default: int) -> int:
    value = given.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit()) or not 0 < int(value) < 2**63:
        raise BadRequestError(f"{name} is no positive number")
    return int(value)


def _price(value: str) -> Decimal:
    try:
        price = Decimal(value)
    except InvalidOperation:
        raise BadRequestError(f"{value} is no price") from None
    if not price.is_finite():
        raise BadRequestError(f"{value} is no price")
    return price
