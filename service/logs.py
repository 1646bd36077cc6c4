"""Log without blocking the event loop: a thread formats lines, and writes many at once.

A wake-up and a write for each single line would cost half of a worker's throughput.

Each application has its own logger, outside the hierarchy of `logging.getLogger`, so that two
applications in a process share nothing. Except in development, the application writes the guide's
rotating file `logs/app.log`.
"""

import errno
import itertools
import logging
import os
import queue
import stat
import sys
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from logging.handlers import QueueHandler, RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pythonjsonlogger.json import JsonFormatter

from service import files
from service.config import ConfigurationError, Settings

if TYPE_CHECKING:
    from quart import Quart  # the supervisor process logs without loading Quart

# The format of the guide, followed by the request id.
FORMAT = "%(asctime)s %(levelname)s: %(message)s [in %(pathname)s:%(lineno)d] [%(request_id)s]"
MAX_BYTES = 10_240_000
BACKUPS = 10
REFUSAL_LINES, REFUSAL_SECONDS = 10, 10.0  # at most 10 lines about refused requests in 10 s
REFUSAL = {"is_refusal": True}  # `extra` of a line about a refused request (429, 503)
MAX_WAITING_RECORDS = 10_000  # the queue length from which records are dropped
MAX_WAITING_MESSAGES = 200  # the same for messages of workers, each of up to 100,000 characters
GATHER_SECONDS = 0.05  # wait for more lines before a write; a killed process loses these lines
FILE, STDERR = "app.log", "stderr"  # names of destinations
# Control characters are escaped, so that text from a client cannot begin a new line.
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != 9}

NO_REQUEST = "-"
request_id: ContextVar[str] = ContextVar("request_id", default=NO_REQUEST)


class _Queued(QueueHandler):
    """Formats a message as one line, adds the request id, and queues the record."""

    def __init__(self, thread: "LogThread") -> None:
        super().__init__(thread.queue)
        self._thread = thread

    def enqueue(self, record: logging.LogRecord) -> None:
        self._thread.put(record)

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        record.request_id = request_id.get()
        text = record.getMessage()
        record.msg = text if text.isprintable() else text.translate(CONTROLS)
        record.args = None
        return record


class RefusalFilter(logging.Filter):
    """Limits the lines about refused requests (`extra=REFUSAL`), and counts the omitted lines.

    A refused client may retry at once. Without this limit, such lines would fill the rotated files,
    and the lines that explain the cause would be deleted.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger = logger
        self._until = 0.0  # end of the current window
        self._passed = self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log a record. After a window, log the number of omitted lines."""
        if record.created >= self._until:
            left_out, self._left_out, self._passed = self._left_out, 0, 0
            self._until = record.created + REFUSAL_SECONDS
            if left_out:
                text = "%d more lines about refused requests (429, 503) were left out"
                self._logger.warning(text, left_out)
        if not hasattr(record, "is_refusal"):
            return True
        self._passed += 1
        if self._passed > REFUSAL_LINES:
            self._left_out += 1
            return False
        return True


def _warning(text: str) -> logging.LogRecord:
    """Make a warning of the log thread, which belongs to no request."""
    record = logging.LogRecord(__name__, logging.WARNING, __file__, 1, text, None, None)
    record.request_id = NO_REQUEST
    return record


class Destination(Protocol):
    """Writes formatted lines. `write` must not raise: it runs in the log thread."""

    formatter: logging.Formatter

    def write(self, lines: Sequence[str]) -> None: ...

    def close(self) -> None: ...


class Stderr:
    """Writes lines to stderr. A line that cannot be written is lost."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self.formatter = formatter

    def write(self, lines: Sequence[str]) -> None:
        """Write lines, and flush the stream."""
        with suppress(OSError, ValueError):  # ValueError: the stream is closed
            sys.stderr.write("\n".join(lines) + "\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Do nothing: stderr belongs to the process."""


class LogFile(RotatingFileHandler):
    """The guide's rotating log file. On a full disk, lines are lost; stderr gets one warning.

    A new file has mode 0600. An existing file keeps its mode, also after rotation.
    """

    _mode = files.FILE
    _lost = 0  # lines lost since the last written line
    formatter: logging.Formatter
    stream: Any  # a FileIO: its `write` returns how many bytes the disk has taken

    def write(self, lines: Sequence[str]) -> None:
        """Write lines in one block. If lines were lost, first write their number."""
        lost = self._lost
        if lost:
            warning = _warning(f"{lost} lines before this one could not be written")
            lines = [self.format(warning), *lines]
        chunks = [f"{line}\n".encode(errors="backslashreplace") for line in lines]
        if lost and not _ends_a_line(Path(self.baseFilename)):
            chunks[0] = b"\n" + chunks[0]
        data, written = b"".join(chunks), 0
        try:
            if self.stream is None:
                self.stream = self._open()
            if os.fstat(self.stream.fileno()).st_size + len(data) > self.maxBytes:
                self.doRollover()
            while written < len(data):
                written += self.stream.write(data[written:])
            self._lost = 0
        except OSError as error:
            ends = list(itertools.accumulate(map(len, chunks)))
            self._lost = sum(end > written for end in ends)
            if lost and ends[0] > written:
                self._lost += lost - 1  # the warning was not written either
            self._fail(error, is_first=not lost)

    def _fail(self, error: OSError, *, is_first: bool) -> None:
        stream, self.stream = self.stream, None  # the next write opens the file again
        with suppress(OSError):
            if stream is not None:
                stream.close()
        if is_first:
            text = f"{self.baseFilename} cannot be written ({error.strerror}): lines are lost"
            with suppress(OSError):
                sys.stderr.write(f"{text}\n")

    def _open(self) -> Any:
        path = Path(self.baseFilename)
        files.make_folder(path.parent)
        stream = open(path, "ab", 0, opener=self._open_descriptor)  # noqa: SIM115  (kept)
        self._mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
        return stream

    def _open_descriptor(self, path: str, flags: int) -> int:
        return os.open(path, flags, self._mode)


