"""Pages of this process: each is true as long as its generation is the present one."""

import time
from collections import OrderedDict
from typing import NamedTuple

from service.cache import Listing, Rows
from service.shortway.look import Ready, Route

MOST = 512  # pages
LARGEST = 65_536  # bytes of a page: 100 books seldom have more

Key = tuple[bytes, bytes, bytes]  # the path, the query, and what links begin with


class Page(NamedTuple):
    """A list that was answered, and how it may be answered again."""

    route: Route
    ready: Ready
    listing: Listing
    rows: Rows


class Pages:
    """The pages that were used last.

    seconds: how long one may be used, however long its generation lasts.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._pages: OrderedDict[Key, tuple[Page, float]] = OrderedDict()

    def get(self, key: Key) -> Page | None:
        """Give what was answered, if it may still be true."""
        page, until = self._pages.get(key, (None, 0.0))
        if page is None:
            return None
        if until < time.monotonic():
            del self._pages[key]
            return None
        self._pages.move_to_end(key)
        return page

    def put(self, key: Key, page: Page) -> None:
        """Keep an answer, in place of the one that was used least lately."""
        if len(page.ready.body) > LARGEST or not self._seconds:
            return
        self._pages[key] = page, time.monotonic() + self._seconds
        self._pages.move_to_end(key)
        if len(self._pages) > MOST:
            self._pages.popitem(last=False)
