"""octavo seed-db, import-books: add books to the catalogue."""

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
@click.option("--books", type=click.IntRange(min=1), help="Number of plausible books to make up.")
@click.option("--seed", type=int, help="Equal seeds give equal made-up books.  [default: 1]")
def seed_db(books: int | None, seed: int | None) -> None:
    """Fill an empty catalogue with the books that come with Octavo, or add made-up ones.

    Made-up books resemble a real catalogue, for demonstrations and load tests. Each is added
    once: run the command again to continue after an interruption.
    """
    if books is not None:
        _seed_generated(books, 1 if seed is None else seed)
    elif seed is not None:
        raise click.UsageError("--seed is for made-up books: give their number with --books")
    else:
        fill_with_shipped_books()
    click.echo("Database seeded")


def _seed_generated(count: int, seed: int) -> None:
    # Imported here, because the lists of names take a second to load.
    from service.sample_data.generated import generated_books

    stopped = False
    with (
        Loader(load_from_environment()) as loader,
        Progress(count) as progress,
        Interrupt() as interrupt,
    ):
        try:
            for done in loader.load(generated_books(count, seed)):
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
    help="Default: detected from the first bytes of the file, else from its name.",
)
@click.option(
    "--map",
    "given",
    type=_Map(),
    default={},
    help="Columns of the fields title, author, isbn, published_year, genre and price, if their"
    " names differ. A field without a column is left out. A field that is given twice takes its"
    " first column with a value.",
)
@click.option(
    "--encoding", help="Encoding of CSV. Default: UTF-16 if it has a byte order mark, else UTF-8."
)
@click.option(
    "--owner", help="Username of the owner. Without an owner, only administrators edit the books."
)
@click.option(
    "--rejects",
    type=click.Path(dir_okay=False, writable=True),
    help="File for the refused records, as JSON Lines with the reason.",
)
@click.option("--dry-run", is_flag=True, help="Report what would happen, and change nothing.")
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

    Values are repaired where no guess is needed. Records that the catalogue does not allow are
    refused and counted. Run the command again after an interruption, or with a newer file: a
    record that is in the catalogue is not added twice.
    """
    settings = load_from_environment()
    if rejects is not None and _is_same(file, rejects):
        raise click.BadParameter("this is the file to import", param_hint="--rejects")
    strict = settings.isbn_checksum == "strict"
    report = Report()
    try:
        with (
            open_reading(file, kind, encoding, given) as reading,
            Loader(settings, owner, dry_run=dry_run) as loader,
        ):
            _print_source(reading)
            try:
                with Rejects(rejects) as refused:
                    run_import(reading, loader, refused, report, strict_isbn=strict)
            finally:
                _print_report(report, dry_run=dry_run)
    except SourceError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        report.stopped = True
    if rejects is not None and report.refused:
        click.echo(f"Refused records are in {rejects}")
    if report.stopped:
        _stop()
    if report.broken is not None:
        raise click.ClickException(
            f"{report.broken}. The counts above cover the records before it."
        )


def _is_same(file: str, rejects: str) -> bool:
    """Whether `--rejects` names the file to import, which it would overwrite."""
    if not os.path.isfile(rejects):
        return False
    try:
        source = os.fstat(sys.stdin.fileno()) if file == "-" else os.stat(file)
    except (OSError, ValueError, AttributeError):  # standard input is closed, or is not a file
        return False
    return os.path.samestat(source, os.stat(rejects))


def _print_report(report: Report, *, dry_run: bool) -> None:
    for line in report.lines(dry_run=dry_run):
        click.echo(line)


def _print_source(reading: Reading) -> None:
    source = "standard input" if reading.source.name == "-" else reading.source.name
    click.echo(f"Reading {reading.format} from {source}")
    for name, columns in (reading.columns or {}).items():
        click.echo(f"  {name}: {' or '.join(columns) or '(no column)'}")


def _stop() -> NoReturn:
    click.echo("Stopped. Run the same command again to go on.", err=True)
    sys.exit(EX_INTERRUPTED)
