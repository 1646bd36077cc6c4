"""Remembered pages of lists in this process. A page is valid while its generation is current."""

import time
from collections import OrderedDict
from typing import NamedTuple

from service.cache import ListQuery, ListResult
from service.fast_path.lookup import PreparedResponse, Route

MOST = 512  # pages
LARGEST = 65_536  # bytes of a page: 100 books rarely need more

Key = tuple[bytes, bytes, bytes]  # the path, the query, and the base URL of links


class RememberedList(NamedTuple):
    """A list that was sent, with its prepared response."""

    route: Route
    prepared: PreparedResponse
    listing: ListQuery
    rows: ListResult


class RememberedLists:
    """The most recently used pages.

    seconds: how long a page may be used, even if its generation lasts longer.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._pages: OrderedDict[Key, tuple[RememberedList, float]] = OrderedDict()

    def get(self, key: Key) -> RememberedList | None:
        """Return a page, if it has not expired. The caller checks its generation."""
        page, expiry = self._pages.get(key, (None, 0.0))
        if page is None:
            return None
        if expiry < time.monotonic():
            del self._pages[key]
            return None
        self._pages.move_to_end(key)
        return page

    def put(self, key: Key, page: RememberedList) -> None:
        """Keep a page. If there are too many, the least recently used page goes."""
        if len(page.prepared.body) > LARGEST or not self._seconds:
            return
        self._pages[key] = page, time.monotonic() + self._seconds
        self._pages.move_to_end(key)
        if len(self._pages) > MOST:
            self._pages.popitem(last=False)
