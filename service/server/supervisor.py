"""Supervises workers: replaces failed workers, restarts them in turn, and stops them.

No existing supervisor fits: systemd and Kubernetes supervise whole services, and Hypercorn's own
supervisor drops requests. Circus needs ZeroMQ and a second event loop, and its workers cannot
report when they are ready.
"""

import asyncio
import logging
import random
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from service.server.worker_processes import ForkServer, WorkerProcess

START_SECONDS = 60.0  # for a worker to become ready
STEADY_SECONDS = 1.0  # for a worker to serve; a shorter run counts as a failure
MAX_PAUSE_SECONDS = 5.0  # seconds between attempts; STEADY_SECONDS at most if the worker has served
ATTEMPTS = 3  # to start the first worker
KILL_AFTER = 5.0  # seconds after `stop_seconds`: then a worker is killed
KILLED = 1  # exit code if a worker had to be killed


class Supervisor:
    """Keeps `count` workers running. The process that `command` starts forks them.

    sockets: the listening sockets of the workers, closed at the end. overlap: whether a new worker
    may listen before the replaced worker has ended.
    stop_seconds: time for a worker to stop.
    forget: called with the number of each worker that has ended.
    write_lines: called with a destination and the log lines of a worker.
    """

    def __init__(
        self,
        command: Sequence[str],
        sockets: Sequence[socket.socket],
        logger: logging.Logger,
        *,
        count: int,
        overlap: bool,
        stop_seconds: float,
        environment: Mapping[str, str],
        on_end: Callable[[int], None],
        write_lines: Callable[[str, list[str]], None],
    ) -> None:
        self._command = command
        self._sockets = sockets
        self._logger = logger
        self._overlap = overlap
        self._stop_seconds = stop_seconds + KILL_AFTER
        self._environment = environment
        self._on_worker_end = on_end
        self._write_lines = write_lines
        self._workers: set[WorkerProcess] = set()
        self._numbers: set[int] = set()  # numbers in use; a new worker gets the lowest free number
        self._to_be_replaced = [asyncio.Event() for _ in range(count)]
        self._replacing = asyncio.Lock()
        self._stop: asyncio.Future[tuple[signal.Signals, int]]
        self._was_ready = False
        self._loading = asyncio.Lock()
        self._release = 0  # of the code: increased by each SIGHUP
        self._loaded = 0  # the release of the newest fork server
        self._servers: list[ForkServer] = []  # the newest last

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; return the exit code."""
        loop = asyncio.get_running_loop()
        self._stop = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number, 0)
        loop.add_signal_handler(signal.SIGHUP, self._replace_all)
        keeping = [asyncio.create_task(self._run_worker(place)) for place in self._to_be_replaced]
        number, code = await self._stop
        for sock in self._sockets:
            sock.close()  # no connection stays in the queue after the workers stop listening
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)
        ended = await asyncio.gather(
            *(self._stop_worker(worker, number) for worker in self._workers)
        )
        await asyncio.gather(*(server.end(KILL_AFTER) for server in self._servers))
        return code or (0 if all(ended) else KILLED)

    def _end(self, number: signal.Signals, code: int) -> None:
        if not self._stop.done():
            self._stop.set_result((number, code))
        else:
            for worker in self._workers:
                worker.send(number)  # a second signal makes workers stop sooner

    def _replace_all(self) -> None:
        self._logger.info("Replacing every worker, one after the other")
        self._release += 1
        for event in self._to_be_replaced:
            event.set()

    async def _run_worker(self, to_be_replaced: asyncio.Event) -> None:
        """Keep a worker running in one place."""
        worker: WorkerProcess | None = None
        failures = 0
        while True:
            longest = MAX_PAUSE_SECONDS
            if worker is None:
                worker = await self._start()
            if worker is not None:
                begun = time.monotonic()
                await _first(
                    worker.ended, to_be_replaced.wait(), worker.replacement_requested.wait()
                )
                if not worker.ended.done():
                    to_be_replaced.clear()
                    worker = await self._replace(worker)
                    continue
                if time.monotonic() - begun > STEADY_SECONDS:
                    failures = 0
                worker, longest = None, STEADY_SECONDS
            elif not self._was_ready and failures + 1 == ATTEMPTS:
                return self._end(signal.SIGTERM, 1)
            # The first restart is immediate; repeated failures must not load the machine.
            if failures:
                pause = min(0.1 * 2**failures, longest)
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  (no secret)
            failures += 1

    async def _replace(self, old: WorkerProcess) -> WorkerProcess | None:
        """Replace a worker; return the worker of this place, or None if the place is empty."""
        async with self._replacing:
            if not self._overlap:
                await self._fork_server()  # load first, to shorten the time without a worker
                await self._stop_worker(old, signal.SIGUSR1)
                return await self._start()
            new = await self._start()
            if new is None:
                self._logger.error(
                    "Worker %d stays: its replacement could not be started", old.number
                )
                old.replacement_requested.clear()
                return old
            await self._stop_worker(old, signal.SIGUSR1)
            return new

    async def _start(self) -> WorkerProcess | None:
        """Start a worker, and wait until it is ready. None: it failed, or was killed."""
        server = await self._fork_server()
        if server is None:
            return None
        number = next(n for n in range(len(self._numbers) + 1) if n not in self._numbers)
        self._numbers.add(number)
        worker = server.fork(number, self._on_message)
        self._workers.add(worker)
        worker.ended.add_done_callback(lambda _: self._on_end(worker))
        await _first(worker.ended, worker.ready.wait(), seconds=START_SECONDS)
        if not (worker.ready.is_set() or worker.ended.done()):
            self._logger.error("Worker %d is not ready after %d s", number, START_SECONDS)
            worker.send(signal.SIGKILL)
            await worker.ended
        if worker.ended.done():
            return None
        self._was_ready = True
        self._send_count()
        self._logger.info("Worker %d serves (process %d)", number, worker.pid)
        return worker

    async def _fork_server(self) -> ForkServer | None:
        """Return a fork server with the newest code, else an older one, else None."""
        async with self._loading:
            self._servers = [server for server in self._servers if not server.ended.done()]
            old = self._servers[-1] if self._servers else None
            if old is not None and self._loaded == self._release:
                return old
            self._loaded = self._release
            new = await ForkServer.start(self._command, self._sockets, self._environment)
            self._servers.insert(0, new)
            await _first(new.ended, new.loaded.wait(), seconds=START_SECONDS)
            if new.loaded.is_set():
                self._servers.append(self._servers.pop(0))
                if old is not None:
                    old.close()
                return new
            await new.end(0)
            code = new.process.returncode or 0
            if code > 0 and not self._was_ready:
                self._end(signal.SIGTERM, code)  # the reason is logged; a retry would also fail
            self._logger.error("The application cannot be loaded (exit code %d)", code)
            return old

    def _send_count(self) -> None:
        """Send the number of workers to every worker."""
        serving = [worker for worker in self._workers if worker.ready.is_set()]
        for worker in serving:
            worker.send_message(workers=len(serving))

    def _on_end(self, worker: WorkerProcess) -> None:
        self._workers.discard(worker)
        self._on_worker_end(worker.number)
        self._numbers.discard(worker.number)
        self._send_count()
        code = worker.ended.result()
        if code is None:
            how = "exit code unknown"
        elif code < 0:
            how = signal.Signals(-code).name
        else:
            how = f"exit code {code}"
            if code and not self._stop.done() and not self._was_ready:
                self._end(signal.SIGTERM, code)  # the reason is logged; a retry would also fail
        level = logging.INFO if code == 0 else logging.WARNING
        self._logger.log(level, "Worker %d has ended (%s)", worker.number, how)

    async def _stop_worker(self, worker: WorkerProcess, number: signal.Signals) -> bool:
        """Signal a worker to end, and wait; return False if it had to be killed."""
        await _first(worker.ended, worker.forked.wait(), seconds=KILL_AFTER)
        worker.send(number)
        await asyncio.wait({worker.ended}, timeout=self._stop_seconds)
        if worker.ended.done():
            return True
        self._logger.error("Worker %d does not end and is killed", worker.number)
        worker.send(signal.SIGKILL)
        await asyncio.wait({worker.ended})
        return False

    def _on_message(self, worker: WorkerProcess, message: dict[str, Any]) -> None:
        match message:
            case {"ready": True}:
                worker.ready.set()
            case {"replacement_requested": True}:
                worker.replacement_requested.set()
            case {"lines": lines, "destination": destination}:
                self._write_lines(destination, lines)


async def _first(*awaited: Any, seconds: float | None = None) -> None:
    """Wait until the first is done, then cancel all except `awaited[0]`."""
    tasks = [asyncio.ensure_future(each) for each in awaited]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=seconds)
    finally:
        for task in tasks[1:]:
            task.cancel()
