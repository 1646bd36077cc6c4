"""The tables, as SQLAlchemy models.

catalogue   the tables
types       column types that PostgreSQL and SQLite keep in different ways
search      the words by which a book is searched
cached      which models the cache serves
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
    "ImportedRecord",
    "RefreshToken",
    "User",
    "fold",
]
