"""The requested books, by Zipf's law, and the filters of lists, from the books of the catalogue."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import Any

SORTS = [sign + key for key in ("id", "created_at", "title", "published_year", "price")
         for sign in ("", "-")]  # fmt: skip
SEARCHED = re.compile(r"[^\W\d_]{3,}")
PREFIX = 4  # letters of a word that the user has typed

Query = dict[str, str | int]


class Zipf:
    """Draws from 1 to `count`, the n-th most popular with a weight of 1 / n ** exponent.

    `seed` determines the popularity of each number, so that age and popularity differ.
    """

    def __init__(self, count: int, seed: int, exponent: float = 1.0) -> None:
        if count < 1:
            raise ValueError("nothing to draw from")
        self.by_rank = list(range(1, count + 1))
        Random(f"popularity {seed}").shuffle(self.by_rank)
        self._sums = list(accumulate(rank**-exponent for rank in range(1, count + 1)))

    def draw(self, chance: Random) -> int:
        """Return one of the numbers."""
        rank = bisect_right(self._sums, chance.random() * self._sums[-1])
        return self.by_rank[min(rank, len(self.by_rank) - 1)]  # rounding may give the full sum


class Filters:
    """Draws queries with results: each query is made from a book of the catalogue."""

    def __init__(self, books: Sequence[dict[str, Any]]) -> None:
        if not books:
            raise ValueError("no books to make queries from")
        self._books = books

    def draw(self, chance: Random) -> Query:
        """Return one or two conditions and, in half of the cases, a sort order."""
        book = chance.choice(self._books)
        conditions = (self._genre, self._author, self._years, self._prices, self._words)
        query: Query = {}
        for condition in chance.sample(conditions, chance.choice((1, 1, 2))):
            query |= condition(book, chance)
        if chance.random() < 0.5:
            query["sort"] = chance.choice(SORTS)
        return query

    def draw_words(self, chance: Random) -> Query:
        """Return the query of a search: a word of a title, or its first letters."""
        return self._words(chance.choice(self._books), chance)

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
