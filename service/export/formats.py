"""Write rows of books as JSON Lines and as CSV."""

import csv
import io
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import Row

from service.books.schemas import BookOut
from service.books.service import BOOKS
from service.http.schemas import rfc3339

CENT = Decimal("0.01")
COLUMNS = tuple(BookOut.model_fields)  # by this header the importer recognises an export
CELLS: dict[str, Callable[[Any], str]] = {
    "price": lambda price: str(price.quantize(CENT)),
    "created_at": rfc3339,
    "updated_at": rfc3339,
}
WRITERS = [CELLS.get(name) for name in COLUMNS]
NDJSON_TYPE, CSV_TYPE = "application/x-ndjson", "text/csv"


class Format(NamedTuple):
    """A format of a stream. head: the bytes before the first row. write: gives rows as bytes."""

    content_type: str
    head: bytes
    write: Callable[[Sequence[Row[Any]]], bytes]


def _lines(rows: Sequence[Row[Any]]) -> bytes:
    return b"".join([BOOKS.write(row) + b"\n" for row in rows])


def _table(rows: Sequence[Sequence[object]]) -> bytes:
    """Return rows as CSV (RFC 4180). No cell is changed for the sake of spreadsheets."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cells(row: Row[Any]) -> list[object]:
    """Return the values of a row. `csv` writes None as an empty cell."""
    return [
        value if write is None or value is None else write(value)
        for write, value in zip(WRITERS, row, strict=True)
    ]


FORMATS = {
    NDJSON_TYPE: Format(NDJSON_TYPE, b"", _lines),
    CSV_TYPE: Format(
        f"{CSV_TYPE}; charset=utf-8; header=present",
        _table([COLUMNS]),
        lambda rows: _table([_cells(row) for row in rows]),
    ),
}
