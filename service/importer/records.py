"""A record between a file and the catalogue."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TOO_LONG = "longer than 4 MiB"
FIELDS = ("title", "author", "isbn", "published_year", "genre", "price")


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it was read.

    number: the line it begins on; of MARC, which record of the file it is; from 1.
    raw: what stood there, for the reader of the rejects.
    fields: the values that may be a field of the book, the best first.
    damage: why there are no fields, in words that do not change from record to record.
    detail: more about that.
    from_table: whether a spreadsheet may have had its numbers in hand.
    """

    number: int
    raw: Any
    fields: dict[str, list[Any]] = field(default_factory=dict)
    damage: str | None = None
    detail: str = ""
    from_table: bool = True


Records = Iterator[Record]
