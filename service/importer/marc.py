"""Read records from MARC 21 files (ISO 2709), in UTF-8 or MARC-8.

Definitions of the fields (`245`, `008/06`): https://www.loc.gov/marc/bibliographic/
"""

import io
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr

from pymarc import Field
from pymarc import Record as MarcRecord
from pymarc.exceptions import PymarcException
from pymarc.marc8 import marc8_to_unicode

from service.importer.records import TOO_LONG, Record, Records
from service.importer.sources import BUFFER, MAX_RECORD, Source

END_OF_RECORD = b"\x1d"
END_OF_FIELD = b"\x1e"
LEADER = re.compile(rb"[0-9]{5}[a-z ]{5}[0-9 ]{2}[0-9]{5}")
MAX_LEADER_LENGTH = 99_999  # bytes: the greatest length that a leader can hold
FIRST_COMBINING = b"\xe0"  # first combining mark of ANSEL; in ANSEL a mark precedes its letter
ABBREVIATED = re.compile(r"\b(Inc|Ltd|Corp|Bros|Esq|etc|Assn|Dept|Univ|Publ)\.$", re.IGNORECASE)
LEADER_BYTES, ENTRY_BYTES = 24, 12
CERTAIN_DATES = set("cdemprstu")  # 008/06 (type of date): the first date is a year
# 008/33, the literary form: fiction, novels, short stories; not fiction, essays, letters, speeches.
FICTION, NOT_FICTION = set("1fj"), set("0eis")
SCIENCE, HISTORY = set("Q"), set("CDEF")  # 050: first letters of Library of Congress classes


def read_marc(stream: "io.BufferedReader[Source]") -> Records:
    """Yield the records of a file, in order. Damage of a record affects no other record."""
    logging.getLogger("pymarc").addHandler(logging.NullHandler())  # the report lists the damage
    for number, data in enumerate(_chunks(stream), 1):
        raw = data[:MAX_RECORD].decode("latin-1")
        if len(data) > MAX_RECORD:
            yield Record(number, raw, damage=TOO_LONG)
            continue
        try:
            fields = _fields(data)
        except UnicodeDecodeError as error:
            yield Record(
                number, raw, damage="text is not in the record's encoding", detail=str(error)
            )
        except (PymarcException, ValueError, LookupError, Warning) as error:
            detail = str(error) or type(error).__name__
            yield Record(number, raw, damage="not a MARC record", detail=detail)
        else:
            yield Record(number, raw, fields, from_table=False)


def _chunks(stream: "io.BufferedReader[Source]") -> Iterator[bytes]:
    """Split the stream at record terminators: the lengths in leaders are unreliable."""
    rest = b""
    while block := stream.read1(BUFFER):
        *whole, rest = (rest + block).split(END_OF_RECORD)
        for data in whole:
            yield from _split_fields(data.lstrip(b"\r\n ") + END_OF_RECORD)
        rest = rest[: MAX_RECORD + 1]  # enough bytes to detect a record that is too long
    if rest.strip():
        yield rest


def _split_fields(data: bytes) -> list[bytes]:
    """Split a damaged record from a valid record after it, if a leader's length shows the start."""
    if data[:5] != b"%05d" % len(data):
        for leader in LEADER.finditer(data, 1):
            if int(leader[0][:5]) == len(data) - leader.start():
                return [data[: leader.start()], data[leader.start() :]]
    return [data]


