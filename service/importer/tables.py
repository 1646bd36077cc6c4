"""Records of CSV: with a header, in any of the usual delimiters."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from textwrap import shorten

from service.importer.columns import ColumnMap, guess, pick
from service.importer.records import TOO_LONG, Record, Records
from service.importer.sources import MAX_RECORD, Line, Lines, Source, SourceError

DELIMITERS = ",;\t|"
MAX_LINES = 1_000  # of one record: beyond, its quotes are not closed
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class Table:
    """A CSV file whose header was read: `columns` says which column is which field."""

    def __init__(
        self, stream: "io.BufferedReader[Source]", encoding: str | None, given: ColumnMap
    ) -> None:
        if encoding is None:
            encoding = "utf-16" if stream.peek(2)[:2] in UTF_16 else "utf-8-sig"
        csv.field_size_limit(2 * MAX_RECORD)  # of the whole process; a record is cut before
        # A byte that is no text goes on as half a surrogate pair: its record alone is refused,
        # and only if the byte stands in a field of the book.
        try:
            text = io.TextIOWrapper(stream, encoding, errors="surrogateescape", newline="")
        except LookupError:
            raise SourceError(f"There is no encoding {encoding}") from None
        self._lines: Lines[str] = Lines(text)
        self._delimiter = ","
        self._header = self._read_header()
        self.columns = guess(self._header, given)
        if self._header:
            self._check(given)

    def __iter__(self) -> Records:
        width = len(self._header)
        for first, row in self._rows():
            if isinstance(row, str):
                yield Record(first.number, first.text.rstrip("\r\n"), damage=row)
            elif len(row) != width and (len(row) < width or any(row[width:])):
                detail = f"{len(row)} columns, where the header has {width}"
                yield Record(
                    first.number, row, damage="columns do not fit the header", detail=detail
                )
            else:
                values = dict(zip(self._header, row, strict=False))
                yield Record(first.number, values, pick(values, self.columns))

    def _read_header(self) -> list[str]:
        first = next((line for line in self._lines if line.text.strip()), None)
        if first is None:
            return []
        self._lines.put_back([first])
        self._delimiter = max(DELIMITERS, key=_outside_quotes(first.text).count)
        _, header = next(self._rows())
        if isinstance(header, str):
            raise SourceError(f"The header cannot be read: {header}")
        seen: Counter[str] = Counter()
        for place, name in enumerate(name.strip() for name in header):
            seen[name] += 1
            header[place] = name if seen[name] == 1 else f"{name} ({seen[name]})"
        return header

    def _check(self, given: ColumnMap) -> None:
        there = (
            shorten(f"The columns are: {', '.join(self._header)}", 500, placeholder=" ...") + "."
        )
        for field, names in given.items():
            for name in names:
                if name not in self._header:
                    raise SourceError(f"There is no column {name} for {field}. {there}")
        for field in ("title", "author"):
            if not self.columns[field]:
                raise SourceError(f"No column for {field}: name it, --map {field}=COLUMN. {there}")

    def _rows(self) -> Iterator[tuple[Line[str], list[str] | str]]:
        """Give each record's first line with its row, or with what is wrong with it.

        A record that cannot be read costs its first line; the lines behind it are read anew.
        """
        taken: list[Line[str]] = []

        def one_record() -> Iterator[str]:
            size = 0
            while len(taken) < MAX_LINES and size < MAX_RECORD:
                line = self._lines.take()
                if line is None:
                    return
                taken.append(line)
                size += len(line.text)
                yield line.text

        while True:
            taken.clear()
            damage = None
            try:
                row = next(csv.reader(one_record(), delimiter=self._delimiter, strict=True), None)
            except csv.Error:
                damage = "quotes do not fit"
            if not taken:
                return
            if not taken[0].whole:
                damage = TOO_LONG
            if damage is not None:
                self._lines.put_back(taken[1:])
                yield taken[0], damage
            elif row:
                yield taken[0], row


def _outside_quotes(text: str) -> str:
    return "".join(text.split('"')[::2])
