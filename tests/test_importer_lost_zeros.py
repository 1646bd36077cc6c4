"""Leading zeros of an ISBN are restored in tables alone: a spreadsheet may have dropped them."""

from dataclasses import replace

import pytest

from service.importer.normalise import Accepted, Refused, validate_record
from service.importer.records import Record


@pytest.mark.parametrize("isbn", ["306406152"])
def test_lost_zeros_are_restored_in_tables_alone(isbn: str) -> None:
    fields = {"title": ["T"], "author": ["A"], "isbn": [isbn]}
    record = replace(Record(1, None, fields), from_table=True)
    judged = validate_record(record)
    assert isinstance(judged, Accepted)
    assert judged.book.isbn == isbn.zfill(10)
    assert isinstance(validate_record(replace(record, from_table=False)), Refused)
