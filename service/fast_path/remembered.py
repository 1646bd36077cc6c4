"""Keep list responses in the memory of this process.

A response is valid while the generation of its list in the cache is the same.
"""

import time
from collections import OrderedDict
from typing import NamedTuple

from service.cache import ListQuery, ListResult
from service.fast_path.lookup import PreparedResponse, Route
from service.http.compression import Coding

MAX_PAGES = 512  # pages, that is, list responses
MAX_BODY_BYTES = 65_536  # bytes of a body; 100 books rarely need more

# The path, the query, the base URL of links, and the coding: each form of a response is a page.
Key = tuple[bytes, bytes, bytes, Coding | None]


class RememberedList(NamedTuple):
    """A list that was sent, with its prepared response. listing, rows: to check its generation."""

    route: Route
    prepared: PreparedResponse
    listing: ListQuery
    rows: ListResult


class RememberedLists:
    """An LRU cache of at most MAX_PAGES pages. seconds: maximum age of a page; 0: keep none."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._pages: OrderedDict[Key, tuple[RememberedList, float]] = OrderedDict()

    def get(self, key: Key) -> RememberedList | None:
        """Return a page that has not expired. The caller must check its generation."""
        page, expiry = self._pages.get(key, (None, 0.0))
        if page is None:
            return None
        if expiry < time.monotonic():
            del self._pages[key]
            return None
        self._pages.move_to_end(key)
        return page

    def put(self, key: Key, page: RememberedList) -> None:
        """Keep a page, unless it is too large. Above MAX_PAGES, drop the least recently used."""
        if len(page.prepared.body) > MAX_BODY_BYTES or not self._seconds:
            return
        self._pages[key] = page, time.monotonic() + self._seconds
        self._pages.move_to_end(key)
        if len(self._pages) > MAX_PAGES:
            self._pages.popitem(last=False)
