"""Generate plausible books: equal seeds give equal books, on any database.

Book `i` of seed `s` depends only on `s` and `i`. So an interrupted run can be continued, and the
first books of a larger run are the books of a smaller run.
"""

import math
import tomllib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from hashlib import blake2b
from importlib.resources import files
from random import Random
from typing import NamedTuple

from faker import Faker
from stdnum import ean

from service.books.schemas import BookCreate
from service.importer.normalise import Accepted

# Fraction of books by a new author. Every other book has the author of a random earlier book, so
# authors with many books get more: Simon's model (Biometrika 42, 1955), with a Zipf tail.
NEW_AUTHORS = 0.5
LOCALES = {"en_GB": 6, "en_US": 8, "de_DE": 2, "fr_FR": 2, "es_ES": 2, "it_IT": 1, "pl_PL": 1,
           "sv_SE": 1, "nl_NL": 1}  # fmt: skip
GENRES = {"Fiction": 46, "Non-Fiction": 27, "History": 14, "Science": 13}
WITHOUT_GENRE, WITHOUT_YEAR, WITHOUT_PRICE = 0.04, 0.03, 0.06
STRAYS = 0.1  # fraction of books with a random genre instead of their author's
THIS_YEAR, FIRST_YEAR, FIRST_ISBN_YEAR = 2026, 1450, 1970
CAREER = 40  # years in which an author writes
ENDINGS = {"0.99": 5, "0.95": 2, "0.50": 1, "0.00": 2}  # cents of prices, with weights
ISBN_GROUP = 200_000_000  # count of numbers of 978-0 and 978-1, without the check digit
ISBN_STEP = 123_606_797  # coprime with ISBN_GROUP, so that every book has a different number
MAX_VIEWS = 10**9


class _Author(NamedTuple):
    name: str
    genre: str
    began: int


def generated_books(count: int, seed: int) -> Iterator[Accepted]:
    """Make `count` books with plausible years, genres and prices. `views` follow Zipf's law."""
    authors = _Authors(seed)
    first_isbn = Random(f"isbn {seed}").randrange(ISBN_GROUP)
    titles = tomllib.loads(files("service.sample_data").joinpath("titles.toml").read_text("utf-8"))
    for number in range(count):
        draw = Random(f"book {seed} {number}")
        author = authors.of_book(number)
        genre = author.genre if draw.random() > STRAYS else _weighted(draw, GENRES)
        year = min(THIS_YEAR, author.began + int(draw.random() * CAREER))
        title = _pick(draw, titles["patterns"][genre]).format_map(_Words(draw, titles["words"]))
        values = {
            "title": title,
            "author": author.name,
            "isbn": _isbn(first_isbn, number) if year >= FIRST_ISBN_YEAR else None,
            "published_year": year if draw.random() > WITHOUT_YEAR else None,
            "genre": genre if draw.random() > WITHOUT_GENRE else None,
            "price": _price(draw) if draw.random() > WITHOUT_PRICE else None,
        }
        # A fraction 1/x of the books has x views or more. So the book of rank n has 1/n of the
        # views of the first.
        views = min(MAX_VIEWS, int(1 / (1 - draw.random())))
        digest = _hash(f"plausible {seed} {number}")
        yield Accepted(BookCreate.model_validate(values), (digest,), views=views)


class _Authors:
    """The author of each book. Authors are generated on demand."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._fakers = {locale: Faker(locale, use_weighting=False) for locale in LOCALES}
        self._author = lru_cache(maxsize=20_000)(self._make)

    def of_book(self, number: int) -> _Author:
        """Return the author of a book: follow random earlier books to the author's first book."""
        while number:
            chance = int.from_bytes(_hash(f"author {self._seed} {number}")) / 2**128
            if chance < NEW_AUTHORS:
                break
            number = int((chance - NEW_AUTHORS) / (1 - NEW_AUTHORS) * number)
        return self._author(number)

    def _make(self, number: int) -> _Author:
        draw = Random(f"name {self._seed} {number}")
        faker = self._fakers[_weighted(draw, LOCALES)]
        faker.seed_instance(draw.getrandbits(64))
        name = f"{faker.first_name()} {faker.last_name()}"
        age = int(-math.log(1 - draw.random()) * 30)
        began = max(FIRST_YEAR, THIS_YEAR - CAREER // 2 - age)
        return _Author(name, _weighted(draw, GENRES), began)


class _Words(dict[str, str]):
    """A mapping for `format_map`: returns a random word of the list with the requested name."""

    def __init__(self, draw: Random, words: Mapping[str, list[str]]) -> None:
        self._draw, self._words = draw, words

    def __missing__(self, name: str) -> str:
        return _pick(self._draw, self._words[name])


def _pick(draw: Random, choices: list[str]) -> str:
    return choices[int(draw.random() * len(choices))]


def _weighted(draw: Random, weights: Mapping[str, int]) -> str:
    return draw.choices(list(weights), list(weights.values()))[0]


def _isbn(first: int, number: int) -> str:
    digits = f"978{(first + number * ISBN_STEP) % ISBN_GROUP:09}"
    return digits + str(ean.calc_check_digit(digits))


def _price(draw: Random) -> Decimal:
    whole = max(1, int(math.exp(draw.gauss(2.6, 0.5))))
    return Decimal(whole) + Decimal(_weighted(draw, ENDINGS))


def _hash(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()
