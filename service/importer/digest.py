"""The digest of a record. A later import finds by it that the book is in the catalogue already.

Databases store digests, so a digest must never change between releases. Therefore it covers a
fixed list of fields, and not all fields of a book.

To add a field to books, leave DIGEST_FIELDS as it is. A release that ignored the field and a
release that reads it then compute the same digest, so a file with the field means the same books
as before. The cost: of two records that differ only in the new field, only the first is imported.

Add a version only if that cost is too high, because the new field distinguishes two books: put a
new tuple of fields first. A row keeps the digest of the version it was stored with, and a record
is known if the digest of any version is stored. Files that were imported before stay known. From
then on, a file without the field means other books than a file with it.

A repair that returns another value for the same text changes digests too, and a version does not
help. New repairs may change only text that was refused before, never text that was accepted.
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
    """Return the digest (16 bytes) of each version, the newest first."""
    return tuple(_digest([getattr(book, name) for name in fields]) for fields in DIGEST_FIELDS)


def _digest(values: list[object]) -> bytes:
    return blake2b(json.dumps(values, default=_cents).encode(), digest_size=16).digest()


def _cents(price: Decimal) -> str:
    return str(price.quantize(CENT))
