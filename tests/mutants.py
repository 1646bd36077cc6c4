"""Mutation testing: small defects, put into a room one at a time, that its tests have to notice.

    python -m tests.mutants cache            # `make mutants ROOM=cache`

cosmic-ray makes the defects and keeps their results in `.mutants/<room>/`. A run that was
interrupted continues where it ended, as long as the commit is the same. A room takes hours. The
tests run in a copy of the checkout. The score is the share of the defects that a test notices.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import click

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".mutants"
TIMEOUT = 600  # seconds: a defect that hangs is noticed, too
REQUIRED = 90  # percent of the defects
# Arithmetic and comparisons change to their neighbours. The other operators of cosmic-ray make
# defects that fail at once, or change annotations.
EXCLUDED = [
    "core/ReplaceBinaryOperator_(?!Add_Sub|Sub_Add|Mul_FloorDiv|FloorDiv_Mul)",
    "core/ReplaceComparisonOperator_(?!Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt|Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is)",
    "core/ReplaceUnaryOperator_(?!Delete_Not)",
    "core/Variable",
]


class Room(NamedTuple):
    """The files to put defects into, and the tests that have to notice them, quick ones first."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


ROOMS = {
    "cache": Room(
        ("service/cache",),
        (
            "test_cache_store", "test_batch_loader", "test_cache", "test_cache_loss",
            "test_cache_cascades", "test_cache_recovery", "test_lists", "test_db_states",
            "test_cache_interleavings", "test_cache_faults",
        ),
    ),
    "limits": Room(
        ("service/limits",),
        ("test_limits_core", "test_limits", "test_limits_faults", "test_declared", "test_auth"),
    ),
    "guard": Room(
        ("service/http/auth.py",),
        ("test_current_user", "test_matrix", "test_auth", "test_credentials", "test_admin"),
    ),
    "security": Room(
        ("service/security",),
        ("test_security", "test_usernames", "test_clock", "test_auth", "test_credentials"),
    ),
    "db": Room(
        ("service/db",),
        (
            "test_db", "test_group_commit", "test_alter_table", "test_migrations", "test_lists",
            "test_counts", "test_db_states",
        ),
    ),
    "pagination": Room(("service/http/pagination.py",), ("test_lists", "test_books")),
    "http1": Room(("service/server/http1",), ("http1", "test_server", "test_http2")),
    "importer": Room(
        ("service/importer",),
        ("test_importer_repair", "test_importer_digest", "test_importer_formats", "test_importer"),
    ),
}  # fmt: skip


def configuration(room: Room) -> str:
    """Return cosmic-ray's configuration for a room, as TOML."""
    tests = " ".join(str(path) for name in room.tests for path in files_of(name))
    command = f"{sys.executable} -m pytest -x -q --no-header -p no:cacheprovider {tests}"
    return f"""[cosmic-ray]
module-path = {list(room.modules)!r}
timeout = {TIMEOUT}.0
excluded-modules = []
test-command = {command!r}
[cosmic-ray.distributor]
name = "local"
[cosmic-ray.filters.operators-filter]
exclude-operators = {EXCLUDED!r}
"""


def files_of(name: str) -> list[Path]:
    """Return the test file, or the folder of test files, of a name. Raises ValueError."""
    matches = sorted((ROOT / "tests").glob(f"{name}.py")) or sorted((ROOT / "tests").glob(name))
    if not matches:
        raise ValueError(f"There is no tests/{name}.py")
    return [path.relative_to(ROOT) for path in matches]


def prepare(folder: Path, room: Room) -> None:
    """Copy the checkout, and list the defects, unless a run of the same commit began earlier."""
    commit = _output("git", "rev-parse", "HEAD")
    mark = folder / "commit"
    if mark.is_file() and mark.read_text(encoding="utf-8") == commit:
        return
    shutil.rmtree(folder, ignore_errors=True)
    checkout = folder / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)
    (folder / "room.toml").write_text(configuration(room), encoding="utf-8")
    cosmic_ray(folder, "cosmic-ray", "init", "../room.toml", "../session.sqlite")
    cosmic_ray(folder, "cr-filter-operators", "../session.sqlite", "../room.toml")
    print("The tests of the room without a defect ...", flush=True)
    cosmic_ray(folder, "cosmic-ray", "baseline", "../room.toml")
    mark.write_text(commit, encoding="utf-8")


def cosmic_ray(folder: Path, *command: str, is_shown: bool = True) -> str:
    """Run a command of cosmic-ray in the copy; return its output. Exits if it fails."""
    program = Path(sys.executable).with_name(command[0])
    environment = os.environ | {"PYTHONPATH": str(folder / "checkout"), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [str(program), *command[1:]],
        cwd=folder / "checkout",
        env=environment,
        stdout=None if is_shown else subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise click.ClickException(f"{' '.join(command)} failed ({done.returncode})")
    return done.stdout or ""


def outcomes(session: Path) -> tuple[int, int]:
    """Return how many defects the tests noticed, and how many survived."""
    # cr-rate counts the defects that the filter leaves out as noticed.
    query = (
        "SELECT test_outcome = 'SURVIVED', count(*) FROM work_results "
        "WHERE worker_outcome = 'NORMAL' GROUP BY 1"
    )
    with closing(sqlite3.connect(session)) as database:
        counts = dict(database.execute(query).fetchall())
    return counts.get(0, 0), counts.get(1, 0)


def _output(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@click.command()
@click.argument("name", metavar="ROOM", type=click.Choice(list(ROOMS)))
def main(name: str) -> None:
    """Put defects into ROOM until all are done, and report those that no test notices."""
    folder = FOLDER / name
    prepare(folder, ROOMS[name])
    cosmic_ray(folder, "cosmic-ray", "exec", "../room.toml", "../session.sqlite")
    report = cosmic_ray(
        folder, "cr-report", "--surviving-only", "--show-diff", "../session.sqlite", is_shown=False
    )
    (folder / "survivors.txt").write_text(report, encoding="utf-8")
    noticed, survived = outcomes(folder / "session.sqlite")
    score = 100 * noticed / (noticed + survived)
    click.echo(
        f"{name}: {score:.1f} % of {noticed + survived} defects were noticed; "
        f"survivors: {folder}/survivors.txt"
    )
    sys.exit(score < REQUIRED)


if __name__ == "__main__":
    main()
