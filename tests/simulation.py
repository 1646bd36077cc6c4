"""The real cache of several workers on one thread, in simulated time.

Every command to the store and every statement takes a time from `random.Random(seed)`, is lost,
arrives late, or arrives twice. A worker may be killed anywhere. The store may be replaced, or lose
keys, at any moment. Only the wires are simulated: the store behind `Wire`, rows behind `Session`,
and the row of the epoch in SQLite. Rows are of two kinds, novels and notes: the database deletes
the notes of a novel with it.
"""

import asyncio
import logging
import random
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import pytest
from sqlalchemy import ForeignKey, Select
from sqlalchemy.dialects import sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.util import await_only, greenlet_spawn

import service.db.database
from service.cache import Cache, circuit_breaker, invalidation, lease, state, store
from service.cache.change_tracking import changes_of
from service.cache.reader import CacheReader
from service.cache.state import Epochs
from service.cache.store import AnotherStoreError, MemoryStore, Store
from service.config import Testing
from service.db.database import Database
from service.models.cached import cached, cached_model

T = TypeVar("T")

compared_since: ContextVar[float] = ContextVar("compared_since")  # of a sample

TWICE = 0.01  # of commands: the reply was lost, and the command is sent again


class Simulated(DeclarativeBase):
    """The models of the simulation."""


@cached("novel", lists=True)
class Novel(Simulated):
    """A parent."""

    __tablename__ = "novels"

    id: Mapped[int] = mapped_column(primary_key=True)


@cached("note", lists=True)
class Note(Simulated):
    """A child: a note on a novel."""

    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    novel_id: Mapped[int] = mapped_column(ForeignKey("novels.id", ondelete="CASCADE"))


class Row(NamedTuple):
    """A row of a simulated table. `shelf` is its list; the list of a note is that of its novel."""

    version: int
    shelf: str


Rows = dict[str, Row]  # by `novel:1` or `note:1`


def on_shelf(rows: Rows, name: str) -> Rows | None:
    """Return the rows of a list. None: the list is that of a missing novel."""
    if ":" in name and name not in rows:
        return None
    return {key: row for key, row in rows.items() if row.shelf == name}


class Weather(NamedTuple):
    """How many faults there are, and how often clients write beside 140 reads.

    faults: whether the nemesis causes faults. forgetting: how often keys of the store vanish at
    each wait. loss: share of commands that come late or never; a write that loses a command turns
    the cache off. second_loss: share of lost clearings where keys have just vanished.
    clearing: additional seconds, at most, to clear marks.
    """

    faults: bool
    forgetting: float
    loss: float
    second_loss: float
    clearing: float
    writes: int

    @classmethod
    def some(cls, chance: random.Random) -> "Weather":
        """Choose a weather."""
        faults, forgetful = chance.choice(((True, 0), (True, 0), (False, 1), (False, 0)))
        return cls(
            faults,
            forgetful * chance.choice((0.001, 0.003)),
            chance.choice((0.001, 0.001, 0.01)),
            chance.choice((0.0, 0.7)),
            chance.choice((0.0, 0.06)),
            chance.choice((2, 5, 20)),
        )


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop that never waits: when it is idle, its time jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._selector: Any
        self._selector.select = self._pass_time

    def time(self) -> float:
        """Return the simulated time."""
        return self.now

    def _pass_time(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "every task waits for ever"
        self.now += timeout
        return []


def virtual_time(patch: pytest.MonkeyPatch) -> None:
    """Let the service use the time of the loop."""
    clock = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time())
    for module in (circuit_breaker, lease, store, invalidation, service.db.database):
        patch.setattr(module, "time", clock)
    patch.setattr(state, "CLOCK", {"postgresql": "now()"})


