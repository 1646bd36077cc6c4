"""The repairs of a record, and the reasons for which a record is refused."""

from decimal import Decimal
from typing import Any

import pytest

from service.importer.normalise import Accepted, Refused, validate_record
from service.importer.records import Record

WHOLE: dict[str, Any] = {"title": "T", "author": "A"}


def verdict(strict_isbn: bool = False, **fields: Any) -> Accepted | Refused:
    """Judge a valid record with these fields changed."""
    values = {
        name: value if isinstance(value, list) else [value]
        for name, value in (WHOLE | fields).items()
    }
    return validate_record(Record(1, fields, values), strict_isbn=strict_isbn)


@pytest.mark.parametrize(
    ("field", "given", "repaired"),
    [
        ("isbn", "439023483", "0439023483"),
        ("isbn", 439023483, "0439023483"),
        ("isbn", "439023483.0", "0439023483"),
        ("isbn", "7442912", "0007442912"),
        ("isbn", "80442957X", "080442957X"),
        ("isbn", "80442957x", "080442957X"),
        ("isbn", ' ="0306406152" ', "0306406152"),
        ("isbn", "ISBN-13: 978-0-306-40615-7", "9780306406157"),
        ("isbn", "978\u20110\u2011306\u201140615\u20117", "9780306406157"),
        ("isbn", 9780306406157, "9780306406157"),
        ("isbn", ["9.78030640615e+12", "306406152"], "0306406152"),
        ("isbn", ["9780306406150", "0306406152"], "0306406152"),
        ("isbn", [["0306406152", "9780306406157"]], "0306406152"),
        (
            "isbn",
            "9780306406150",
            "9780306406150",
        ),  # the contract allows a wrong check digit
        ("isbn", "", None),
        ("isbn", "NaN", None),
        ("published_year", "1997.0", 1997),
        ("published_year", " 1997 ", 1997),
        ("published_year", Decimal("1997.0"), 1997),
        ("published_year", "1997-05-01", 1997),
        ("published_year", "1997-05", 1997),
        ("published_year", "n/a", None),
        ("published_year", "\\N", None),
        ("genre", "fiction", "Fiction"),
        ("genre", "nonfiction", "Non-Fiction"),
        ("genre", "NON FICTION", "Non-Fiction"),
        ("genre", None, None),
        ("price", "19.990", Decimal("19.99")),
        ("price", "7", Decimal("7")),
        ("price", 7, Decimal("7")),
        ("price", Decimal("9.5"), Decimal("9.5")),
        ("title", "  spaced\t", "spaced"),
        ("title", 1984, "1984"),
        ("title", "Null", "Null"),
        ("title", "e\u0301te\u0301", "\u00e9t\u00e9"),
        ("author", ["", "Second Column"], "Second Column"),
        ("published_year", ["n/a", "1999"], 1999),
        ("author", [["", "Boris", " "]], "Boris"),
        ("author", [["Anna", "Boris"]], "Anna, Boris"),
    ],
)
def test_a_field_is_repaired(field: str, given: Any, repaired: Any) -> None:
    judged = verdict(**{field: given})
    assert isinstance(judged, Accepted), judged
    assert getattr(judged.book, field) == repaired


@pytest.mark.parametrize(
    ("field", "given", "reason"),
    [
        ("title", "", "Missing data for required field."),
        ("title", None, "Missing data for required field."),
        ("title", "\u200b\u00ad", "Field may not be blank."),
        ("title", "x" * 201, "Longer than maximum length 200."),
        ("title", "x" * 1_000_000, "Longer than maximum length 200."),
        ("title", "a\x00b", "Holds a NUL character or bytes that are not text."),
        ("title", "caf\udce9", "Holds a NUL character or bytes that are not text."),
        ("title", {"main": "T"}, "Not a valid string."),
        ("title", True, "Not a valid string."),
        ("author", "x" * 101, "Longer than maximum length 100."),
        ("author", [["Anna", 3]], "Not a valid string."),
        ("isbn", "9.78043902348e+12", "String does not match expected pattern: 10 or 13 digits."),
        ("isbn", "439023484", "String does not match expected pattern: 10 or 13 digits."),
        (
            "isbn",
            "0028-0836",
            "String does not match expected pattern: 10 or 13 digits.",
        ),  # an ISSN
        ("isbn", "1476-4687", "String does not match expected pattern: 10 or 13 digits."),
        ("isbn", "00280836", "String does not match expected pattern: 10 or 13 digits."),
        ("isbn", "0", "String does not match expected pattern: 10 or 13 digits."),
        ("isbn", "٠٣٠٦٤٠٦١٥٢", "String does not match expected pattern: 10 or 13 digits."),
        ("published_year", "-720.0", "Must be greater than or equal to 1000."),
        ("published_year", "999", "Must be greater than or equal to 1000."),
        ("published_year", "2101", "Must be less than or equal to 2100."),
        ("published_year", "1939-45", "Not a valid integer."),
        ("published_year", "1997-13-01", "Not a valid integer."),
        ("published_year", "1997.5", "Not a valid integer."),
        ("published_year", "c1997", "Not a valid integer."),
        ("published_year", True, "Not a valid integer."),
        ("genre", "Poetry", "Must be one of: 'Fiction', 'Non-Fiction', 'Science' or 'History'."),
        ("price", "$9.99", "Not a valid number."),
        ("price", "9,99", "Not a valid number."),
        ("price", "-1", "Not a valid number."),
        ("price", -1, "Must be greater than or equal to 0."),
        ("price", "19.999", "Must have at most 2 decimal places."),
        ("price", "100000000", "Must be less than or equal to 99999999.99."),
    ],
)
def test_a_record_is_refused_with_a_reason(field: str, given: Any, reason: str) -> None:
    judged = verdict(**{field: given})
    assert isinstance(judged, Refused), judged
    assert judged.reason == f"{field}: {reason}"
    assert list(judged.errors) == [field]


def test_a_wrong_check_digit_is_refused_if_isbns_are_strict() -> None:
    judged = verdict(strict_isbn=True, isbn="9780306406150")
    assert isinstance(judged, Refused)
    assert judged.reason == "isbn: The check digit is wrong."
    assert isinstance(verdict(strict_isbn=True, isbn="9780306406157"), Accepted)


def test_all_errors_of_a_record_are_listed_and_the_first_is_its_reason() -> None:
    judged = verdict(title="", price="free")
    assert isinstance(judged, Refused)
    assert judged.reason == "title: Missing data for required field."
    assert list(judged.errors) == ["title", "price"]


def test_the_digest_of_a_record_depends_on_its_normalised_fields() -> None:
    def digest(**fields: Any) -> bytes:
        judged = verdict(**fields)
        assert isinstance(judged, Accepted)
        return judged.digest

    whole = {"isbn": "0439023483", "published_year": 2008, "genre": "Fiction", "price": "9.5"}
    same = {
        "isbn": "0-439-02348-3",
        "published_year": "2008.0",
        "genre": "FICTION",
        "price": "9.50",
    }
    assert digest(**whole) == digest(**same)
    digests = {digest()}
    for name, value in whole.items():
        digests.add(digest(**{name: value}))
    digests |= {digest(title="t"), digest(author="a"), digest(title="A", author="T")}
    assert len(digests) == 8