def _ends_a_line(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
    return True


Item = logging.LogRecord | tuple[str, list[str]]


class LogThread(threading.Thread):
    """A thread that formats queued records and writes them to `destinations` (by name).

    It gathers lines for GATHER_SECONDS, but writes at once for a record of level WARNING or above.
    If the queue is full, lines are dropped and counted.
    """

    def __init__(self, destinations: Mapping[str, Destination]) -> None:
        super().__init__(name="logs", daemon=True)
        self.queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._destinations = destinations
        self._is_urgent = threading.Event()
        self._dropped = 0

    def put(self, record: logging.LogRecord) -> None:
        """Queue a record."""
        self._put(record, MAX_WAITING_RECORDS, 1)
        if record.levelno >= logging.WARNING:
            self._is_urgent.set()

    def put_lines(self, name: str, lines: list[str]) -> None:
        """Queue lines that a worker process has formatted for the destination `name`."""
        self._put((name, lines), MAX_WAITING_MESSAGES, len(lines))
        self._is_urgent.set()

    def _put(self, item: Item, most: int, lines: int) -> None:
        waiting = self.queue.qsize()
        if waiting >= most:
            self._dropped += lines
            return
        if self._dropped and waiting < most // 2:
            text = f"{self._dropped} lines were dropped: they came faster than they were written"
            self._dropped = 0
            self.queue.put(_warning(text))
        self.queue.put(item)

    def stop(self) -> None:
        """Write all queued lines, and end the thread."""
        self.queue.put(None)
        self._is_urgent.set()
        self.join()

    def run(self) -> None:
        """Write queued lines until `stop`."""
        while (item := self.queue.get()) is not None:
            self._is_urgent.wait(GATHER_SECONDS)
            self._is_urgent.clear()
            items = [item]
            with suppress(queue.Empty):
                while (item := self.queue.get_nowait()) is not None:
                    items.append(item)
            self._write(items)
            if item is None:
                break

    def _write(self, items: Sequence[Item]) -> None:
        for name, destination in self._destinations.items():
            lines: list[str] = []
            for item in items:
                if isinstance(item, logging.LogRecord):
                    lines.append(_format(destination.formatter, item))
                elif item[0] == name:
                    lines += item[1]
            if lines:
                destination.write(lines)


def _format(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    try:
        return formatter.format(record)
    except Exception as error:  # an invalid record must not end the thread
        return f"A record of {record.pathname}:{record.lineno} has no text: {error!r}"


def formatters(settings: Settings) -> dict[str, logging.Formatter]:
    """Return the formatters of `settings` by the name of their destination."""
    formatters: dict[str, logging.Formatter] = {}
    text = logging.Formatter(FORMAT)
    if settings.log_json or settings.env == "development":
        formatters[STDERR] = (
            JsonFormatter(
                ["asctime", "levelname", "message", "pathname", "lineno", "request_id"],
                rename_fields={"asctime": "time", "levelname": "level"},
            )
            if settings.log_json
            else text
        )
    if settings.env != "development" and settings.log_dir is not None:
        formatters[FILE] = text
    return formatters


def destinations(settings: Settings) -> dict[str, Destination]:
    """Make the destinations of `settings`.

    Raises ConfigurationError if the folder of the log file is not writable.
    """
    made: dict[str, Destination] = {}
    for name, formatter in formatters(settings).items():
        if name == STDERR:
            made[name] = Stderr(formatter)
        elif settings.log_dir is not None:
            _make_folder(settings.log_dir)
            path = settings.log_dir / FILE
            file = LogFile(path, maxBytes=MAX_BYTES, backupCount=BACKUPS, delay=True)
            file.setFormatter(formatter)
            made[name] = file
    return made


def _make_folder(folder: Path) -> None:
    """Create the folder of the log file.

    Raises ConfigurationError if it is not writable. A full disk is not an error, because serving
    can continue.
    """
    try:
        files.make_folder(folder)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return
        raise ConfigurationError(
            [
                f"LOG_DIR {folder} cannot be written ({error.strerror}): "
                "name another folder, or none for no file"
            ]
        ) from error


def init_app(app: "Quart", settings: Settings) -> None:
    """Set the application's logger. Raises ConfigurationError as `destinations` does."""
    if settings.env != "development" and settings.log_dir is not None:
        _make_folder(settings.log_dir)
    app.logger = logging.Logger(app.name, settings.log_level)
    app.logger.addFilter(RefusalFilter(app.logger))

    @app.while_serving
    async def lifespan() -> AsyncGenerator[None, None]:
        with written(app.logger, app.extensions.get("log_destinations") or destinations(settings)):
            app.logger.info("Application startup")
            yield
            app.logger.info("Application shutdown")


@contextmanager
def written(logger: logging.Logger, destinations: Mapping[str, Destination]) -> Iterator[LogThread]:
    """Within the block, run a thread that writes the logger's records to `destinations`."""
    thread = LogThread(destinations)
    thread.start()
    handler = _Queued(thread)
    logger.addHandler(handler)
    try:
        yield thread
    finally:
        logger.removeHandler(handler)
        thread.stop()
        for destination in destinations.values():
            destination.close()
