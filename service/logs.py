"""Logging that never blocks the loop: lines go through a queue to a thread of their own.

Each application has a logger of its own, outside Python's global tree, so that two in one
process share nothing. Outside development it writes the guide's rotating `logs/app.log`.
"""

import errno
import logging
import os
import queue
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

from pythonjsonlogger.json import JsonFormatter

from service.config import ConfigurationError, Settings

if TYPE_CHECKING:
    from quart import Quart  # a supervisor logs without it

# The guide's, and the request that a line belongs to.
FORMAT = "%(asctime)s %(levelname)s: %(message)s [in %(pathname)s:%(lineno)d] [%(request_id)s]"
MAX_BYTES = 10_240_000
BACKUPS = 10
# A log line is one line: what a client sent cannot begin another.
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != 9}

NO_REQUEST = "-"
request_id: ContextVar[str] = ContextVar("request_id", default=NO_REQUEST)


class _Queued(QueueHandler):
    """Hands a record over as it is now: its request, its text, without line breaks."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        if not hasattr(record, "request_id"):  # a worker's record has its own
            record.request_id = request_id.get()
        record.msg = record.getMessage().translate(CONTROLS)
        record.args = None
        return record


def handlers(settings: Settings) -> list[logging.Handler]:
    """Make the handlers that `settings` ask for; they write in the listener's thread."""
    made: list[logging.Handler] = []
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
        made.append(stderr)
    if folder := _made(settings):
        file = RotatingFileHandler(
            folder / "app.log",
            maxBytes=MAX_BYTES,
            backupCount=BACKUPS,
            encoding="utf-8",
        )
        file.setFormatter(text)
        made.append(file)
    return made


def _made(settings: Settings) -> Path | None:
    """Make the folder of the guide's file, if there is one.

    None in development, or if LOG_DIR is none. Raises ConfigurationError if it cannot be written.
    """
    folder = None if settings.env == "development" else settings.log_dir
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigurationError(
            [
                f"LOG_DIR {folder} cannot be written ({error.strerror}): "
                "name another folder, or none for no file"
            ]
        ) from error
    return folder


def init_app(app: "Quart", settings: Settings) -> None:
    """Give the application its logger; write from start to stop."""
    _made(settings)
    app.logger = logging.Logger(app.name, settings.log_level)

    @app.while_serving
    async def lifespan() -> AsyncGenerator[None, None]:
        with written(app.logger, app.extensions.get("log_handlers") or handlers(settings)):
            app.logger.info("Application startup")
            yield
            app.logger.info("Application shutdown")


@contextmanager
def written(logger: logging.Logger, handlers: Sequence[logging.Handler]) -> Iterator[None]:
    """Let a thread hand to `handlers` what is logged."""
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
