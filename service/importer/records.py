"""The record that a reader (CSV, JSON Lines, MARC) passes to validation."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from service.books.schemas import BookOut

TOO_LONG = "longer than 4 MiB"
FIELDS = ("title", "author", "isbn", "published_year", "genre", "price")
EXPORTED = list(BookOut.model_fields)  # the header of Octavo's own export, and of no other file


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it was read.

    number: the line on which it begins (MARC: its position in the file), from 1.
    raw: the original data, for the file of rejects.
    fields: candidate values of each field of the book, the best first.
    damage: why the record has no fields; the same text for each record with this kind of damage.
    detail: the damage of this record in detail.
    from_table: whether a spreadsheet may have changed its numbers.
    is_export: whether Octavo has exported the record. Then its values need no repair.
    """

    number: int
    raw: Any
    fields: dict[str, list[Any]] = field(default_factory=dict)
    damage: str | None = None
    detail: str = ""
    from_table: bool = True
    is_export: bool = False


Records = Iterator[Record]