class World:
    """The state that all workers share: the rows and their history, locks, and the store."""

    def __init__(self, chance: random.Random, loop: VirtualLoop, weather: Weather) -> None:
        self.chance = chance
        self.weather = weather
        self.loop = loop
        first = {"novel:1": Row(1, "A"), "novel:2": Row(1, "B"), "note:1": Row(1, "novel:1")}
        self.commits: list[Rows] = [first]
        self.next_id = {"novel": 3, "note": 2}
        self.locks: dict[str, asyncio.Lock] = {}
        self.unmarked = 0  # holders of the shared advisory lock; a recovery needs it exclusively
        self.server = self._new_server()
        self.is_up = True
        self.never = asyncio.Event()
        self.workers: list[Worker] = []
        self.slow = 0.0
        self.forgetting = weather.forgetting
        self.losses: list[float] = []  # when keys vanished
        self.stale: list[tuple[float, float, str]] = []  # samples: begin, end, name
        self.row = sqlite3.connect(":memory:", isolation_level=None)
        self.row.create_function("now", 0, lambda: self.loop.now)
        free = "pg_try_advisory_xact_lock"
        self.row.create_function(free, 1, lambda _: self.unmarked == 0)
        self.row.execute("CREATE TABLE cache_state (epoch, token, mode, run_id, changed_at)")
        self.row.execute(
            "INSERT INTO cache_state VALUES (1, 'first', 'on', ?, -100.0)",
            (self.server.run_id,),
        )
        self.row.execute("CREATE TABLE novels (id)")
        self.row.execute("CREATE TABLE notes (id, novel_id)")

    @property
    def rows(self) -> Rows:
        """The rows as they are."""
        return self.commits[-1]

    def select(self, query: Any) -> list[tuple[int, ...]]:
        """Run a real SELECT on the rows as they are."""
        for table in ("novels", "notes"):
            self.row.execute(f"DELETE FROM {table}")
        for key, row in self.rows.items():
            kind, _, number = key.partition(":")
            if kind == "novel":
                self.row.execute("INSERT INTO novels VALUES (?)", (int(number),))
            else:
                values = int(number), int(row.shelf.removeprefix("novel:"))
                self.row.execute("INSERT INTO notes VALUES (?, ?)", values)
        sql = query.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
        return self.row.execute(str(sql)).fetchall()

    def _new_server(self) -> MemoryStore:
        return MemoryStore(1_000)

    async def restart(self, dump: dict[str, bytes]) -> None:
        """Start another store, from an old dump."""
        self.server = self._new_server()
        for key, value in dump.items():
            await self.server.aio.set(key, value, ttl=200.0)

    async def delay(self, longest: float = 0.004) -> None:
        """Wait a while, and sometimes much longer. Keys may vanish before and after."""
        longest *= self.chance.choice((0, 1, 1, 1, 1, 1, 1, 20))
        await self.forget()
        await asyncio.sleep(self.chance.random() * longest)
        await self.forget()

    async def forget(self, times: int = 1) -> None:
        """Let keys of the store vanish with some probability: all, one, or one that guards.

        times: factor of the probability.
        """
        if self.chance.random() >= times * self.forgetting:
            return
        entries = self.server.aio._cache  # private: aiocache has no list of keys
        guards = [k for k, v in entries.items() if v[:1] in b"WGL"]
        match self.chance.choice(("all", "all", "single", "guard", "gen", "writers")):
            case "all":
                lost = [*entries]
                self.server._writers.clear()  # private: no public method loses writers
            case "single":
                lost = self.chance.sample([*entries], min(1, len(entries)))
            case "guard":
                lost = self.chance.sample(guards, min(1, len(guards)))
            case "gen":
                lost = [key for key in guards if ":gen:" in key]
            case _:
                lost = []
                self.server._writers.clear()  # private: no public method loses writers
        for key in lost:
            await self.server.aio.delete(key)
        self.losses.append(self.loop.now)


