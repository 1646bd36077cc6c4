"""Seeded interleavings of the real cache, and defects that they must find.

A failing seed is printed: `run(seed)` repeats its history. `make soak` runs 10,000.
"""

import asyncio
import os
import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import Any

import pytest
from sqlalchemy import Select

from service.cache import (
    FAILURES,
    Entry,
    Kind,
    ListIds,
    ListQuery,
    entries,
    invalidation,
    items,
    lists,
    state,
    store,
)
from service.cache import change_tracking as change_tracking
from service.cache.change_tracking import changes_of
from service.cache.entries import LEASE, generation_key
from service.cache.items import Items
from service.cache.store import MemoryStore
from service.db.group_commit import MAX_TRANSACTIONS
from service.errors import ResourceNotFoundError
from service.models.cached import cached_model
from service.timeouts import LoopTimeout
from tests.simulation import (
    Row,
    Rows,
    Session,
    VirtualLoop,
    Weather,
    Worker,
    World,
    on_shelf,
    virtual_time,
)

pytestmark = pytest.mark.no_cover  # other tests cover the same code, and coverage makes it slow

SEEDS = 10_000 if os.environ.get("SOAK") else 200
MAX_SEEDS = 600  # in which the test must detect a defect
WORKERS, CLIENTS = 3, 3
HOT = 2  # number of newest rows of a kind, which clients read and write by their ids
GONE = 1 << 30  # the version of a row that was deleted: ids are never used twice


@dataclass
class Write:
    """A write of some rows, from its begin to its response (inf: there is none)."""

    rows: set[str]
    start: float
    end: float = inf


@dataclass
class History:
    """The responses that clients saw, and whether they are linear.

    Every response shows the state at a moment since the last write with a response, and no reader
    sees an older version than a reader before it. Where keys vanished during a write, its rows are
    unsure until its response: a reader may see the old or the new version of each of them.
    """

    world: World
    writes: list[Write] = field(default_factory=list)
    acknowledged: list[tuple[float, int, set[str]]] = field(default_factory=list)
    seen: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    hits: int = 0
    reads: int = 0

    def begin(self, rows: Iterable[str]) -> Write:
        """Note that a write begins now."""
        write = Write(set(rows), self.world.loop.now)
        self.writes.append(write)
        return write

    def wrote(self, write: Write, index: int) -> None:
        """Note that a write, which made a state, has its response now."""
        write.end = self.world.loop.now
        self.acknowledged.append((write.end, index, write.rows))

    def read(self, start: float, key: str, status: str, row: Row | None) -> None:
        """Check a row that was read."""
        self._hit(status)
        if row not in self._versions(start, key, self.unsure(start, self.world.loop.now)):
            self._violated(start, f"{key} {status}: {row}")
        self.saw(start, key, row)

    def read_shelf(
        self, start: float, name: str, status: str, rows: Rows | None, total: int
    ) -> None:
        """Check a list: its parts may be of several moments while any row is unsure.

        rows: None if the list is that of a novel which is not there.
        """
        self._hit(status)
        states, unsure = self.world.commits, self.unsure(start, self.world.loop.now)
        if not unsure:
            seen = [on_shelf(state, name) for state in states[self._least(start) :]]
            is_right = rows in seen and total == len(rows or ())
        else:
            versions = {key: self._versions(start, key, unsure) for key in set().union(*states)}
            is_on = {key: {row is not None and row.shelf == name for row in known}
                     for key, known in versions.items()}  # fmt: skip
            novel = set(versions.get(name, [None])) if ":" in name else {Row(1, "")}
            is_right = (
                None in novel
                if rows is None
                else novel != {None}
                and all((key in rows) in where for key, where in is_on.items())
                and all(row in versions[key] for key, row in rows.items())
                and sum(map(all, is_on.values())) <= total <= sum(map(any, is_on.values()))
            )
        if not is_right:
            self._violated(start, f"shelf {name} {status}: {rows}, {total}")
        for key, row in ({name: None} if rows is None else rows).items():
            self.saw(start, key, row)

    def check_samples(self) -> None:
        """Check that samples were stale only where a row was unsure; a list has any row."""
        for start, end, key in self.world.stale:
            unsure = self.unsure(start, end)
            if not (key in unsure or (key.startswith("page ") and unsure)):
                self.violations.append(f"{start:.4f} a sample of {key} was stale at {end:.4f}")

    def _hit(self, status: str) -> None:
        self.reads += 1
        self.hits += status == "hit"

    def _violated(self, start: float, text: str) -> None:
        self.violations.append(f"{start:.4f} {text}, now {self.world.rows}")

    def _least(self, start: float, key: str | None = None) -> int:
        """Return the last state whose write, of a row, had its response before a read began."""
        return max(
            (index for end, index, rows in self.acknowledged
             if end < start and (key is None or key in rows)),
            default=0,
        )  # fmt: skip

    def _versions(self, start: float, key: str, unsure: set[str]) -> list[Row | None]:
        """Return the versions of a row that a reader may see."""
        least = self._least(start, key if key in unsure else None)
        return [state.get(key) for state in self.world.commits[least:]]

    def unsure(self, start: float, end: float) -> set[str]:
        """Return the rows of writes without a response during a read, if keys vanished."""
        return {
            key
            for write in self.writes
            if write.start <= end and start <= write.end
            and any(write.start <= lost <= min(write.end, end) for lost in self.world.losses)
            for key in write.rows
        }  # fmt: skip

    def saw(self, start: float, key: str, row: Row | None) -> None:
        """Check that no reader sees an older version than a reader before it."""
        if key in self.unsure(start, self.world.loop.now):
            return
        ever = any(key in state for state in self.world.commits)
        version = row.version if row else GONE if ever and key not in self.world.rows else 0
        known = self.seen.setdefault(key, [])
        newest = max((version for end, version in known if end < start), default=0)
        if version < newest:
            self.violations.append(f"{start:.4f} {key}: {version} after {newest}")
        known.append((self.world.loop.now, version))


