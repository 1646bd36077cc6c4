"""Repair values of a record if the repair is unambiguous, then validate the book by its schema.

A value that cannot be repaired stays unchanged. Then the schema refuses the value with its message.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any

from pydantic import ValidationError
from stdnum import isbn as isbn_numbers

from service.books.schemas import BookCreate
from service.books.service import check_isbn
from service.errors import InvalidInputError, Messages
from service.http.parsing import ID, is_unstorable
from service.http.schemas import messages
from service.importer.digest import digests
from service.importer.records import Record
from service.models import GENRES
from service.models.types import INT64

CENT = Decimal("0.01")
NOTHING = {"", "null", "none", "nan", "n/a", "\\n"}  # spellings of a missing value
NO_TEXT = {"", "\\n"}  # for titles and authors: an author may be called None
WRAPPED = re.compile('="(.*)"')  # prevents that a spreadsheet reads the value as a number
ISBN_LABEL = re.compile(r"ISBN(-1[03])?:?", re.IGNORECASE)
SIGNS = re.compile(r"[\s\u00ad\u2010-\u2015-]")
WELL_FORMED = re.compile("[0-9]{9}[0-9X]|[0-9]{13}")
ROBBED = re.compile("[1-9][0-9]{5,7}[0-9X]")  # an ISBN-10 without one to three leading zeros
WHOLE = re.compile(r"([+-]?[0-9]{1,9})(\.0+)?")
DATE = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])(-(0[1-9]|[12][0-9]|3[01])([T ].*)?)?")
MONEY = re.compile(r"[0-9]{1,12}(\.[0-9]{1,30})?")
GENRE_NAMES = {re.sub(r"[\W_]", "", name).casefold(): name for name in GENRES}


@dataclass(frozen=True, slots=True)
class Accepted:
    """A book to add, and the digests of its record.

    digests: one for each version, the newest first. repairs: a description of each repair.
    views: number of earlier views, if known. origin: id and time of creation in an export.
    """

    book: BookCreate
    digests: tuple[bytes, ...]
    repairs: list[str] = field(default_factory=list)
    views: int | None = None
    origin: tuple[int, datetime] | None = None

    @property
    def digest(self) -> bytes:
        """The digest to store."""
        return self.digests[0]


@dataclass(frozen=True, slots=True)
class Refused:
    """A refused record: a short reason, and all its errors."""

    reason: str
    errors: Messages


def validate_record(record: Record, *, strict_isbn: bool = False) -> Accepted | Refused:
    """Repair and validate a record."""
    if record.damage is not None:
        return Refused(record.damage, {"_record": [record.detail or record.damage]})
    repairs: list[str] = []
    values = {}
    for name, mend in _menders(record).items():
        nothing = NO_TEXT if name in {"title", "author"} else NOTHING
        nothing = {""} if record.is_export else nothing
        given = [v for v in record.fields.get(name, ()) if not _is_nothing(v, nothing)]
        # A field without values is left out: validation reports it if it is required.
        if given:
            values[name] = mend(given, repairs)
    errors = _unstorable(values)
    if not errors:
        try:
            book = BookCreate.model_validate(values)
            if strict_isbn:
                check_isbn(book.isbn)
        except ValidationError as error:
            errors = messages(error)
        except InvalidInputError as error:
            errors = error.payload["messages"]
        else:
            origin = _origin(record.raw) if record.is_export else None
            return Accepted(book, digests(book), repairs, origin=origin)
    name, sentences = next(iter(errors.items()))
    return Refused(f"{name}: {sentences[0]}", errors)


def _menders(record: Record) -> "Mapping[str, Mender]":
    if record.is_export:
        return EXPORT_MENDERS
    return MENDERS if record.from_table else EXACT_MENDERS


def _origin(values: dict[str, Any]) -> tuple[int, datetime] | None:
    """Return id and time of creation of an exported book; None if the file was changed."""
    book_id, created_at = str(values["id"]), str(values["created_at"])
    if not ID.fullmatch(book_id) or int(book_id) > INT64:
        return None
    try:
        return int(book_id), datetime.fromisoformat(created_at)
    except ValueError:
        return None


def _is_nothing(value: Any, nothing: set[str] = NOTHING) -> bool:
    return value is None or (isinstance(value, str) and value.strip().casefold() in nothing)


def _unstorable(values: dict[str, Any]) -> Messages:
    return {
        name: ["Holds a NUL character or bytes that are not text."]
        for name, value in values.items()
        if isinstance(value, str) and is_unstorable(value)
    }


def _text(given: list[Any], repairs: list[str]) -> Any:
    value = given[0]
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        value = ", ".join(part.strip() for part in value if part.strip())
    if type(value) is int:
        value = str(value)
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value


def _isbn(given: list[Any], repairs: list[str], *, pad: bool = True) -> Any:
    """Return the first ISBN with a right check digit, else the first well-formed ISBN."""
    flat = [part for value in given for part in (value if isinstance(value, list) else [value])]
    read = [(value, *_read_isbn(value, pad)) for value in flat if not _is_nothing(value)]
    formed = [(text, repair) for _, text, repair in read if text is not None]
    for text, repair in formed:
        if isbn_numbers.is_valid(text):
            repairs.extend([repair] if repair else [])
            return text
    if formed:
        return formed[0][0]
    return read[0][0] if read else None


def _read_isbn(value: Any, pad: bool) -> tuple[str | None, str | None]:
    """Return the ten or thirteen digits of an ISBN, and the repair that was made."""
    text = str(value).strip().upper()
    repair = None
    if text.endswith(".0"):
        text, repair = text[:-2], "isbn: a number's .0 dropped"
    # Only plain digits can have lost zeros in a spreadsheet. A value with hyphens or a label was no
    # number. An ISSN after two zeros has a valid check digit, but is written with a hyphen.
    if pad and ROBBED.fullmatch(text) and isbn_numbers.is_valid(text.zfill(10)):
        return text.zfill(10), "isbn: leading zeros restored"
    wrapped = WRAPPED.fullmatch(text)
    text = SIGNS.sub("", ISBN_LABEL.sub("", wrapped[1] if wrapped else text))
    return (text, repair) if WELL_FORMED.fullmatch(text) else (None, None)


def _year(given: list[Any], repairs: list[str]) -> Any:
    value = given[0]
    text = str(value).strip() if isinstance(value, str | int | Decimal) else ""
    whole, date = WHOLE.fullmatch(text), DATE.fullmatch(text)
    if whole and type(value) is not bool:
        if whole[2]:
            repairs.append("published_year: a number's .0 dropped")
        return int(whole[1])
    if date:
        repairs.append("published_year: taken from a date")
        return int(date[1])
    return value


def _genre(given: list[Any], repairs: list[str]) -> Any:
    value = given[0]
    if isinstance(value, str) and value not in GENRES:
        name = GENRE_NAMES.get(re.sub(r"[\W_]", "", value).casefold())
        if name is not None:
            repairs.append("genre: spelled as the catalogue does")
            return name
    return value


def _price(given: list[Any], repairs: list[str]) -> Any:
    value = given[0]
    if isinstance(value, str) and MONEY.fullmatch(value.strip()):
        value = Decimal(value.strip())
    if isinstance(value, Decimal) and value.is_finite() and abs(value) < 10**12:
        cents = value.quantize(CENT)
        if cents == value:
            return cents
    return value


def _exact(given: list[Any], repairs: list[str]) -> Any:
    return given[0]


Mender = Callable[[list[Any], list[str]], Any]
MENDERS: dict[str, Mender] = {
    "title": _text, "author": _text, "isbn": _isbn, "published_year": _year, "genre": _genre,
    "price": _price,
}  # fmt: skip
EXACT_MENDERS = MENDERS | {"isbn": partial(_isbn, pad=False)}
# In CSV, years and prices are text. All else is as the catalogue holds it.
EXPORT_MENDERS: dict[str, Mender] = {
    **dict.fromkeys(MENDERS, _exact), "published_year": _year, "price": _price,
}  # fmt: skip
