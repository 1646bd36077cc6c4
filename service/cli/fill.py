"""octavo seed-db, import-books: books for a catalogue."""

import os
import sys
from typing import NoReturn

import click

from service.cli.database import fill_with_shipped_books
from service.config import load_from_environment
from service.importer.columns import ColumnMap, parse_map
from service.importer.importer import Reading, Rejects, Report, open_reading
from service.importer.importer import import_books as run_import
from service.importer.interrupt import Interrupt
from service.importer.loader import Loader
from service.importer.progress import Progress
from service.importer.sources import Format, SourceError

EX_INTERRUPTED = 130


@click.command("seed-db")
@click.option("--books", type=click.IntRange(min=1), help="Make up so many plausible books.")
@click.option("--seed", type=int, help="Which ones: the same for the same number.  [default: 1]")
def seed_db(books: int | None, seed: int | None) -> None:
    """Fill an empty catalogue with the books that come with Octavo, or add made-up ones.

    Made-up books look like a catalogue's: for trying out, and for load tests. Each is added once,
    so that a run that was interrupted can be gone on with.
    """
    if books is not None:
        _seed_plausible(books, 1 if seed is None else seed)
    elif seed is not None:
        raise click.UsageError("--seed chooses among made-up books: say how many with --books")
    else:
        fill_with_shipped_books()
    click.echo("Database seeded")


def _seed_plausible(count: int, seed: int) -> None:
    # Made-up names take a second to load: other commands need not wait for them.
    from service.plausible import plausible_books

    stopped = False
    with (
        Loader(load_from_environment()) as loader,
        Progress(count) as progress,
        Interrupt() as interrupt,
    ):
        try:
            for done in loader.load(plausible_books(count, seed)):
                interrupt.check()
                progress.show(done, done)
        except KeyboardInterrupt:
            stopped = True
        loader.finish()
    click.echo(f"{loader.added} books added, {loader.known} there already, with seed {seed}")
    if stopped:
        _stop()


class _Map(click.ParamType[ColumnMap]):
    name = "field=column,..."

    def convert(
        self, value: str | ColumnMap, param: click.Parameter | None, ctx: click.Context | None
    ) -> ColumnMap:
        if not isinstance(value, str):
            return value
        try:
            return parse_map(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


@click.command("import-books")
@click.argument(
    "file", type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True)
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["csv", "jsonl", "marc"]),
    help="Else told by how the file begins, or by its name.",
)
@click.option(
    "--map",
    "given",
    type=_Map(),
    default={},
    help="Columns of the fields title, author, isbn, published_year, genre and price, where their"
    " names do not say it. A field without a column is left out; of a field given twice, the"
    " first column counts that holds something.",
)
@click.option("--encoding", help="Of CSV; else UTF-8, or UTF-16 if it begins so.")
@click.option("--owner", help="User whose books these are; without one, administrators edit them.")
@click.option(
    "--rejects",
    type=click.Path(dir_okay=False, writable=True),
    help="Where to write the refused records, as JSON Lines with the reason.",
)
@click.option("--dry-run", is_flag=True, help="Say what would happen, and change nothing.")
def import_books(
    file: str,
    kind: Format | None,
    given: ColumnMap,
    encoding: str | None,
    owner: str | None,
    rejects: str | None,
    dry_run: bool,
) -> None:
    """Import books from FILE (- for standard input): CSV, JSON Lines or MARC 21, plain or gzip.

    What can be repaired without guessing is repaired; what the catalogue does not allow is
    refused and counted. Run it again after an interruption, or with a newer file: a record that
    is in the catalogue is not added twice.
    """
    settings = load_from_environment()
    if rejects is not None and _is_same(file, rejects):
        raise click.BadParameter("that is the file to import", param_hint="--rejects")
    strict = settings.isbn_checksum == "strict"
    report = Report()
    try:
        with (
            open_reading(file, kind, encoding, given) as reading,
            Loader(settings, owner, dry_run=dry_run) as loader,
        ):
            _say_what(reading)
            try:
                with Rejects(rejects) as refused:
                    run_import(reading, loader, refused, report, strict_isbn=strict)
            finally:
                _say_how(report, dry_run=dry_run)
    except SourceError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        report.stopped = True
    if rejects is not None and report.refused:
        click.echo(f"Refused records are in {rejects}")
    if report.stopped:
        _stop()
    if report.broken is not None:
        raise click.ClickException(f"{report.broken}. What could be read before is counted above.")


def _is_same(file: str, rejects: str) -> bool:
    """Whether the rejects would be written over what is read."""
    if not os.path.isfile(rejects):
        return False
    try:
        source = os.fstat(sys.stdin.fileno()) if file == "-" else os.stat(file)
    except (OSError, ValueError, AttributeError):  # standard input is closed, or no file
        return False
    return os.path.samestat(source, os.stat(rejects))


def _say_how(report: Report, *, dry_run: bool) -> None:
    for line in report.lines(dry_run=dry_run):
        click.echo(line)


def _say_what(reading: Reading) -> None:
    source = "standard input" if reading.source.name == "-" else reading.source.name
    click.echo(f"Reading {reading.format} from {source}")
    for name, columns in (reading.columns or {}).items():
        click.echo(f"  {name}: {' or '.join(columns) or '(no column)'}")


def _stop() -> NoReturn:
    click.echo("Stopped. Run the same command again to go on.", err=True)
    sys.exit(EX_INTERRUPTED)
