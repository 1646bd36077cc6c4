"""Which column (CSV) or member (JSON) is which field of a book."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from service.importer.records import FIELDS

# Spelled without case, blanks and signs. Of several, the first that is there; of an ISBN all.
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

ColumnMap = dict[str, list[str]]  # field -> columns; an empty list: the field is left out
PAIR = re.compile(rf"\s*({'|'.join(FIELDS)})\s*=\s*(.*?)\s*")


def parse_map(text: str) -> ColumnMap:
    """Read `field=column,field=column`. Raises ValueError.

    A field named twice takes the first column that holds something; one without a column is left
    out. A comma belongs to a column's name unless a field follows.
    """
    found: ColumnMap = {}
    for pair in re.split(rf",(?=\s*(?:{'|'.join(FIELDS)})\s*=)", text):
        matched = PAIR.fullmatch(pair)
        if matched is None:
            raise ValueError(f"write FIELD=COLUMN, where FIELD is one of {', '.join(FIELDS)}")
        field, column = matched.groups()
        found.setdefault(field, []).extend([column] if column else [])
    return found


def guess(columns: Iterable[str], given: ColumnMap) -> ColumnMap:
    """Say for each field which columns hold it: those that are given, else by their names."""
    by_name: dict[str, str] = {}
    for column in columns:
        by_name.setdefault(re.sub(r"[\W_]", "", column).casefold(), column)
    found: ColumnMap = {}
    for field, names in GUESSES.items():
        there = [by_name[name] for name in names if name in by_name]
        found[field] = given.get(field, there if field == "isbn" else there[:1])
    return found


def pick(values: Mapping[str, Any], columns: ColumnMap) -> dict[str, list[Any]]:
    """Give the values of each field's columns, as far as they are there."""
    return {
        field: [values[name] for name in names if name in values]
        for field, names in columns.items()
    }
