"""The statements of the report, built once."""

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Double,
    Integer,
    Select,
    Text,
    bindparam,
    cast,
    func,
    literal_column,
    null,
    or_,
    select,
    type_coerce,
    union_all,
    update,
)

from service.models import PRICE_ASC, PRICE_DESC, Book, BookCount, User
from service.models.report import StoredReport
from service.models.types import FromNow, Money, UtcDateTime, UtcNow

BOOKS: Any = Book.__table__.c
COUNTS: Any = BookCount.__table__.c
REPORTS: Any = StoredReport.__table__
# A computation that has not ended by then has failed. No statement may run as long.
LEASE_SECONDS = 30.0
DECADE = BOOKS.published_year - BOOKS.published_year % literal_column("10")
# One index gives the prices in order; without prices it begins with NULL. A sort of 1,000,000
# prices takes a second.
MIDDLE = select((func.count(BOOKS.price) - 1) // literal_column("2", Integer)).scalar_subquery()
LOWEST = select(BOOKS.price).order_by(PRICE_ASC, BOOKS.id).limit(1)
HIGHEST = select(BOOKS.price).order_by(PRICE_DESC.desc(), BOOKS.id.desc()).limit(1)


def _counts(section: str, key: ColumnElement[Any], number: ColumnElement[Any]) -> Select[Any]:
    price = cast(null(), Money).label("price")
    return select(
        literal_column(f"'{section}'").label("section"),
        func.coalesce(cast(key, Text), "").label("key"),
        number.label("number"),
        price,
    )


def _price(key: str, price: Select[Any]) -> Select[Any]:
    return select(
        literal_column("'price'"),
        literal_column(f"'{key}'"),
        literal_column("0"),
        price.scalar_subquery(),
    )


# One statement, so that all numbers are of one moment. Its columns: section, key, number, price.
AGGREGATE = union_all(
    _counts("users", null(), func.count()).select_from(User),
    _counts("by_genre", COUNTS.genre, func.sum(COUNTS.n)).group_by(COUNTS.genre),
    _counts("by_decade", DECADE, func.count()).select_from(Book).group_by(DECADE),
    _price("min", LOWEST),
    _price("median", LOWEST.offset(MIDDLE)),
    _price("max", HIGHEST),
)


def _is_before(time: ColumnElement[Any], from_now: ColumnElement[float]) -> ColumnElement[bool]:
    return or_(time.is_(None), time <= FromNow(from_now))


# Only one process at a time gets a row: its time becomes `generated_at`. outdated: the lifetime of
# a report as a negative number of seconds.
CLAIM = (
    update(REPORTS)
    .where(
        _is_before(REPORTS.c.generated_at, bindparam("outdated", type_=Double())),
        _is_before(REPORTS.c.claimed_at, literal_column(str(-LEASE_SECONDS))),
    )
    .values(claimed_at=UtcNow())
    .returning(REPORTS.c.claimed_at)
)
STORE = (
    update(REPORTS)
    .where(REPORTS.c.claimed_at == bindparam("claim", type_=UtcDateTime))
    .values(generated_at=REPORTS.c.claimed_at, body=bindparam("new_body", type_=Text))
)
LOAD = select(
    REPORTS.c.body, REPORTS.c.generated_at, type_coerce(UtcNow(), UtcDateTime).label("now")
)
