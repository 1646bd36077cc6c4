"""What a refusal promised, and whether it held.

A 429 that keeps its word is no failure: it says for how many whole seconds to wait, and who waited
them is let in. A 503 has to say as much, but promises nothing.
"""

import re
from collections import Counter
from collections.abc import Mapping

# Which routes spend the same units. Whatever is not here has the default limit in common.
LIMITS = {
    "GET /api/books": "books.list",
    "GET /api/books/{id}": "books.item",
    "POST /api/auth/login": "login",
    "POST /api/auth/register": "register",
}
DEFAULT = "default"
OF_ADDRESS = {"login", "register"}  # all clients of an address spend these: nobody waits alone
WHOLE_SECONDS = re.compile("[1-9][0-9]{0,8}")

TOLD, KEPT = "told", "kept"


def limit_of(method: str, route: str) -> str:
    """Give the name of the limit that a route is under."""
    return LIMITS.get(f"{method} {route}", DEFAULT)


def retry_after(headers: Mapping[str, str] | None) -> int | None:
    """Read Retry-After: whole seconds, at least one. None if it is missing or anything else."""
    told = (headers or {}).get("Retry-After", "")
    return int(told) if WHOLE_SECONDS.fullmatch(told) else None


class Promises:
    """What one client, who asks one thing after the other, was promised by 429s.

    Times are of the monotonic clock. Seconds count from the server's decision, which is before the
    answer is here: who counts from then on waits long enough. What was refused costs nothing, so
    that asking in vain meanwhile does not put the end off.
    """

    def __init__(self, tally: Counter[str], *, allow_503: bool = False) -> None:
        self._tally = tally
        self._allow_503 = allow_503
        self._due: dict[str, float] = {}

    def wait(self, limit: str, now: float) -> float:
        """Give the seconds until a limit should have room."""
        return max(0.0, self._due.get(limit, now) - now)

    def admitted(self, limit: str, begun: float) -> None:
        """Note that a request was let in."""
        due = self._due.pop(limit, None)
        if due is not None and due <= begun:
            self._tally[KEPT] += 1

    def unexpected(
        self,
        limit: str,
        status: int,
        headers: Mapping[str, str] | None,
        begun: float,
        ended: float,
    ) -> str | None:
        """Note an answer that is not what was asked for; 0: there was none. Give what is wrong."""
        seconds = retry_after(headers)
        if status == 429:
            return self._refused(limit, seconds, begun, ended)
        if status in {0, 503}:
            self._due.pop(limit, None)  # nobody can tell whether it was counted
        else:
            self.admitted(limit, begun)
        if status == 503 and seconds is not None:
            return None if self._allow_503 else "503 with Retry-After"
        return f"answered {status}" if status else "no answer"

    def _refused(self, limit: str, seconds: int | None, begun: float, ended: float) -> str | None:
        if seconds is None:
            return "429 without a Retry-After of whole seconds"
        self._tally[TOLD] += 1
        if limit in OF_ADDRESS:
            return None
        due = self._due.setdefault(limit, ended + seconds)
        if begun < due:
            return None
        self._due[limit] = ended + seconds
        return "429 after having waited as long as Retry-After said"
