"""A worker process: Hypercorn on uvloop, until it is drained."""

import asyncio
import gc
import math
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Sequence
from socket import socket
from typing import Any

import hypercorn.asyncio
import uvloop
from quart import Quart

from service import logs
from service.config import Settings
from service.server.http1 import ServerConfig
from service.server.hypercorn_config import configured
from service.server.pipes import Channel, ChannelDestination
from service.system import metrics_files

LAST_SECONDS = 0.2  # for the clients of the last accepted connections to send requests
# A full garbage collection stops 1,500 connections for 0.3 s, and under load Python starts one each
# second, which frees almost nothing. So full collections run by the clock. Young generations must
# stay small: a collection of 100,000 objects took 0.2 s. Connections and requests leave no cycles.
GENERATIONS = (2_000, 5, 1_000)  # the last threshold is for a leak: ten million new objects
COLLECT_SECONDS = 600.0
LISTENERS_PER_SOCKET = 16  # each accepts one connection in a tick
TLS_CLOSE_SECONDS = 1.0  # for an idle client to acknowledge the end of TLS; the default is 30
DESCRIPTOR_SECONDS = 1.0  # between checks for free file descriptors
DESCRIPTOR_PAUSE = 60.0  # without a failed check, before a failure is logged again


class Loop(uvloop.Loop):
    """uvloop that accepts many connections in one turn, and records its listeners.

    libuv accepts one connection for each listener in a tick (libuv pull request 3696).
    While a worker is busy, a turn lasts some milliseconds: 1,000 new connections waited for 10 s.
    So a socket gets several listeners. Hypercorn cannot close them early, so the loop records them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.listeners: list[asyncio.AbstractServer] = []

    async def create_server(  # type: ignore[override]  # the arguments of uvloop
        self, *args: Any, sock: socket, **options: Any
    ) -> asyncio.AbstractServer:
        """Listen on a socket, and return one of its listeners."""
        if options.get("ssl") is not None:
            options["ssl_shutdown_timeout"] = TLS_CLOSE_SECONDS
        first: asyncio.AbstractServer = await super().create_server(*args, sock=sock, **options)
        self.listeners.append(first)
        for _ in range(LISTENERS_PER_SOCKET - 1):
            self.listeners.append(await super().create_server(*args, sock=sock.dup(), **options))
        return first


class Worker:
    """Serves an application until a signal, `max_requests`, or the end of the supervisor."""

    def __init__(
        self, app: Quart, config: ServerConfig, settings: Settings, channel: Channel | None
    ) -> None:
        self._app = app
        self._config = config
        self._settings = settings
        self._channel = channel
        self._stop: asyncio.Event
        self._draining: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._left = settings.max_requests
        if self._left:
            self._left += random.randint(0, settings.max_requests_jitter)  # noqa: S311  (no secret)

    def run(self) -> None:
        """Serve until stopped. Raises LifespanFailureError if the application cannot start."""
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        handled: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: lambda: self._drain(self._settings.drain_seconds, listening=True),
            signal.SIGINT: lambda: self._drain(0, listening=True),
            signal.SIGUSR1: lambda: self._drain(self._settings.drain_seconds, listening=False),
        }
        for number, handle in handled.items():
            loop.add_signal_handler(number, handle)
        self._spawn(self._collect())
        self._spawn(self._watch_descriptors())
        if self._channel is not None:
            self._spawn(self._receive(self._channel))
            self._spawn(self._report_ready(self._channel))
        if self._left:
            self._app.extensions["observers"].append(self._count)
        try:
            await hypercorn.asyncio.serve(self._app, self._config, shutdown_trigger=self._stop.wait)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _drain(self, seconds: float, *, listening: bool) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._stop_after(seconds, listening=listening))
        elif listening:
            self._stop.set()  # a second signal: do not wait for clients

    async def _stop_after(self, seconds: float, *, listening: bool) -> None:
        """Send `Connection: close` for `seconds`. `listening`: accept connections meanwhile."""
        self._config.draining = True
        if listening:
            if health := self._app.extensions.get("health"):  # absent during startup
                health.serving = False
            await asyncio.sleep(max(0.0, seconds - LAST_SECONDS))
            seconds = min(seconds, LAST_SECONDS)
        for listener in self._listeners:
            listener.close()
        await asyncio.sleep(seconds)
        self._stop.set()

    @property
    def _listeners(self) -> list[asyncio.AbstractServer]:
        loop: Any = asyncio.get_running_loop()
        listeners: list[asyncio.AbstractServer] = loop.listeners
        return listeners

    async def _collect(self) -> None:
        gc.collect()
        gc.freeze()  # loaded code is never freed
        gc.set_threshold(*GENERATIONS)
        while True:
            await asyncio.sleep(COLLECT_SECONDS)
            gc.collect()

    async def _watch_descriptors(self) -> None:
        """Log a lack of file descriptors: uvloop then closes new connections silently."""
        warned_at = -math.inf
        while True:
            await asyncio.sleep(DESCRIPTOR_SECONDS)
            try:
                os.close(os.open(os.devnull, os.O_RDONLY))
            except OSError as error:
                now = time.monotonic()
                if now > warned_at + DESCRIPTOR_PAUSE:
                    text = "New connections are closed: %s (LimitNOFILE, ulimit -n: %d)"
                    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
                    self._app.logger.warning(text, error.strerror, limit)
                warned_at = now

    async def _receive(self, channel: Channel) -> None:
        async for message in channel.receive():
            self._app.extensions["workers"] = message["workers"]
        self._drain(0, listening=True)  # the supervisor has ended
        await asyncio.to_thread(metrics_files.drop)  # the supervisor cannot remove the figures

    async def _report_ready(self, channel: Channel) -> None:
        while len(self._listeners) < LISTENERS_PER_SOCKET * len(self._config.bind):  # noqa: ASYNC110  (Hypercorn has no event)
            await asyncio.sleep(0.01)
        await asyncio.to_thread(channel.send_message, ready=True)

    def _count(self, *_: object) -> None:
        """Request a replacement after `max_requests` requests."""
        self._left -= 1
        if self._left == 0 and self._channel is not None:
            self._spawn(asyncio.to_thread(self._channel.send_message, replacement_requested=True))
        elif self._left == 0:
            self._drain(0, listening=True)


def serve(
    settings: Settings,
    sockets: Sequence[socket],
    channel: Channel | None,
    create_app: Callable[[Settings], Quart],
) -> None:
    """Serve in this process until stopped. Raises LifespanFailureError."""
    original = settings
    if channel is not None:
        metrics_files.share(channel.number)
        settings = settings.model_copy(update={"log_dir": None})  # the supervisor writes logs
    app = create_app(settings)
    if channel is not None:
        app.extensions["log_destinations"] = {
            name: ChannelDestination(channel, name, formatter)
            for name, formatter in logs.formatters(original).items()
        }
    Worker(app, configured(app, sockets, settings), settings, channel).run()
