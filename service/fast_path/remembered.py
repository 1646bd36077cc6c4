"""Pages of this process: each is true as long as its generation is the present one."""

import time
from collections import OrderedDict
from typing import NamedTuple

from service.cache import ListQuery, ListResult
from service.fast_path.lookup import PreparedResponse, Route

MOST = 512  # pages
LARGEST = 65_536  # bytes of a page: 100 books seldom have more

Key = tuple[bytes, bytes, bytes]  # the path, the query, and what links begin with


class RememberedList(NamedTuple):
    """A list that was answered, and how it may be answered again."""

    route: Route
    ready: PreparedResponse
    listing: ListQuery
    rows: ListResult


class RememberedLists:
    """The pages that were used last.

    seconds: how long one may be used, however long its generation lasts.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._pages: OrderedDict[Key, tuple[RememberedList, float]] = OrderedDict()

    def get(self, key: Key) -> RememberedList | None:
        """Give what was answered, if it may still be true."""
        page, until = self._pages.get(key, (None, 0.0))
        if page is None:
            return None
        if until < time.monotonic():
            del self._pages[key]
            return None
        self._pages.move_to_end(key)
        return page

    def put(self, key: Key, page: RememberedList) -> None:
        """Keep an answer, in place of the one that was used least lately."""
        if len(page.ready.body) > LARGEST or not self._seconds:
            return
        self._pages[key] = page, time.monotonic() + self._seconds
        self._pages.move_to_end(key)
        if len(self._pages) > MOST:
            self._pages.popitem(last=False)
