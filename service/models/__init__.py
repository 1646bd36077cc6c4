"""The tables, as SQLAlchemy models.

catalogue   the tables
types       column types that differ between PostgreSQL and SQLite
search      full-text search of books
vocabulary  the table of words that are searched
report      the table of the report
cached      the registry of cached models
idempotency the table of replies to writes with a key
"""

from service.models.catalogue import (
    GENRES,
    PRICE_ASC,
    PRICE_DESC,
    YEAR_ASC,
    YEAR_DESC,
    Base,
    Book,
    BookCount,
    BookViews,
    Id,
    ImportedRecord,
    RefreshToken,
    User,
    fold,
)
from service.models.idempotency import IdempotencyRecord
from service.models.report import StoredReport
from service.models.vocabulary import SearchWord

__all__ = [
    "GENRES",
    "PRICE_ASC",
    "PRICE_DESC",
    "YEAR_ASC",
    "YEAR_DESC",
    "Base",
    "Book",
    "BookCount",
    "BookViews",
    "Id",
    "IdempotencyRecord",
    "ImportedRecord",
    "RefreshToken",
    "SearchWord",
    "StoredReport",
    "User",
    "fold",
]
