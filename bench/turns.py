"""Compare two checkouts of Octavo: the ratio of their requests per second, measured in turns.

    python -m bench.turns --before ../octavo-before --rounds 10

Both servers run at the same time, on the same core, each with a copy of the same database. They get
load in turns of one second (`--seconds`), and each pair of turns gives one ratio. The result is the
median of the ratios: the speed of a shared machine changes from second to second, for both servers.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from statistics import median

import asyncpg
import click
import httpx

from bench import wrk
from bench.contestants import ALL
from bench.server import DidNotStartError, Server, pin_everything_else, serving
from bench.stage import COPY, TEMPLATE, Facts, Stage, free_port, running_stage
from bench.work import CALLERS, caller, get, item_path, requests_of

CONNECTIONS = 32
DELETES = 1_500  # per turn, at most
WARM_SECONDS = 0.5
KINDS = (
    "item", "304", "page", "filtered", "create", "update", "delete", "profile", "user", "401",
    "404",
)  # fmt: skip
ERRORS = {"401", "404"}  # kinds whose responses are errors


def requests(kind: str, facts: Facts, tags: dict[str, str], series: int) -> list[bytes]:
    """Return the requests of a kind of work. series: number of the measurement of a server."""
    token = {"Authorization": f"Bearer {facts.tokens[0]}"}
    match kind:
        case "update":
            return [_write("PATCH", item_path(facts, n), n, token, n) for n in range(CALLERS)]
        case "delete":
            first = 1 + series * DELETES
            ids = range(first, first + DELETES)
            return [_write("DELETE", f"/api/books/{n}", n, token, None) for n in ids]
        case "profile":
            return [get("/api/profile", n, token) for n in range(CALLERS)]
        case "user":
            return [get(f"/api/users/{n % 100 + 1}", n) for n in range(CALLERS)]
        case "401":
            wrong = {"Authorization": "Bearer of.no.token"}
            return [get(item_path(facts, n), n, wrong) for n in range(CALLERS)]
        case "404":
            return [get(f"/api/books/{10**9 + n}", n) for n in range(CALLERS)]
    return requests_of(kind, facts, tags, 1, series=series, warming=not series)


def _write(method: str, path: str, number: int, token: dict[str, str], cents: int | None) -> bytes:
    body = b"" if cents is None else json.dumps({"price": cents / 100}).encode()
    more = {"Content-Type": "application/json", "Content-Length": str(len(body))} if body else {}
    headers = {"Host": "127.0.0.1", "X-Forwarded-For": caller(number), **token, **more}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


class Turns:
    """Measures checkouts, each with a copy of the same database."""

    def __init__(self, stage: Stage, facts: Facts, seconds: int, folder: Path) -> None:
        self._stage = stage
        self._facts = facts
        self._seconds = seconds
        self._requests = folder / "requests"

    def rates(self, kind: str, checkouts: Sequence[Path], rounds: int) -> Iterator[list[float]]:
        """Yield for each round the requests per second of each checkout at a kind of work."""
        self._stage.clear()
        with ExitStack() as stack:
            servers = [
                stack.enter_context(self._serving(checkout, f"{COPY}_{number}"))
                for number, checkout in enumerate(checkouts)
            ]
            tags = [_tags(server, self._facts) if kind == "304" else {} for server in servers]
            for server, server_tags in zip(servers, tags, strict=True):
                wrk.write_requests(requests(kind, self._facts, server_tags, 0), self._requests)
                wrk.warm(server.url, self._requests, WARM_SECONDS, CONNECTIONS)
            for number in range(rounds):
                pairs = [*zip(servers, tags, strict=True)][:: 1 if number % 2 else -1]
                rates = [self._measure(*pair, kind, 1 + number) for pair in pairs]
                yield rates[:: 1 if number % 2 else -1]

    def _serving(self, checkout: Path, database: str) -> AbstractContextManager[Server]:
        port = free_port()
        environment = self._stage.environment(self._stage.copy(database), port)
        environment["PYTHONPATH"] = str(checkout)
        command, path = ALL[0].command_on(port), item_path(self._facts, 0)
        return serving(str(checkout), command, port, environment, path)

    def _measure(self, server: Server, tags: dict[str, str], kind: str, series: int) -> float:
        wrk.write_requests(requests(kind, self._facts, tags, series), self._requests)
        server.rest()
        load = wrk.send(server.url, self._requests, self._seconds, CONNECTIONS)
        if load.errors and kind not in ERRORS:
            raise wrk.NotMeasuredError(f"{kind}: {load.errors:.1%} of the requests failed")
        return load.rate


def _tags(server: Server, facts: Facts) -> dict[str, str]:
    paths = {item_path(facts, n) for n in range(len(facts.ids))}
    return {path: httpx.get(server.url + path).headers["ETag"] for path in paths}


async def _assign_owner(stage: Stage) -> None:
    """Make the user of the first token the owner of all books, so that the user can change them."""
    db = await asyncpg.connect(stage.url(TEMPLATE))
    await db.execute("UPDATE books SET user_id = (SELECT min(id) FROM users)")
    await db.execute("VACUUM (ANALYZE)")
    await db.close()


@click.command()
@click.option("--before", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--books", type=click.IntRange(1_000), default=20_000, show_default=True)
@click.option("--seconds", type=click.IntRange(1, 60), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(1, 50), default=10, show_default=True)
@click.option("--kind", "kinds", type=click.Choice(KINDS), multiple=True, default=KINDS)
def main(before: Path, books: int, seconds: int, rounds: int, kinds: tuple[str, ...]) -> None:
    """Measure this checkout and the checkout in the folder BEFORE, in turns."""
    wrk.require_wrk()
    pin_everything_else()
    now = Path(__file__).resolve().parent.parent
    ratios: dict[str, list[float]] = {kind: [] for kind in kinds}
    rates: dict[str, float] = {}
    try:
        with running_stage() as stage, tempfile.TemporaryDirectory() as folder:
            turns = Turns(stage, stage.prepare(books), seconds, Path(folder))
            asyncio.run(_assign_owner(stage))
            for kind in kinds:
                for number, (rate, other) in enumerate(
                    turns.rates(kind, (now, before.resolve()), rounds)
                ):
                    ratios[kind].append(rate / other)
                    rates[kind] = max(rates.get(kind, 0.0), rate)
                    click.echo(f"{kind} {number + 1}: {ratios[kind][-1]:.2f}", err=True)
    except (DidNotStartError, wrk.NotMeasuredError) as error:
        sys.exit(str(error))
    for kind in kinds:
        low, high = min(ratios[kind]), max(ratios[kind])
        line = f"{kind:9} {median(ratios[kind]):.2f} times as fast ({low:.2f} to {high:.2f})"
        click.echo(f"{line}; at best {rates[kind]:,.0f}/s")


if __name__ == "__main__":
    main()
