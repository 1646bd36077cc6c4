"""The digest of a record, by which a later import knows that its book is in the catalogue.

Databases keep digests, so that a digest never changes from one release to the next. Therefore it
covers a fixed list of fields, and not all fields of a book.

To add a field to books, leave DIGEST_FIELDS as it is. A file that holds the new field names the
same books as before: a release that ignored the field and one that reads it give the same digest.
The price is that of two records which differ in the new field alone, only the first is imported.

Raise the version only if that price is too high, because the new field tells two books apart: put
a new tuple of fields in front. A row keeps the digest of the version it was stored with, and a
record is known by the digest of any version. So files that were imported before stay known. From
then on a file without the field names other books than a file with it.

A repair that gives another value for the same text changes digests, too, and no version helps.
Repair what was refused before, but do not give another value for what was accepted.
"""

import json
from decimal import Decimal
from hashlib import blake2b

from service.books.schemas import BookCreate

# The fields of each version in their order, the newest version first. Never change a version.
DIGEST_FIELDS: tuple[tuple[str, ...], ...] = (
    ("title", "author", "isbn", "published_year", "genre", "price"),  # version 1
)
CENT = Decimal("0.01")


def digests(book: BookCreate) -> tuple[bytes, ...]:
    """Give the 16 bytes of each version, the newest first."""
    return tuple(_digest([getattr(book, name) for name in fields]) for fields in DIGEST_FIELDS)


def _digest(values: list[object]) -> bytes:
    return blake2b(json.dumps(values, default=_cents).encode(), digest_size=16).digest()


def _cents(price: Decimal) -> str:
    return str(price.quantize(CENT))