class Wire(Store):
    """A worker's connection to the store."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker
        self._world = worker.world
        self._requests: set[asyncio.Task[None]] = set()
        self.cut = False

    async def _call(self, name: str, *values: Any) -> Any:
        world = self._world
        await self._worker.alive()
        await asyncio.sleep(world.chance.random() * world.slow)
        await world.delay(0.002)
        if not world.is_up:
            raise ConnectionError
        server = world.server
        if name != "identify" and store.run_of(_key_of(values)) != server.run_id:
            raise AnotherStoreError
        fate, loss = world.chance.random(), world.weather.loss
        if name == "unmark":
            await asyncio.sleep(world.chance.random() * world.weather.clearing)
            if world.losses and world.loop.now - world.losses[-1] < 0.1:
                loss = max(loss, world.weather.second_loss)
        if self.cut or fate < loss / 2:
            await asyncio.sleep(20)  # the command is lost
        if fate < loss:  # it arrives when its caller does not wait any more
            asyncio.get_running_loop().create_task(self._late(server, name, values))
            await asyncio.sleep(20)
        reply = await getattr(server, name)(*values)
        await world.delay(0.002)
        if world.chance.random() < TWICE and server is world.server:
            reply = await getattr(server, name)(*values)
        return reply

    async def _late(self, server: MemoryStore, name: str, values: tuple[Any, ...]) -> None:
        await asyncio.sleep(self._world.chance.random() * 5)
        if server is self._world.server:
            await getattr(server, name)(*values)

    def call(self, keys: Sequence[str], callback: Callable[[Any], None]) -> None:
        async def read() -> None:
            try:
                callback((store.run_of(keys[0]), await self.get_many(keys)))
            except AnotherStoreError:
                callback((self._world.server.run_id, [None for _ in keys]))
            except ConnectionError as error:
                callback(error)

        request = asyncio.create_task(read())
        self._requests.add(request)
        request.add_done_callback(self._requests.discard)

    async def get(self, key: str) -> Any:
        return await self._call("get", key)

    async def get_many(self, keys: Sequence[str]) -> Any:
        return await self._call("get_many", keys)

    async def add(self, key: str, value: bytes, seconds: float) -> Any:
        return await self._call("add", key, value, seconds)

    async def replace(self, key: str, value: bytes, seconds: float, expected: bytes) -> Any:
        return await self._call("replace", key, value, seconds, expected)

    async def mark(
        self, prefix: str, keys: Sequence[str], token: str, lists: Sequence[str]
    ) -> None:
        await self._call("mark", prefix, keys, token, lists)

    async def unmark(
        self, prefix: str, keys: Sequence[str], token: str, lists: Sequence[str]
    ) -> None:
        await self._call("unmark", prefix, keys, token, lists)

    async def generation(self, prefix: str, kind: str) -> Any:
        return await self._call("generation", prefix, kind)

    async def lease(self, keys: Sequence[str], lease: bytes, seconds: float) -> Any:
        return await self._call("lease", keys, lease, seconds)

    async def fill(
        self, values: Sequence[tuple[str, bytes, float]], lease: bytes | None = None
    ) -> Any:
        return await self._call("fill", values, lease)

    async def sweep(self, prefix: str) -> Any:
        return await self._call("sweep", prefix)

    async def identify(self) -> Any:
        return await self._call("identify")


def _key_of(values: tuple[Any, ...]) -> str:
    """Return the first key of a command."""
    first: Any = values[0]
    while not isinstance(first, str):
        first = first[0]
    return first


class Session:
    """A transaction of a worker on rows that it has locked. Its isolation is read committed."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker
        self._world = worker.world
        self._held: dict[str, asyncio.Lock] = {}
        self._shared = False
        self._ended = False
        self.committing = False
        self.changes: dict[str, Row | None] = {}
        self.sync_session = SimpleNamespace(info={})
        self.new = self.deleted = ()
        self.index = -1  # of the state that its commit made
        worker.sessions.add(self)

    @property
    def dirty(self) -> object:
        return self.changes

    async def __aenter__(self) -> "Session":
        await self._worker.alive()
        await self._world.delay()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.end()

    async def close(self) -> None:
        self.end()

    def get_bind(self) -> Any:
        return SimpleNamespace(dialect=SimpleNamespace(name="postgresql"))

    async def lock(self, key: str) -> Row | None:
        """Lock a row, and return its present version."""
        await self._world.delay()
        if key not in self._held:
            lock = self._world.locks.setdefault(key, asyncio.Lock())
            await lock.acquire()
            self._held[key] = lock
            await self._connected()
        return self._world.rows.get(key)

    async def delete(self, key: str) -> None:
        """Delete a row as an ORM session does, and the rows that the database deletes with it."""
        await self._world.delay()
        if key not in self._world.rows:
            return  # a session deletes what it has loaded
        model, number = cached_model(key.partition(":")[0]), int(key.partition(":")[2])
        await greenlet_spawn(changes_of(self).add_deleted, self, model.key.table, [[number]])  # type: ignore[arg-type]  # a stand-in
        if await self.lock(key) is None:
            return
        self.changes[key] = None
        for child in sorted(on_shelf(self._world.rows, key) or ()):
            row = await self.lock(child)
            if row is not None and row.shelf == key:
                self.changes[child] = None

    async def select(self, query: Any) -> list[tuple[int, ...]]:
        """Run a SELECT, which locks its rows if it has FOR UPDATE."""
        await self._world.delay()
        if query._for_update_arg is not None:  # private: SQLAlchemy shows it nowhere else
            kind = query.get_final_froms()[0].name.removesuffix("s")
            for number, *_ in self._world.select(query):
                await self.lock(f"{kind}:{number}")
        return self._world.select(query)

    async def flush(self) -> None:
        await self._world.delay()

    def execute(self, query: Any) -> Any:
        """Run a statement; within a greenlet also for a caller that is not a coroutine."""
        if isinstance(query, Select):
            return await_only(self.select(query))
        return self._execute(query)

    async def _execute(self, query: Any) -> Any:
        await self._worker.alive()
        await self._world.delay()
        if "advisory" in str(query):
            self._world.unmarked += 1
            self._shared = True
            await self._connected()
            return None
        row = self._world.row.execute(str(query)).fetchone()
        await self._world.delay()
        return SimpleNamespace(one=lambda: row)

    async def _connected(self) -> None:
        """Continue, unless the worker was killed: then the database releases its locks."""
        if self._ended:
            self.end()
        await self._worker.alive()

    async def commit(self) -> None:
        await self._worker.alive()
        self.committing = True
        await self._world.forget(100)
        await self._world.delay(0.05)
        self.apply()
        await self._world.delay()
        await self._worker.alive()
        self.end()

    def apply(self) -> None:
        """Make the next state, unless the worker was killed before."""
        if not self._ended:
            after = self._world.rows | {k: v for k, v in self.changes.items() if v}
            self._world.commits.append({k: v for k, v in after.items() if self.changes.get(k, v)})
            self.index = len(self._world.commits) - 1

    def end(self) -> None:
        """Release all locks."""
        self._ended = True
        self._worker.sessions.discard(self)
        for lock in self._held.values():
            lock.release()
        self._held.clear()
        self._world.unmarked -= self._shared
        self._shared = False