def _fields(data: bytes) -> dict[str, list[object]]:
    if int(data[:5]) != len(data) <= MAX_LEADER_LENGTH:
        raise ValueError(f"The leader says {int(data[:5])} bytes, the record has {len(data)}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        marc = MarcRecord(data, to_unicode=False)
    _check_directory(data)
    decode = _utf8 if marc.leader.coding_scheme == "a" else _marc8

    def texts(codes: str, *tags: str) -> list[str]:
        """Return one text per field with one of the tags: its subfields with these codes."""
        fields = (field for tag in tags for field in marc.get_fields(tag))
        return [" ".join(decode(value) for value in _values(field, codes)) for field in fields]

    coded = next((field.data for field in marc.get_fields("008")), None) or b""
    fixed = _bytes(coded).decode("ascii", "replace").ljust(40)
    return {
        "title": [_unpunctuated(text) for text in texts("abnp", "245")],
        "author": [
            _unpunctuated(text)
            for text in [*texts("abc", "100", "110", "111"), *texts("abc", "700", "710", "711")]
        ],
        "isbn": [text.split(maxsplit=1)[0] for text in texts("a", "020") if text.strip()],
        "published_year": [_year(fixed, [*texts("c", "264"), *texts("c", "260")])],
        "genre": [_genre(str(marc.leader)[6:8], fixed, texts("a", "050"))],
    }


def _check_directory(data: bytes) -> None:
    """Raise ValueError if the directory does not match the bounds of the fields.

    pymarc accepts such a record without an error: a title may lose its first letters.
    """
    base = int(data[12:17])
    for place in range(LEADER_BYTES, base - 1, ENTRY_BYTES):
        entry = data[place : place + ENTRY_BYTES]
        start = base + int(entry[7:12])
        # Includes the terminator before the field: that of the directory or of another field.
        field = data[start - 1 : start + int(entry[3:7])]
        if len(field) < 2 or field.find(END_OF_FIELD, 1) != len(field) - 1 or field[0] != 0x1E:
            raise ValueError(f"Field {entry[:3]!r} is not at the position in the directory")


def _values(field: Field, codes: str) -> Iterable[bytes]:
    return (_bytes(part.value) for part in field.subfields if part.code in codes)


def _bytes(value: object) -> bytes:
    """Check the type: without decoding, pymarc returns bytes, but its annotations say str."""
    if not isinstance(value, bytes):
        raise ValueError("A field does not hold bytes")
    return value


def _utf8(value: bytes) -> str:
    return value.decode("utf-8")


def _marc8(value: bytes) -> str:
    """Decode MARC-8. Raises UnicodeDecodeError.

    pymarc replaces an unknown character by a blank, and reports it on stderr only. It does not
    detect a final combining mark without a letter, an invalid escape sequence, or UTF-8 that is
    labelled as MARC-8. Text in MARC-8 that is not ASCII is never valid UTF-8.
    """
    if not value.isascii() and _is_utf8(value):
        raise UnicodeDecodeError("marc-8", value, 0, len(value), "the text is UTF-8")
    with redirect_stderr(io.StringIO()) as stderr:
        text = marc8_to_unicode(value)
    if stderr.getvalue():
        reason = stderr.getvalue().splitlines()[0]
        raise UnicodeDecodeError("marc-8", value, 0, len(value), reason)
    if "\x1b" in text or value[-1:] >= FIRST_COMBINING:
        raise UnicodeDecodeError(
            "marc-8", value, 0, len(value), "an incomplete character is at the end"
        )
    return text


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _unpunctuated(text: str) -> str:
    """Remove the punctuation that separates the areas of a description (ISBD).

    A full stop is removed only after three or more letters. It stays after an initial and after a
    known abbreviation.
    """
    text = re.sub(r"\s+([:;,])(?=\s)", r"\1", text).strip()
    text = re.sub(r"[\s/:;,=]+$", "", text)
    if not ABBREVIATED.search(text):
        text = re.sub(r"(?<=[^\W\d_]{3})\.$", "", text)
    if text.startswith("[") and text.find("]") == len(text) - 1:
        text = text[1:-1]
    return text


def _year(fixed: str, imprints: list[str]) -> str | None:
    """Return the year of publication: the coded year (008), else the only year of an imprint."""
    if fixed[6] in CERTAIN_DATES and re.fullmatch("[0-9]{4}", fixed[7:11]):
        return fixed[7:11]
    for text in imprints:
        years: set[str] = set(re.findall(r"(?<![0-9])[0-9]{4}(?![0-9])", text))
        if len(years) == 1 and "?" not in text:
            return years.pop()
    return None


def _genre(kind: str, fixed: str, classes: list[str]) -> str | None:
    """Return the genre of a text, from its literary form or its class; None if unknown."""
    if kind[0] not in "at" or kind[1] in "bis":  # for serials, 008/33 has another meaning
        return None
    if fixed[33] in FICTION:
        return "Fiction"
    for name, letters in (("Science", SCIENCE), ("History", HISTORY)):
        if any(text[:1] in letters for text in classes):
            return name
    return "Non-Fiction" if fixed[33] in NOT_FICTION else None
