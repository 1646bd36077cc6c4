"""What is asked for: books by Zipf's law, lists by what the catalogue holds."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import Any

SORTS = [sign + key for key in ("id", "created_at", "title", "published_year", "price")
         for sign in ("", "-")]  # fmt: skip
SEARCHED = re.compile(r"[^\W\d_]{3,}")
PREFIX = 4  # letters that somebody has typed so far

Query = dict[str, str | int]


class Zipf:
    """Draws from 1 to `count`, the n-th most popular with a weight of 1 / n ** exponent.

    Which number is how popular follows from `seed`: what is popular is not what is oldest.
    """

    def __init__(self, count: int, seed: int, exponent: float = 1.0) -> None:
        if count < 1:
            raise ValueError("nothing to draw from")
        self.by_rank = list(range(1, count + 1))
        Random(f"popularity {seed}").shuffle(self.by_rank)
        self._sums = list(accumulate(rank**-exponent for rank in range(1, count + 1)))

    def draw(self, chance: Random) -> int:
        """Give one of the numbers."""
        rank = bisect_right(self._sums, chance.random() * self._sums[-1])
        return self.by_rank[min(rank, len(self.by_rank) - 1)]  # a sum may be rounded up to


class Filters:
    """Draws queries that find something: each takes after a book of the catalogue."""

    def __init__(self, books: Sequence[dict[str, Any]]) -> None:
        if not books:
            raise ValueError("no books to take after")
        self._books = books

    def draw(self, chance: Random) -> Query:
        """Give one or two conditions and, half of the time, an order."""
        book = chance.choice(self._books)
        ways = (self._genre, self._author, self._years, self._prices, self._words)
        query: Query = {}
        for way in chance.sample(ways, chance.choice((1, 1, 2))):
            query |= way(book, chance)
        if chance.random() < 0.5:
            query["sort"] = chance.choice(SORTS)
        return query

    def _genre(self, book: dict[str, Any], chance: Random) -> Query:
        return {"genre": book["genre"] or "Fiction"}

    def _author(self, book: dict[str, Any], chance: Random) -> Query:
        return {"author": book["author"]}

    def _years(self, book: dict[str, Any], chance: Random) -> Query:
        year = book["published_year"] or 2000
        return {"year_min": year - chance.randrange(10), "year_max": year + chance.randrange(10)}

    def _prices(self, book: dict[str, Any], chance: Random) -> Query:
        whole = int(book["price"] or 10)
        return {"price_min": max(0, whole - 2), "price_max": whole + chance.randrange(1, 5)}

    def _words(self, book: dict[str, Any], chance: Random) -> Query:
        words = SEARCHED.findall(book["title"]) or ["the"]
        word = chance.choice(words)
        return {"q": word if chance.random() < 0.5 else word[:PREFIX]}
