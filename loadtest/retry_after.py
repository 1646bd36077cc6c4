"""Checks the Retry-After header of rejected requests.

A correct 429 is no failure: its Retry-After has a whole number of seconds, and a request after that
time is admitted. A 503 must have a Retry-After too, but a later request need not be admitted.
"""

import re
from collections import Counter
from collections.abc import Mapping

# The rate limit of each route. All other routes share the default limit.
LIMITS = {
    "GET /api/books": "books.list",
    "GET /api/books/{id}": "books.item",
    "GET /api/search": "search",
    "GET /api/data": "data",
    "GET /api/report": "report",
    "POST /api/auth/login": "login",
    "POST /api/auth/register": "register",
}
DEFAULT = "default"
OF_ADDRESS = {
    "login",
    "register",
}  # all clients of an address share these limits, so waiting guarantees nothing
WHOLE_SECONDS = re.compile("[1-9][0-9]{0,8}")

SENT, HONORED = "retry_after_sent", "retry_after_honored"


def limit_of(method: str, route: str) -> str:
    """Return the name of the rate limit of a route."""
    return LIMITS.get(f"{method} {route}", DEFAULT)


def retry_after(headers: Mapping[str, str] | None) -> int | None:
    """Return the whole seconds of Retry-After, at least 1. None if it is missing or invalid."""
    value = (headers or {}).get("Retry-After", "")
    return int(value) if WHOLE_SECONDS.fullmatch(value) else None


class RetryAfterTracker:
    """Tracks the Retry-After of the 429s of one client, which sends one request at a time.

    Times are of the monotonic clock. The seconds count from the server's decision, which is before
    the response arrives: a client that counts from the response waits long enough. A rejected
    request uses no units, so a request during the wait does not extend the wait.
    """

    def __init__(self, tally: Counter[str], *, allow_503: bool = False) -> None:
        self._tally = tally
        self._allow_503 = allow_503
        self._due: dict[str, float] = {}

    def wait(self, limit: str, now: float) -> float:
        """Return the seconds until a limit should admit a request."""
        return max(0.0, self._due.get(limit, now) - now)

    def admitted(self, limit: str, begun: float) -> None:
        """Record that a request was admitted."""
        due = self._due.pop(limit, None)
        if due is not None and due <= begun:
            self._tally[HONORED] += 1

    def unexpected(
        self,
        limit: str,
        status: int,
        headers: Mapping[str, str] | None,
        begun: float,
        ended: float,
    ) -> str | None:
        """Record an unexpected response (status 0: no response). Return the failure, or None."""
        seconds = retry_after(headers)
        if status == 429:
            return self._rejected(limit, seconds, begun, ended)
        if status in {0, 503}:
            self._due.pop(limit, None)  # unknown whether the request was counted
        else:
            self.admitted(limit, begun)
        if status == 503 and seconds is not None:
            return None if self._allow_503 else "503 with Retry-After"
        return f"status {status}" if status else "no response"

    def _rejected(self, limit: str, seconds: int | None, begun: float, ended: float) -> str | None:
        if seconds is None:
            return "429 without a Retry-After of whole seconds"
        self._tally[SENT] += 1
        if limit in OF_ADDRESS:
            return None
        due = self._due.setdefault(limit, ended + seconds)
        if begun < due:
            return None
        self._due[limit] = ended + seconds
        return "429 after the client waited for Retry-After"
