"""Read records from CSV files with a header and any common delimiter."""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from textwrap import shorten

from service.importer.columns import ColumnMap, guess, pick
from service.importer.records import EXPORTED, TOO_LONG, Record, Records
from service.importer.sources import MAX_RECORD, Line, Lines, Source, SourceError

DELIMITERS = ",;\t|"
MAX_LINES = 1_000  # of a record; a longer record is assumed to have an unclosed quote
MISFIT = "columns do not fit the header"
OPEN_QUOTES = "quotes do not fit"
LINE_END = re.compile("[\r\n]")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class Table:
    """A CSV file, with its header read. Iteration yields its records.

    columns: the columns of each field. given: the columns from `--map`. Raises SourceError.
    """

    def __init__(
        self, stream: "io.BufferedReader[Source]", encoding: str | None, given: ColumnMap
    ) -> None:
        if encoding is None:
            encoding = "utf-16" if stream.peek(2)[:2] in UTF_16 else "utf-8"
        csv.field_size_limit(2 * MAX_RECORD)  # process-wide; records are cut at MAX_RECORD
        # An undecodable byte becomes a lone surrogate. Validation then refuses only the record of
        # the byte, and only if the byte is in a field of the book.
        try:
            name = codecs.lookup(encoding).name
            errors = "surrogatepass" if name.startswith("utf-16") else "surrogateescape"
            name = "utf-8-sig" if name == "utf-8" else name
            text = io.TextIOWrapper(stream, name, errors, newline="")
        except LookupError:
            raise SourceError(f"There is no encoding {encoding}") from None
        self._lines: Lines[str] = Lines(text)
        self._delimiter = ","
        self._header = self._read_header()
        self.columns = guess(self._header, given)
        self._is_export = self._header == EXPORTED and not given
        if self._header:
            self._check(given)

    def __iter__(self) -> Records:
        for taken, row in self._rows():
            first = taken[0]
            text = first.text.rstrip("\r\n")
            if isinstance(row, str):
                yield Record(first.number, text, damage=row)
                continue
            values = dict(zip(self._header, row, strict=False))
            fields = pick(values, self.columns)
            misfit = len(row) != len(self._header)
            if len(taken) > 1 and (misfit or self._swallowed(taken, fields)):
                self._lines.put_back(taken[1:])
                yield Record(first.number, text, damage=OPEN_QUOTES)
            elif misfit:
                detail = f"{len(row)} columns, where the header has {len(self._header)}"
                yield Record(first.number, row, damage=MISFIT, detail=detail)
            else:
                yield Record(first.number, values, fields, is_export=self._is_export)

    def _swallowed(self, taken: list[Line[str]], fields: dict[str, list[str]]) -> bool:
        """Whether a record contains other rows, because of an unclosed quote.

        This is assumed if a line between the first and the last is a complete row, or if a field
        of the book contains both a line end and the delimiter. The quotes of an export are right.
        """
        if self._is_export:
            return False
        between = (csv.reader([line.text], delimiter=self._delimiter) for line in taken[1:-1])
        if any(len(next(row, [])) == len(self._header) for row in between):
            return True
        values = (value for several in fields.values() for value in several)
        return any(self._delimiter in value and LINE_END.search(value) for value in values)

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
        columns = (
            shorten(f"The columns are: {', '.join(self._header)}", 500, placeholder=" ...") + "."
        )
        for field, names in given.items():
            for name in names:
                if name not in self._header:
                    raise SourceError(f"There is no column {name} for {field}. {columns}")
        for field in ("title", "author"):
            if not self.columns[field]:
                raise SourceError(
                    f"No column for {field}: name it, --map {field}=COLUMN. {columns}"
                )

    def _rows(self) -> Iterator[tuple[list[Line[str]], list[str] | str]]:
        """Yield the lines of each record, with its row or with a description of its damage.

        A damaged record consumes only its first line. The lines after it are read again.
        """
        taken: list[Line[str]] = []

        def record_lines() -> Iterator[str]:
            size = 0
            while len(taken) < MAX_LINES and size < MAX_RECORD:
                line = self._lines.take()
                if line is None:
                    return
                taken.append(line)
                size += len(line.text)
                yield line.text

        while True:
            taken = []
            damage = None
            try:
                row = next(csv.reader(record_lines(), delimiter=self._delimiter, strict=True), None)
            except csv.Error:
                damage = OPEN_QUOTES
            if not taken:
                return
            if not taken[0].whole:
                damage = TOO_LONG
            if damage is not None:
                self._lines.put_back(taken[1:])
                yield taken, damage
            elif row:
                yield taken, row


def _outside_quotes(text: str) -> str:
    return "".join(text.split('"')[::2])
