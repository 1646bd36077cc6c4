"""Compute the digest of a record, by which a later import recognises that the book exists already.

The database stores digests, so a digest must never change between releases. Therefore it covers a
fixed list of fields, and not all fields of a book.

If a field is added to books, leave DIGEST_FIELDS as it is. Then a release that ignores the field
and a release that reads it compute the same digest, so a file with the field still refers to the
same books. The disadvantage: of two records that differ only in the new field, only the first is
imported.

Add a version only if that is not acceptable, because the new field distinguishes two books: put a
new tuple of fields first. A row keeps the digest of the version with which it was stored, and a
record is known if the digest of any version is stored. Files that were imported before stay known.
From then on, a file without the field refers to other books than a file with the field.

A repair that returns a new value for the same text changes digests too, and a version does not
prevent this. New repairs may change only text that was refused before, never accepted text.
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
