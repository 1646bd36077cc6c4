"""Run an import, from the first byte of the source to the report."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from service.importer.columns import ColumnMap
from service.importer.csv_table import Table
from service.importer.interrupt import Interrupt
from service.importer.jsonl import read_lines
from service.importer.loader import BATCH_SIZE, Loader
from service.importer.marc import read_marc
from service.importer.normalise import Accepted, Refused, validate_record
from service.importer.progress import Progress
from service.importer.records import Record, Records
from service.importer.sources import BUFFER, Format, Source, SourceError, guess_format


@dataclass(frozen=True)
class Reading:
    """An open source and its records. columns: the columns of each field (CSV only)."""

    source: Source
    format: Format
    records: Records
    columns: ColumnMap | None = None


@contextmanager
def open_reading(
    path: str, kind: Format | None, encoding: str | None, given: ColumnMap
) -> Iterator[Reading]:
    """Open a file (`-` is standard input) and read its header. Raises SourceError, OSError."""
    with Source(path) as source:
        yield _read(source, kind, encoding, given)


def _read(source: Source, kind: Format | None, encoding: str | None, given: ColumnMap) -> Reading:
    stream = io.BufferedReader(source, BUFFER)
    kind = kind or guess_format(source.name, stream.peek(BUFFER))
    if kind == "csv":
        table = Table(stream, encoding, given)
        return Reading(source, kind, iter(table), table.columns)
    if encoding is not None:
        raise SourceError("--encoding is for CSV: JSON Lines are UTF-8, and MARC says its own")
    if kind == "jsonl":
        return Reading(source, kind, read_lines(stream, given))
    if given:
        raise SourceError("--map is for CSV and JSON Lines: the meaning of MARC's fields is fixed")
    return Reading(source, kind, read_marc(stream))


class Rejects:
    """Writes refused records to a file as JSON Lines. Without a path, writes nothing.

    written: number of records. Methods raise SourceError if the file cannot be written.
    """

    def __init__(self, path: str | None) -> None:
        self.written = 0
        self._path = path

    def __enter__(self) -> Self:
        """Open and empty the file: every run writes all its rejects."""
        with self._explained():
            self._file = open(self._path, "w", encoding="ascii") if self._path else None
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        if self._file is not None:
            with self._explained():
                self._file.close()

    def write(self, record: Record, refused: Refused) -> None:
        """Write a record with the reason for the refusal and all its errors."""
        if self._file is None:
            return
        line = {
            "number": record.number,
            "reason": refused.reason,
            "errors": refused.errors,
            "record": record.raw,
        }
        # ASCII escapes keep undecodable bytes; str keeps the digits of a price.
        with self._explained():
            self._file.write(json.dumps(line, default=str) + "\n")
        self.written += 1

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SourceError(f"Cannot write {self._path}: {error.strerror}") from None


@dataclass
class Report:
    """The result of an import, or the expected result in a dry run.

    known: records that were in the catalogue already. refused, repaired: counts by reason.
    broken: why the import ended before the end of the file. stopped: Ctrl-C ended the import.
    """

    read: int = 0
    added: int = 0
    known: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    broken: str | None = None
    stopped: bool = False

    def lines(self, *, dry_run: bool) -> Iterator[str]:
        """Yield the lines of the report."""
        rate = self.read / max(self.seconds, 0.001)
        yield f"{self.read} records read in {self.seconds:.1f} s, {rate:.0f} a second"
        yield f"{self.added} books {'would be added' if dry_run else 'added'}"
        yield f"{self.known} in the catalogue already"
        yield f"{self.refused.total()} refused"
        yield from (f"  {n:>8}  {reason}" for reason, n in self.refused.most_common())
        yield f"{self.repaired.total()} repairs"
        yield from (f"  {n:>8}  {repair}" for repair, n in self.repaired.most_common())


def import_books(
    reading: Reading, loader: Loader, rejects: Rejects, report: Report, *, strict_isbn: bool
) -> None:
    """Add the books of a source to the catalogue, and write refused records to `rejects`.

    `report` is updated even if an error is raised. A damaged source or Ctrl-C ends the import early
    without an error. Records before the damage are imported. After Ctrl-C, the last batch may not
    be imported.
    """
    with Progress(reading.source.size) as progress, Interrupt() as interrupt:
        try:
            _read_all(reading, loader, rejects, report, progress, interrupt, strict_isbn)
        except SourceError as error:
            report.broken = str(error)
        except KeyboardInterrupt:
            report.stopped = True
            loader.finish()
        finally:
            progress.show(reading.source.position, report.read, report.refused.total())
            report.seconds = progress.seconds
            report.added, report.known = loader.added, loader.known


def _read_all(
    reading: Reading,
    loader: Loader,
    rejects: Rejects,
    report: Report,
    progress: Progress,
    interrupt: Interrupt,
    strict_isbn: bool,
) -> None:
    batch: list[Accepted] = []
    try:
        for record in interrupt.items(reading.records):
            verdict = validate_record(record, strict_isbn=strict_isbn)
            report.read += 1
            if isinstance(verdict, Refused):
                report.refused[verdict.reason] += 1
                rejects.write(record, verdict)
            else:
                report.repaired.update(verdict.repairs)
                batch.append(verdict)
            if len(batch) == BATCH_SIZE:
                loader.put(batch)
                batch = []
            if report.read % BATCH_SIZE == 0:
                progress.show(reading.source.position, report.read, report.refused.total())
    except SourceError:
        loader.put(batch)  # records before the damage are complete
        loader.finish()
        raise
    loader.put(batch)
    loader.finish()
