"""Full-text search of books. Python splits text into words, so both databases find the same."""

import re
import unicodedata
from typing import Any

from sqlalchemy import ColumnElement, bindparam, cast, column, select, table, text
from sqlalchemy.dialects.postgresql import TSQUERY

ASCII_WORD = re.compile("[a-z0-9]+")
MAX_WORD = 100  # characters; longer words are cut: PostgreSQL refuses words over 2,046 bytes


def words(*values: str) -> list[str]:
    """Split texts into words for the search: case-folded, without accents, in order."""
    text = " ".join(values)
    if text.isascii():  # a faster way for the common case
        return [part[:MAX_WORD] for part in ASCII_WORD.findall(text.lower())]
    plain = unicodedata.normalize("NFKD", text).casefold()
    plain = unicodedata.normalize("NFKD", plain)
    kept = "".join(c for c in plain if not unicodedata.combining(c))
    parts = "".join(c if c.isalnum() else " " for c in kept).split()
    return [part[:MAX_WORD] for part in parts]


def query_of(text: str, dialect: str) -> str:
    """Return a tsquery or FTS5 query: all words of a text, the last word as a prefix.

    Words hold only letters and digits, so the quotes need no escape.
    """
    terms = words(text)
    if dialect == "postgresql":
        return " & ".join(f"'{term}'" for term in terms) + ":*"
    return " ".join(f'"{term}"' for term in terms) + "*"


def found_by(books: Any, dialect: str) -> ColumnElement[bool]:
    """Return the condition that a book matches the parameter `q`, a result of `query_of`."""
    condition: ColumnElement[bool]
    if dialect == "postgresql":
        condition = books.search.bool_op("@@")(cast(bindparam("q"), TSQUERY))
        return condition
    match = text("books_fts MATCH :q")
    ids: Any = select(column("rowid")).select_from(table("books_fts")).where(match)
    condition = books.id.in_(ids)
    return condition
