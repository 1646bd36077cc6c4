"""Column types and SQL functions that differ between PostgreSQL and SQLite."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import DateTime, Dialect, Integer, Numeric, Text, TypeDecorator
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from service.models.search import tsvector_of

INT64 = 2**63 - 1  # the largest value of a BIGINT column


class UtcNow(FunctionElement[datetime]):
    """The database's current time: one clock for all workers, so times have one order."""

    type = DateTime(timezone=True)
    inherit_cache = True


@compiles(UtcNow, "postgresql")
def _now_postgresql(element: UtcNow, compiler: Any, **kw: Any) -> str:
    return "statement_timestamp()"


@compiles(UtcNow, "sqlite")
def _now_sqlite(element: UtcNow, compiler: Any, **kw: Any) -> str:
    return "(strftime('%Y-%m-%d %H:%M:%f000', 'now'))"


class FromNow(FunctionElement[datetime]):
    """The database's current time plus a number of seconds, its argument."""

    type = DateTime(timezone=True)
    inherit_cache = True


@compiles(FromNow, "postgresql")
def _from_now_postgresql(element: FromNow, compiler: Any, **kw: Any) -> str:
    return f"(statement_timestamp() + make_interval(secs => {compiler.process(element.clauses)}))"


@compiles(FromNow, "sqlite")
def _from_now_sqlite(element: FromNow, compiler: Any, **kw: Any) -> str:
    seconds = compiler.process(element.clauses)
    return f"(strftime('%Y-%m-%d %H:%M:%f000', 'now', ({seconds}) || ' seconds'))"


class UtcDateTime(TypeDecorator[datetime]):
    """An instant in UTC, in microseconds (UtcNow on SQLite: in milliseconds)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


class Money(TypeDecorator[Decimal]):
    """An exact price with two decimals: NUMERIC on PostgreSQL, integer cents on SQLite."""

    impl = Numeric(13, 2)  # wide enough for the value of NULL in PRICE_ASC, above every price
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return dialect.type_descriptor(Integer() if dialect.name == "sqlite" else Numeric(13, 2))

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Any:
        return int(value * 100) if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        return Decimal(value) / 100 if value is not None and dialect.name == "sqlite" else value


class SearchWords(TypeDecorator[str]):
    """The words of a book: a `tsvector` on PostgreSQL, text with an FTS5 index on SQLite.

    Values are results of `book_words`.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return dialect.type_descriptor(TSVECTOR() if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return tsvector_of(value) if value is not None and dialect.name == "postgresql" else value