def write_row(key: str, row: Row) -> bytes:
    """Return the body of a row."""
    return f"{key} {row.version} {row.shelf}".encode()


def read_row(body: bytes) -> tuple[str, Row]:
    """Read the body of a row."""
    key, version, shelf = body.decode().split()
    return key, Row(int(version), shelf)


def kind_of(name: str) -> Kind:
    """Make a kind whose rows are rows of the world."""

    async def load(db: Any, ids: Any) -> dict[int, Entry]:
        keys = {row_id: f"{name}:{row_id}" for row_id in ids}
        entries: dict[int, Entry] = await db.read(
            lambda rows: {
                row_id: Entry(b"%d" % rows[key].version, write_row(key, rows[key]))
                for row_id, key in keys.items()
                if key in rows
            }
        )
        return entries

    return Kind(name, "1", load, lambda row: row)


KINDS = {name: kind_of(name) for name in ("novel", "note")}


def shelf(name: str) -> ListQuery:
    """List the novels of a shelf, or the notes of a novel. Raises ResourceNotFoundError."""

    async def rows_on(db: Any) -> Rows:
        rows: Rows | None = await db.read(lambda rows: on_shelf(rows, name))
        if rows is None:
            raise ResourceNotFoundError
        return dict(sorted(rows.items(), key=lambda row: _number(row[0])))

    async def find(db: Any, wanted: tuple[bool, bool]) -> ListIds:
        rows = await rows_on(db)
        return ListIds(
            tuple(map(_number, rows)) if wanted[0] else None, len(rows) if wanted[1] else None
        )

    async def read_all(db: Any) -> Any:
        rows = await rows_on(db)
        return [write_row(key, row) for key, row in rows.items()], len(rows), None

    kind = KINDS["note" if ":" in name else "novel"]
    return ListQuery(kind, {"shelf": name}, [], counted=True, find=find, read_all=read_all)


