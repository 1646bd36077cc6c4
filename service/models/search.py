"""Full-text search of books. Python splits text into words, so both databases find the same."""

import re
import unicodedata
from collections.abc import Sequence
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


def book_words(title: str, author: str) -> str:
    """Return the words of a book: a line with those of the title, a line with the author's."""
    return f"{' '.join(words(title))}\n{' '.join(words(author))}"


def tsvector_of(lines: str) -> str:
    """Return the result of `book_words` as a tsvector: positions, and weight A in the title."""
    title, _, author = lines.partition("\n")
    terms = title.split()
    parts = [f"{term}:{n}A" for n, term in enumerate(terms, 1)]
    parts += [f"{term}:{n}" for n, term in enumerate(author.split(), len(terms) + 1)]
    return " ".join(parts)


def query_of(text: str, dialect: str) -> str:
    """Return a tsquery or FTS5 query: all words of a text, the last word as a prefix."""
    return query_of_any([[term] for term in words(text)], dialect)


def query_of_any(groups: Sequence[Sequence[str]], dialect: str) -> str:
    """Return a tsquery or FTS5 query: a word of each group, those of the last group as prefixes.

    Words hold only letters and digits, so the quotes need no escape.
    """
    quote, star, either, both = ("'", ":*", " | ", " & ")
    if dialect == "sqlite":
        quote, star, either, both = ('"', "*", " OR ", " AND ")
    *whole, last = [[f"{quote}{term}{quote}" for term in group] for group in groups]
    parts = [*whole, [term + star for term in last]]
    return both.join(f"({either.join(part)})" for part in parts)


def any_of(tsquery: str) -> str:
    """Return the tsquery for any word of a tsquery. Words hold no `&`."""
    return tsquery.replace("&", "|")


def trigrams(word: str) -> set[str]:
    """Return the sequences of three characters of a word, padded with blanks as by pg_trgm."""
    padded = f"  {word} "
    return {padded[at : at + 3] for at in range(len(padded) - 2)}


def similarity(word: str, other: str) -> float:
    """Return the fraction of the trigrams of two words that both have, from 0 to 1."""
    mine, others = trigrams(word), trigrams(other)
    return len(mine & others) / len(mine | others)


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
