"""One line of the log for each request, off the loop; of those that went well, a sample."""

import logging
import random
from typing import Any

from quart import Quart

from service.config import Settings
from service.front import CACHED, ROUTE, USER
from service.web import STANDINGS


class AccessLog:
    """Writes which route was asked, how it was answered, and for whom; paths stay private."""

    def __init__(self, logger: logging.Logger, sample: float) -> None:
        self._logger = logger
        self._sample = sample

    def observe(self, scope: Any, status: int, seconds: float) -> None:
        """Write a line, or leave it."""
        if 200 <= status < 400 and random.random() >= self._sample:  # noqa: S311  (no secret)
            return
        refused = "refused" if status == 429 else "admitted"
        told = {
            "method": scope["method"],
            "route": scope.get(ROUTE, "unknown"),
            "status": status,
            "milliseconds": round(seconds * 1000, 1),
            "user": scope.get(USER, "-"),
            "cache": scope.get(CACHED, "-"),
            "limit": refused if STANDINGS in scope else "-",
        }
        self._logger.info(
            "%(method)s %(route)s %(status)d %(milliseconds).1f ms "
            "user=%(user)s cache=%(cache)s limit=%(limit)s",
            told,
            extra=told,
        )


def init_app(app: Quart, settings: Settings) -> None:
    """Write lines."""
    log = AccessLog(app.logger, settings.access_log_sample)
    app.extensions.setdefault("observers", []).append(log.observe)