def _number(key: str) -> int:
    return int(key.partition(":")[2])


def change(db: Any, key: str, row: Row) -> None:
    """Write a row, as a session tracks it."""
    db.changes[key] = row
    changes_of(db).add(cached_model(key.partition(":")[0]), [_number(key)])


async def create(db: Any, given: Sequence[tuple[str, str]], alone: bool) -> list[Session]:
    """Add novels, all in one transaction."""
    assert not alone, "no novel can be refused"
    for key, name in given:
        change(db, key, Row(1, name))
    return [db] * len(given)


class Client:
    """Reads and writes through a place, in which a killed worker is replaced."""

    def __init__(self, places: list[Worker], place: int, history: History, think: float) -> None:
        self._places, self._place = places, place
        writes = history.world.weather.writes
        self._weights = (80, 60, writes / 2, writes / 2, writes / 20, writes / 8)
        self._history, self._think = history, think
        self._chance = history.world.chance

    async def run(self, until: float) -> None:
        """Send a request after another."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            await asyncio.sleep(self._chance.expovariate(1 / self._think))
            worker = self._places[self._place]
            ways = (
                self.item,
                self.shelf,
                self.write,
                self.write_twice,
                self.create_several,
                self.delete,
            )
            do = self._chance.choices(ways, self._weights)[0]
            request = asyncio.create_task(do(worker))
            await asyncio.wait({request}, timeout=15)
            request.cancel()
            await asyncio.wait({request})
            if not request.cancelled() and not isinstance(
                request.exception(), TimeoutError | OSError | type(None)
            ):
                await request  # the only errors are those of a database that does not reply

    def _key(self, kind: str, beyond: int = 0) -> str:
        """Choose one of the newest rows, which may be deleted, or of the next `beyond` rows."""
        after = self._history.world.next_id[kind]
        return f"{kind}:{self._chance.randrange(max(1, after - HOT), after + beyond)}"

    def _new_key(self, kind: str) -> str:
        world = self._history.world
        world.next_id[kind] += 1
        return f"{kind}:{world.next_id[kind] - 1}"

    async def item(self, worker: Worker) -> None:
        start = asyncio.get_running_loop().time()
        name = self._chance.choice(tuple(KINDS))
        key, kind = self._key(name, 1), KINDS[name]
        items, entry, status = worker.cache.items, None, "hit"
        if self._chance.random() < 0.3:
            prefetch = items.prefetch(kind, _number(key))
            await self._history.world.delay(0.02)  # its admission takes a while
            entry = items.take(prefetch, kind, _number(key))
        if entry is None:
            entry, status = await items.read(kind, _number(key))
        row = read_row(entry.body)[1] if entry.body else None
        self._history.read(start, key, status, row)

    async def shelf(self, worker: Worker) -> None:
        start = asyncio.get_running_loop().time()
        name = self._chance.choice(("A", "B", self._key("novel"), self._key("novel")))
        try:
            rows = await worker.cache.lists.read(shelf(name))
        except ResourceNotFoundError:
            self._history.read_shelf(start, name, "miss", None, 0)
            return
        shown = dict(read_row(body) for body in rows.bodies)
        self._history.read_shelf(start, name, rows.status, shown, rows.total)

    async def write_twice(self, worker: Worker) -> None:
        await asyncio.gather(self.write(worker), self.write(worker))

    async def create_several(self, worker: Worker) -> None:
        await asyncio.gather(*(self.create(worker) for _ in range(MAX_TRANSACTIONS + 3)))

    async def create(self, worker: Worker) -> None:
        given = self._new_key("novel"), self._chance.choice("AB")
        write = self._history.begin([given[0]])
        self._history.wrote(write, (await worker.database.write_batched(create, given)).index)

    async def write(self, worker: Worker) -> None:
        """Change a row, which may move to another list, or add a row."""
        kind = self._chance.choice(tuple(KINDS))
        is_new = self._chance.random() < 0.2
        key = self._new_key(kind) if is_new else self._key(kind)
        name = self._chance.choice("AB") if kind == "novel" else self._key("novel")

        async def work(db: Any) -> None:
            # A foreign key locks the row that it refers to.
            if kind == "note" and await db.lock(name) is None:
                return
            row = await db.lock(key)
            if row is not None or is_new:
                change(db, key, Row(row.version + 1 if row else 1, name))

        await self._write(worker, key, work)

    async def delete(self, worker: Worker) -> None:
        """Delete a row while another write may add a note to it."""
        key = self._key(self._chance.choice(("novel", "novel", "note")))
        await asyncio.gather(
            self._write(worker, key, lambda db: db.delete(key)), self.write(worker)
        )

    async def _write(self, worker: Worker, key: str, work: Any) -> None:
        write, sessions = self._history.begin([key]), []

        async def noting(db: Any) -> None:
            sessions.append(db)
            await work(db)
            write.rows.update(db.changes)

        await worker.database.write(noting)
        if isinstance(sessions[-1], Session) and sessions[-1].changes:
            self._history.wrote(write, sessions[-1].index)


async def nemesis(world: World, places: list[Worker], horizon: float) -> None:
    """Cause faults of the store, the wires and the workers."""
    chance, dump = world.chance, dict[str, bytes]()
    while True:
        await asyncio.sleep(chance.random() * horizon / 3)
        place = chance.randrange(WORKERS)
        faults = ("dump", "restart", "down", "cut", "slow", "kill", "stale", "forget", "forget")
        match chance.choice(faults):
            case "dump":
                dump = dict(world.server.aio._cache)  # private: aiocache has no list of keys
            case "restart":
                await world.restart({})
            case "stale":
                await world.restart(dump)
            case "down":
                world.is_up = False
                await asyncio.sleep(chance.random() * 3)
                world.is_up = True
            case "cut":
                places[place].wire.cut = True
                await asyncio.sleep(chance.random() * 3)
                places[place].wire.cut = False
            case "slow":
                world.slow = chance.choice((0.05, 0.2))
                await asyncio.sleep(chance.random() * 2)
                world.slow = 0.0
            case "forget":
                world.forgetting = chance.choice((0.005, 0.02, 0.1))
                await asyncio.sleep(chance.random() * horizon / 2)
                world.forgetting = 0.0
            case "kill":
                places[place].kill()
                await asyncio.sleep(chance.random())
                places[place] = Worker(world)
                await places[place].start()


async def history_of(chance: random.Random, loop: VirtualLoop, weather: Weather) -> History:
    """Run the clients and the nemesis, and return the history."""
    world = World(chance, loop, weather)
    history = History(world)
    places = [Worker(world) for _ in range(WORKERS)]
    for worker in places:
        await worker.start()
    horizon = chance.choice((0.5, 0.5, 1.0, 1.0, 1.0, 30.0))
    faults = asyncio.create_task(nemesis(world, places, horizon)) if weather.faults else None
    clients = [
        Client(places, place, history, horizon / 60)
        for place in range(WORKERS)
        for _ in range(CLIENTS)
    ]
    await asyncio.gather(*(client.run(horizon) for client in clients))
    if faults is not None:
        assert not faults.done() or not faults.exception()
    history.check_samples()
    world.row.close()
    return history


def run(seed: int, weather: Weather | None = None) -> History:
    """Run a history in some weather."""
    random.seed(seed)
    chance = random.Random(seed)
    weather = weather or Weather.some(chance)
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(history_of(chance, loop, weather))
    finally:
        stop(loop)


def stop(loop: VirtualLoop) -> None:
    """End all tasks that are still under way."""
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop._selector.select = lambda timeout=None: []  # private: the loop has no other seam
    for _ in range(20):
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_a_write_ends_the_lists_of_its_kinds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    virtual_time(monkeypatch)
    loop = VirtualLoop()
    world = World(random.Random(1), loop, Weather(False, 0.0, 0.0, 0.0, 0.0, 0))
    names = ("A", "novel:1", "novel:2")

    async def statuses(worker: Worker) -> list[str]:
        """Read each list, and wait until it is filled."""
        seen: list[str] = []
        for name in names:
            try:
                seen.append((await worker.cache.lists.read(shelf(name))).status)
            except ResourceNotFoundError:
                seen.append("gone")
            await asyncio.sleep(1)
        return seen

    async def scenario() -> list[list[str]]:
        worker = Worker(world)
        await worker.start()
        seen = [await statuses(worker), await statuses(worker)]
        for work in (
            lambda db: write(db, "note:1", Row(2, "novel:1")),
            lambda db: write(db, "novel:1", Row(2, "A")),
            lambda db: db.delete("novel:2"),
            lambda db: db.delete("novel:1"),
        ):
            await worker.database.write(work)
            seen.append(await statuses(worker))
        return seen

    async def write(db: Any, key: str, row: Row) -> None:
        change(db, key, row)

    try:
        assert loop.run_until_complete(scenario()) == [
            ["miss", "miss", "miss"],
            ["hit", "hit", "hit"],
            ["hit", "miss", "miss"],  # a note
            ["miss", "hit", "hit"],  # a novel
            ["miss", "miss", "gone"],  # a novel without notes
            ["miss", "gone", "gone"],  # a novel and its note
        ]
    finally:
        stop(loop)
        world.row.close()


@pytest.mark.timeout(3_600 if SEEDS > 1_000 else 240)
def test_every_interleaving_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    virtual_time(monkeypatch)
    reads = hits = losses = 0
    for seed in range(SEEDS):
        history = run(seed)
        assert not history.violations, f"seed {seed}: {history.violations}"
        reads, hits = reads + history.reads, hits + history.hits
        losses += len(history.world.losses)
    print(f"{SEEDS} seeds, {reads} reads, {hits} of them hits; keys vanished {losses} times")
    assert losses > SEEDS
    assert hits > reads / 6, "the cache is used: a cache without hits is never stale"


class _Any(bytes):
    """Equal to everything."""

    __hash__ = bytes.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


def without_token(patch: pytest.MonkeyPatch) -> None:
    """Fill a key without regard to its present value."""

    async def fill(self: Items, key: str, value: bytes, is_row: bool, lease: bytes) -> None:
        await self._reader.store.fill([(key, value, 300.0)])

    async def fill_many(self: Items, values: Any, lease: bytes) -> None:
        await self._reader.store.fill(values)

    patch.setattr(Items, "_fill", fill)
    patch.setattr(Items, "_fill_many", fill_many)


def without_mark(patch: pytest.MonkeyPatch) -> None:
    """Commit without a mark, and delete the entries afterwards."""

    async def mark(self: Any, state: Any, changed: Any) -> Any:
        return invalidation.Mark(state.prefix, tuple(changed.keys), "none", tuple(changed.lists))

    patch.setattr(invalidation.Invalidation, "_mark", mark)


def without_wait(patch: pytest.MonkeyPatch) -> None:
    """Do not wait until leases on the epoch before have ended."""
    patch.setattr(invalidation, "SETTLED_SECONDS", -1_000.0)
    patch.setattr(state, "SETTLED_SECONDS", -1_000.0)


def without_run_id(patch: pytest.MonkeyPatch) -> None:
    """Take any Redis that replies for the store."""
    patch.setattr(store, "run_of", lambda key: _Any())


def without_mark_check(patch: pytest.MonkeyPatch) -> None:
    """Fill where a write is under way."""
    patch.setattr(items, "may_be_filled", lambda value: not (value or b"").startswith(LEASE))


def without_generation(patch: pytest.MonkeyPatch) -> None:
    """Use a list of any generation."""

    def read(value: bytes | None, key: str) -> Entry | None:
        entry = entries.read(value, key)
        return entry and Entry(_Any(entry.stamp), entry.body)

    patch.setattr(lists, "read", read)


def without_writers(patch: pytest.MonkeyPatch) -> None:
    """Let the first of several writers that ends begin a new generation."""
    unmark = MemoryStore.unmark

    async def alone(self: MemoryStore, *values: Any) -> None:
        for writers in self._writers.values():
            for other in writers.keys() - {values[2]}:
                del writers[other]
        await unmark(self, *values)

    patch.setattr(MemoryStore, "unmark", alone)


def without_new_generation(patch: pytest.MonkeyPatch) -> None:
    """Begin a generation only where the write's own mark is left."""
    unmark = MemoryStore.unmark

    async def mine(self: MemoryStore, prefix: str, keys: Any, token: str, lists: Any) -> None:
        lost = [kind for kind in lists if token not in self._writers[kind]]
        before = {kind: await self.get(prefix + generation_key(kind)) for kind in lost}
        await unmark(self, prefix, keys, token, lists)
        for kind, generation in before.items():
            if generation is not None and not self._writers[kind]:
                await self.aio.set(prefix + generation_key(kind), generation, ttl=30.0)

    patch.setattr(MemoryStore, "unmark", mine)


