"""Generated books: valid, realistic, with popularity by Zipf's law, and the same for a seed."""

import math
from collections import Counter
from itertools import islice

from stdnum import isbn

from service.models import GENRES
from service.sample_data.generated import generated_books


def test_generated_books_have_realistic_proportions() -> None:
    made = list(generated_books(5_000, 1))
    books = [item.book for item in made]
    genres = Counter(book.genre for book in books)
    assert set(genres) == {*GENRES, None}
    assert genres["Fiction"] == max(genres.values())
    assert min(genres.values()) > 50
    numbers = [book.isbn for book in books if book.isbn]
    assert len(set(numbers)) == len(numbers) > 3_500
    assert all(isbn.is_valid(number) for number in numbers)
    assert all((book.published_year or 2000) >= 1970 for book in books if book.isbn)
    years = sorted(book.published_year for book in books if book.published_year)
    assert years[0] < 1900
    assert 1970 < years[len(years) // 2] < 2020
    prices = sorted(book.price for book in books if book.price is not None)
    assert 8 < prices[len(prices) // 2] < 20
    assert len({book.title for book in books}) > 3_000
    authors = Counter(book.author for book in books)
    assert 1_500 < len(authors) < 3_500
    assert (
        sum(1 for n in authors.values() if n == 1) > len(authors) / 2
    )  # most authors have a single book
    assert authors.most_common(1)[0][1] > 30  # and a few have many


def test_popularity_follows_zipf() -> None:
    """Views multiplied by the rank are about the same at every rank."""
    views = sorted((item.views or 0 for item in generated_books(20_000, 2)), reverse=True)
    ranks = (10, 30, 100, 300, 1_000, 3_000)
    slopes = [
        (math.log(views[a - 1]) - math.log(views[b - 1])) / (math.log(b) - math.log(a))
        for a, b in ((ranks[0], ranks[-1]), (ranks[1], ranks[-2]))
    ]
    assert all(0.85 < slope < 1.15 for slope in slopes), slopes


def test_a_seed_makes_the_same_books_and_another_makes_others() -> None:
    few = list(generated_books(300, 5))
    assert list(islice(generated_books(1_000, 5), 300)) == few
    others = list(generated_books(300, 6))
    assert not {item.digest for item in few} & {item.digest for item in others}
    assert len({item.book for item in few} & {item.book for item in others}) == 0
    # A catalogue may hold the books of two seeds.
    first = {item.book.isbn for item in few if item.book.isbn}
    assert not first & {item.book.isbn for item in others if item.book.isbn}
