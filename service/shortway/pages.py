"""Pages of this process: each is true as long as its generation is the present one."""

import time
from collections import OrderedDict
from dataclasses import dataclass

from service.web import Public

MOST = 512  # pages
LARGEST = 65_536  # bytes of a page: 100 books seldom have more

Key = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Page:
    """An answer, and until when it may be used (monotonic, seconds)."""

    answer: Public
    until: float


class Pages:
    """The pages that were used last.

    seconds: how long one may be used, however long its generation lasts.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._pages: OrderedDict[Key, Page] = OrderedDict()

    def get(self, key: Key) -> Public | None:
        """Give what was answered, if it may still be true."""
        page = self._pages.get(key)
        if page is None:
            return None
        if page.until < time.monotonic():
            del self._pages[key]
            return None
        self._pages.move_to_end(key)
        return page.answer

    def put(self, key: Key, answer: Public) -> None:
        """Keep an answer, in place of the one that was used least lately."""
        if len(answer.body) > LARGEST or not self._seconds:
            return
        self._pages[key] = Page(answer, time.monotonic() + self._seconds)
        self._pages.move_to_end(key)
        if len(self._pages) > MOST:
            self._pages.popitem(last=False)
