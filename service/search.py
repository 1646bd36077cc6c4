"""How books are searched: by words that Python makes, the same on both databases."""

import re
import unicodedata
from typing import Any

from sqlalchemy import ColumnElement, bindparam, cast, column, select, table, text
from sqlalchemy.dialects.postgresql import TSQUERY

ASCII_WORD = re.compile("[a-z0-9]+")
MAX_WORD = 100  # characters of a word that count in a search; PostgreSQL refuses over 2,046 bytes


def words(*values: str) -> list[str]:
    """Split texts into the words they are searched by: folded, without accents, in order."""
    text = " ".join(values)
    if text.isascii():  # most are, and then there is little to do
        return [part[:MAX_WORD] for part in ASCII_WORD.findall(text.lower())]
    plain = unicodedata.normalize("NFKD", text).casefold()
    plain = unicodedata.normalize("NFKD", plain)
    kept = "".join(c for c in plain if not unicodedata.combining(c))
    parts = "".join(c if c.isalnum() else " " for c in kept).split()
    return [part[:MAX_WORD] for part in parts]


def query_of(text: str, dialect: str) -> str:
    """Ask for all words of a text, the last one as a prefix. Words are letters and digits."""
    terms = words(text)
    if dialect == "postgresql":
        return " & ".join(f"'{term}'" for term in terms) + ":*"
    return " ".join(f'"{term}"' for term in terms) + "*"


def found_by(books: Any, dialect: str) -> ColumnElement[bool]:
    """Match books, by their columns, that hold all terms of the parameter `q`, by `query_of`."""
    if dialect == "postgresql":
        matched: ColumnElement[bool] = books.search.bool_op("@@")(cast(bindparam("q"), TSQUERY))
        return matched
    match = text("books_fts MATCH :q")
    found: Any = select(column("rowid")).select_from(table("books_fts")).where(match)
    is_found: ColumnElement[bool] = books.id.in_(found)
    return is_found