def without_confirmation(patch: pytest.MonkeyPatch) -> None:
    """Respond to a write although it is unknown whether its marks were cleared."""

    async def after_commit(self: invalidation.Invalidation, mark: invalidation.Mark | None) -> None:
        if mark is not None and self._store is not None:
            with suppress(*FAILURES):
                async with LoopTimeout(self._timeout):
                    await self._store.unmark(mark.prefix, mark.keys, mark.token, mark.lists)

    patch.setattr(invalidation.Invalidation, "after_commit", after_commit)


def without_cascade(patch: pytest.MonkeyPatch) -> None:
    """Mark a deleted row, but no row that the database deletes with it."""
    patch.setattr(change_tracking, "dependent_rows", lambda *_: {})


def without_dependent_lists(patch: pytest.MonkeyPatch) -> None:
    """End the lists of a child's kind only where a child is deleted."""
    patch.setattr(change_tracking, "dependent_models", lambda table: set())


def without_parent_lock(patch: pytest.MonkeyPatch) -> None:
    """Select the children of a row without a lock: another write may add a child."""
    patch.setattr(Select, "with_for_update", lambda query: query)


def without_own_generation(patch: pytest.MonkeyPatch) -> None:
    """Judge the lists of every kind by the generation of one kind."""
    patch.setattr(Kind, "generation_key", property(lambda self: generation_key("novel")))


FORGETFUL = Weather(False, 0.003, 0.001, 0.5, 0.0, 5)
BUSY = Weather(False, 0.0, 0.001, 0.0, 0.0, 20)
LATE = Weather(False, 0.0, 0.001, 0.0, 0.1, 20)
WEATHERS = {  # weather in which the defect matters more often; else any weather
    without_writers: LATE,
    without_new_generation: FORGETFUL,
    without_confirmation: FORGETFUL,
    without_mark_check: LATE,
    without_parent_lock: BUSY,
}


@pytest.mark.parametrize(
    "defect",
    [
        without_token,
        without_mark,
        without_wait,
        without_run_id,
        without_mark_check,
        without_generation,
        without_writers,
        without_new_generation,
        without_confirmation,
        without_cascade,
        without_dependent_lists,
        without_parent_lock,
        without_own_generation,
    ],
)
def test_a_defect_is_detected(monkeypatch: pytest.MonkeyPatch, defect: Any) -> None:
    virtual_time(monkeypatch)
    defect(monkeypatch)
    weather = WEATHERS.get(defect)
    seed = next((seed for seed in range(MAX_SEEDS) if run(seed, weather).violations), None)
    assert seed is not None
    print(f"detected by seed {seed}")
