"""Log a line for each request. Successful requests are sampled; lines of 429, 503 are limited."""

import logging
import random
from typing import Any

from quart import Quart

from service.config import Settings
from service.http.context import context_of
from service.http.headers import parse_headers
from service.logs import REFUSAL

REFUSED = {429, 503}
TEXT = (
    "%(method)s %(route)s %(status)d %(milliseconds).1f ms "
    "user=%(user)s cache=%(cache)s limit=%(limit)s"
)


class AccessLog:
    """Logs URL rule, status, duration and user of a request, but not its path: it may be private.

    sample: fraction (0 to 1) of requests with status 200 to 399 that are logged.
    """

    def __init__(self, logger: logging.Logger, sample: float) -> None:
        self._logger = logger
        self._sample = sample

    def observe(self, scope: Any, status: int, seconds: float) -> None:
        """Log a line about a request, unless sampling omits it."""
        if 200 <= status < 400 and random.random() >= self._sample:  # noqa: S311  (no secret)
            return
        context = context_of(scope)
        user, decision = context.user_id, "refused" if status == 429 else "admitted"
        fields = {
            "method": scope["method"],
            "route": context.route,
            "status": status,
            "milliseconds": round(seconds * 1000, 1),
            "user": "-" if user is None else user,
            "cache": context.cache_status or "-",
            "limit": "-" if context.quotas is None else decision,
        }
        if not self._logger.isEnabledFor(logging.INFO):
            return
        # Like `Logger.info`, but without its costly search of the stack for the calling line.
        record = logging.LogRecord("access", logging.INFO, __file__, LINE, TEXT, (fields,), None)
        record.__dict__.update(fields | REFUSAL if status in REFUSED else fields)
        self._logger.handle(record)


LINE = AccessLog.observe.__code__.co_firstlineno


class ForwardedCheck:
    """Warns once if a request has X-Forwarded-For although TRUSTED_PROXY_HOPS is 0."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._has_warned = False

    def observe(self, scope: Any, status: int, seconds: float) -> None:
        """Check the headers of a request, until a warning has been logged."""
        if not self._has_warned and parse_headers(scope["headers"]).forwarded:
            self._has_warned = True
            self._logger.warning(
                "A request has X-Forwarded-For and TRUSTED_PROXY_HOPS is 0: behind a proxy all "
                "clients share the limits of its address; set it to the number of proxies"
            )


def init_app(app: Quart, settings: Settings) -> None:
    """Register AccessLog, and ForwardedCheck if TRUSTED_PROXY_HOPS is 0, as observers."""
    observers = app.extensions.setdefault("observers", [])
    observers.append(AccessLog(app.logger, settings.access_log_sample).observe)
    if settings.trusted_proxy_hops == 0:
        observers.append(ForwardedCheck(app.logger).observe)
