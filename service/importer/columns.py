"""Map columns (CSV) or members (JSON) to the fields of a book."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from service.importer.records import FIELDS

# Known names of columns, in lower case without blanks and punctuation. The first name that is
# present is used; for an ISBN, all.
GUESSES = {
    "title": ("title", "booktitle", "originaltitle", "name"),
    "author": ("author", "authors", "authorname", "authornames", "bookauthor", "creator", "writer"),
    "isbn": ("isbn13", "isbn", "isbn10"),
    "published_year": (
        "publishedyear", "publicationyear", "originalpublicationyear", "yearpublished",
        "yearofpublication", "pubyear", "year", "publicationdate", "publisheddate", "published",
    ),
    "genre": ("genre",),
    "price": ("price", "listprice"),
}  # fmt: skip

ColumnMap = dict[str, list[str]]  # field -> columns; an empty list leaves the field out
PAIR = re.compile(rf"\s*({'|'.join(FIELDS)})\s*=\s*(.*?)\s*")


def parse_map(text: str) -> ColumnMap:
    """Parse `field=column,field=column`. Raises ValueError.

    A field that is given twice takes its first column with a value. A field without a column is
    left out. A comma is part of a column's name, unless `field=` follows.
    """
    columns: ColumnMap = {}
    for pair in re.split(rf",(?=\s*(?:{'|'.join(FIELDS)})\s*=)", text):
        matched = PAIR.fullmatch(pair)
        if matched is None:
            raise ValueError(f"write FIELD=COLUMN, where FIELD is one of {', '.join(FIELDS)}")
        field, column = matched.groups()
        columns.setdefault(field, []).extend([column] if column else [])
    return columns


def guess(columns: Iterable[str], given: ColumnMap) -> ColumnMap:
    """Return the columns of each field: those in `given`, else those with a name in GUESSES."""
    by_name: dict[str, str] = {}
    for column in columns:
        by_name.setdefault(re.sub(r"[\W_]", "", column).casefold(), column)
    mapped: ColumnMap = {}
    for field, names in GUESSES.items():
        present = [by_name[name] for name in names if name in by_name]
        mapped[field] = given.get(field, present if field == "isbn" else present[:1])
    return mapped


def pick(values: Mapping[str, Any], columns: ColumnMap) -> dict[str, list[Any]]:
    """Return the values of each field's columns. Columns that are missing are skipped."""
    return {
        field: [values[name] for name in names if name in values]
        for field, names in columns.items()
    }