class SimulatedEpochs(Epochs):
    """Epochs whose statements reach the row of the world."""

    worker: "Worker"

    @property
    def is_postgresql(self) -> bool:
        return True

    async def _query(self, query: str, seconds: float = 2.0, **values: object) -> Any:
        world = self.worker.world
        await self.worker.alive()
        async with self._turn:
            await world.delay(0.02)
            if query.startswith("SELECT pg_try_advisory_lock"):
                return (True,)
            row = world.row.execute(query.removeprefix(state.PRIMARY), values).fetchone()
            await world.delay(0.02)
            return row


class SimulatedAccess(CacheReader):
    """A reader that reports stale samples to the world."""

    world: World

    def is_sampled(self) -> bool:
        """Note when a sample begins."""
        compared_since.set(self.world.loop.now)
        return super().is_sampled()

    def stale(self, name: str) -> None:
        """Note a row or a list whose sample was stale."""
        super().stale(name)
        self.world.stale.append((compared_since.get(), self.world.loop.now, name))


class Worker:
    """A process that serves: a real cache and a real write, on the world's wires."""

    def __init__(self, world: World) -> None:
        self.world = world
        world.workers.append(self)
        self.sessions: set[Session] = set()
        self._killed = False
        settings = Testing.model_validate({"redis_url": None})
        self.wire = Wire(self)
        self.cache = Cache(settings, logging.getLogger("simulation"), self.wire)
        self.cache.epochs.__class__ = SimulatedEpochs
        self.cache.epochs.worker = self  # type: ignore[attr-defined]  # a stand-in
        self.cache.epochs._clock = "now()"  # private: no real engine
        self.cache.epochs._engine = SimpleNamespace(  # type: ignore[assignment]  # private: a stand-in
            dialect=SimpleNamespace(name="postgresql")
        )
        self.cache.access.__class__ = SimulatedAccess
        self.cache.access.world = world  # type: ignore[attr-defined]  # a stand-in
        self.cache.access.sampled, self.cache.access.sampling_seconds = 0.2, 0.0
        self.database = Database(settings, self.cache)
        self.database._write = lambda: Session(self)  # type: ignore[assignment]  # private: a stand-in

    async def start(self) -> None:
        """Begin to serve."""
        await self.cache.open(self._reading)

    async def alive(self) -> None:
        """Continue, unless the worker was killed: then never."""
        if self._killed:
            await self.world.never.wait()

    def kill(self) -> None:
        """Stop at once; a commit under way may be done or not."""
        self._killed = True
        for session in list(self.sessions):
            if session.committing and session.index < 0 and self.world.chance.random() < 0.5:
                session.apply()
            session.end()

    @asynccontextmanager
    async def _reading(self) -> Any:
        await self.alive()
        await self.world.delay()
        yield self

    async def read(self, look: Callable[[Rows], T]) -> T:
        """Run one statement: it sees one state."""
        await self.world.delay(0.01)
        result = look(self.world.rows)
        await self.world.delay(0.03)
        return result
