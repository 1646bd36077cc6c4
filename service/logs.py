"""Logging that does not block the event loop: a separate thread writes lines from a queue.

Each application has its own logger, outside Python's global tree, so that two applications in a
process share nothing. Outside development it writes the guide's rotating `logs/app.log`.
"""

import errno
import logging
import os
import queue
import stat
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from io import TextIOWrapper
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

from pythonjsonlogger.json import JsonFormatter

from service import files
from service.config import ConfigurationError, Settings

if TYPE_CHECKING:
    from quart import Quart  # a supervisor logs without it

# The guide's format, followed by the request id.
FORMAT = "%(asctime)s %(levelname)s: %(message)s [in %(pathname)s:%(lineno)d] [%(request_id)s]"
MAX_BYTES = 10_240_000
BACKUPS = 10
REFUSAL_LINES, REFUSAL_SECONDS = 10, 10.0  # at most 10 lines about refused requests in 10 s
REFUSAL = {"is_refusal": True}  # `extra` of a line about a refused request (429, 503)
MOST_WAITING = 10_000  # lines in the queue
# Control characters are escaped, so that text from a client cannot begin a new line.
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != 9}

NO_REQUEST = "-"
request_id: ContextVar[str] = ContextVar("request_id", default=NO_REQUEST)


class _Queued(QueueHandler):
    """Puts records into the queue, with the request id and the final text on a single line.

    If the queue is full, lines are dropped and counted.
    """

    _dropped = 0

    def __init__(self, lines: queue.SimpleQueue[logging.LogRecord]) -> None:
        super().__init__(lines)
        self._lines = lines

    def enqueue(self, record: logging.LogRecord) -> None:
        waiting = self._lines.qsize()
        if waiting >= MOST_WAITING:
            self._dropped += 1
            return
        if self._dropped and waiting < MOST_WAITING // 2:
            text = f"{self._dropped} lines were dropped: they came faster than they were written"
            self._dropped = 0
            self._lines.put(_warning(text))
        self._lines.put(record)

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        if not hasattr(record, "request_id"):  # a record from a worker has an id already
            record.request_id = request_id.get()
        record.msg = record.getMessage().translate(CONTROLS)
        record.args = None
        return record


class RefusalFilter(logging.Filter):
    """Limits the lines about refused requests (`extra=REFUSAL`), and counts the omitted ones.

    A refused client may retry at once. Without a limit, such lines would rotate the log, and
    push out the lines that explain the cause.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger = logger
        self._until = 0.0  # end of the current window
        self._passed = self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write a record."""
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
    """Make a warning without a request."""
    record = logging.LogRecord(__name__, logging.WARNING, __file__, 1, text, None, None)
    record.request_id = NO_REQUEST
    return record


class _File(RotatingFileHandler):
    """The guide's log file. On a full disk, lines are lost and a single warning is printed.

    An existing file keeps its mode, also after rotation.
    """

    _mode = files.FILE
    _lost = 0  # lines lost since the last written line

    def _open(self) -> TextIOWrapper:
        path = Path(self.baseFilename)
        files.make_folder(path.parent)
        torn = self._lost > 0 and not _ends_a_line(path)
        stream = open(path, "a", encoding="utf-8", opener=self._opened)  # noqa: SIM115  (kept)
        self._mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
        if torn:
            stream.write("\n")
        return stream

    def _opened(self, path: str, flags: int) -> int:
        return os.open(path, flags, self._mode)

    def emit(self, record: logging.LogRecord) -> None:
        before = self._lost
        super().emit(record)
        if before and self._lost == before:
            self._lost = 0
            super().emit(_warning(f"{before} lines before this one could not be written"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            return super().handleError(record)
        self._lost += 1
        stream, self.stream = self.stream, None  # the next line opens the file again
        with suppress(OSError):
            if stream is not None:
                stream.close()
        if self._lost == 1:
            text = f"{self.baseFilename} cannot be written ({error.strerror}): lines are lost"
            with suppress(OSError):
                sys.stderr.write(f"{text}\n")
        return None


def _ends_a_line(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
    return True


def handlers(settings: Settings) -> list[logging.Handler]:
    """Make the handlers of `settings`. They run in the listener's thread."""
    active: list[logging.Handler] = []
    text = logging.Formatter(FORMAT)
    if settings.log_json or settings.env == "development":
        stderr = logging.StreamHandler(sys.stderr)
        stderr.setFormatter(
            JsonFormatter(
                ["asctime", "levelname", "message", "pathname", "lineno", "request_id"],
                rename_fields={"asctime": "time", "levelname": "level"},
            )
            if settings.log_json
            else text
        )
        active.append(stderr)
    if folder := _make_folder(settings):
        path = folder / "app.log"
        file = _File(path, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8", delay=True)
        file.setFormatter(text)
        active.append(file)
    return active


def _make_folder(settings: Settings) -> Path | None:
    """Create the folder of the log file and return it.

    None in development, or if LOG_DIR is `none`. Raises ConfigurationError if the folder is not
    writable. A full disk is not an error, because serving can continue.
    """
    folder = None if settings.env == "development" else settings.log_dir
    if folder is None:
        return None
    try:
        files.make_folder(folder)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return folder
        raise ConfigurationError(
            [
                f"LOG_DIR {folder} cannot be written ({error.strerror}): "
                "name another folder, or none for no file"
            ]
        ) from error
    return folder


def init_app(app: "Quart", settings: Settings) -> None:
    """Give the application its logger, which writes while the application serves."""
    _make_folder(settings)
    app.logger = logging.Logger(app.name, settings.log_level)
    app.logger.addFilter(RefusalFilter(app.logger))

    @app.while_serving
    async def lifespan() -> AsyncGenerator[None, None]:
        with written(app.logger, app.extensions.get("log_handlers") or handlers(settings)):
            app.logger.info("Application startup")
            yield
            app.logger.info("Application shutdown")


@contextmanager
def written(logger: logging.Logger, handlers: Sequence[logging.Handler]) -> Iterator[None]:
    """Run a thread that passes the logger's records to `handlers`, for the block's duration."""
    lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = _Queued(lines)
    listener = QueueListener(lines, *handlers)
    listener.start()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        listener.stop()
        for item in handlers:
            item.close()
