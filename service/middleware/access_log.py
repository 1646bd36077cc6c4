"""The access log, written off the loop. Successful requests are sampled, refused ones limited."""

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
    """Writes route, status, duration and user of requests. Paths are private and not written."""

    def __init__(self, logger: logging.Logger, sample: float) -> None:
        self._logger = logger
        self._sample = sample

    def observe(self, scope: Any, status: int, seconds: float) -> None:
        """Write a line about a request, unless it is not in the sample."""
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
        # What `Logger.info` does, without its search of the stack for this very line.
        record = logging.LogRecord("access", logging.INFO, __file__, LINE, TEXT, (fields,), None)
        record.__dict__.update(fields | REFUSAL if status in REFUSED else fields)
        self._logger.handle(record)


LINE = AccessLog.observe.__code__.co_firstlineno


class ForwardedCheck:
    """Warns once if requests come through a proxy that TRUSTED_PROXY_HOPS does not count."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._has_warned = False

    def observe(self, scope: Any, status: int, seconds: float) -> None:
        """Check the headers of a request, until the warning was logged."""
        if not self._has_warned and parse_headers(scope["headers"]).forwarded:
            self._has_warned = True
            self._logger.warning(
                "A request has X-Forwarded-For and TRUSTED_PROXY_HOPS is 0: behind a proxy all "
                "clients share the limits of its address; set it to the number of proxies"
            )


def init_app(app: Quart, settings: Settings) -> None:
    """Register the access log and the check of forwarded requests."""
    observers = app.extensions.setdefault("observers", [])
    observers.append(AccessLog(app.logger, settings.access_log_sample).observe)
    if settings.trusted_proxy_hops == 0:
        observers.append(ForwardedCheck(app.logger).observe)
