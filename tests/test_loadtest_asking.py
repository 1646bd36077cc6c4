"""The load test's own sense: what it asks for, what it believes, and how late a delay is."""

import asyncio
import math
import time
from collections import Counter
from random import Random

import pytest

from loadtest.delay import delayed
from loadtest.demand import Filters, Zipf
from loadtest.promises import KEPT, TOLD, Promises, retry_after
from service.books.schemas import BookQuery
from service.sample_data.generated import plausible_books


def test_books_are_drawn_by_zipfs_law() -> None:
    """Chi-squared of 100,000 draws among 50, with 49 degrees of freedom: 99.9 % are below 85.4."""
    count, draws = 50, 100_000
    zipf, chance = Zipf(count, 1), Random(2)
    seen = Counter(zipf.draw(chance) for _ in range(draws))
    assert set(seen) == set(range(1, count + 1))
    whole = math.fsum(1 / rank for rank in range(1, count + 1))
    expected = {n: draws / rank / whole for rank, n in enumerate(zipf.by_rank, 1)}
    assert sum((seen[n] - e) ** 2 / e for n, e in expected.items()) < 85.4


def test_draws_repeat_themselves_and_stay_within_bounds() -> None:
    def drawn(seed: int, count: int = 1_000) -> list[int]:
        zipf, chance = Zipf(count, seed), Random(seed)
        return [zipf.draw(chance) for _ in range(500)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert set(drawn(1, 1)) == {1}
    assert set(drawn(1, 2)) == {1, 2}
    assert Zipf(1_000, 1).by_rank[:10] != Zipf(1_000, 2).by_rank[:10]
    with pytest.raises(ValueError):
        Zipf(0, 1)


class Highest(Random):
    """Draws what is just below one."""

    def random(self) -> float:
        return 1 - 2**-53


def test_the_last_one_can_be_drawn() -> None:
    zipf = Zipf(10_000, 1)
    assert zipf.draw(Highest()) == zipf.by_rank[-1]


def test_every_filter_is_one_that_lists_have() -> None:
    books = [item.book.model_dump(mode="python") for item in plausible_books(300, 3)]
    filters, chance = Filters(books), Random(4)
    seen: Counter[str] = Counter()
    for _ in range(2_000):
        query = filters.draw(chance)
        seen.update(query.keys())
        assert 1 <= len(query.keys() - {"sort", "year_max", "price_max"}) <= 2
        BookQuery.model_validate({name: str(value) for name, value in query.items()})
    assert seen.keys() == {
        "genre", "author", "year_min", "year_max", "price_min", "price_max", "q", "sort"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("told", "seconds"),
    [("1", 1), ("3600", 3600), ("0", None), ("-1", None), ("1.5", None), ("soon", None),
     ("", None), (" 1", None), ("\u0661", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None)],
)  # fmt: skip
def test_retry_after_is_whole_seconds(told: str, seconds: int | None) -> None:
    assert retry_after({"Retry-After": told}) == seconds
    assert retry_after({}) is retry_after(None) is None


class Client:
    """Asks for lists, and remembers what was promised."""

    def __init__(self, *, allow_503: bool = False, limit: str = "books.list") -> None:
        self.tally: Counter[str] = Counter()
        self.promises = Promises(self.tally, allow_503=allow_503)
        self.limit = limit

    def asked(self, status: int, told: str | None, begun: float, ended: float) -> str | None:
        """Give what is wrong with such an answer."""
        headers = None if told is None else {"Retry-After": told}
        return self.promises.unexpected(self.limit, status, headers, begun, ended)

    def wait(self, now: float) -> float:
        return self.promises.wait(self.limit, now)


@pytest.mark.parametrize("told", [None, "0", "soon", "1.5"])
def test_a_429_has_to_say_when(told: str | None) -> None:
    client = Client()
    assert client.asked(429, told, 0, 1) is not None
    assert not client.tally
    assert client.wait(1) == 0


def test_a_promise_holds_from_its_time_on() -> None:
    client = Client()
    assert client.asked(429, "10", begun=100, ended=101) is None
    assert client.wait(105) == 6
    assert client.promises.wait("books.item", 105) == 0
    assert client.asked(429, "7", begun=104, ended=105) is None, "asked too early"
    assert client.asked(429, "1", begun=110.9, ended=111.5) is None, "still too early"
    assert client.wait(111) == 0, "which does not put the end off"
    client.promises.admitted("books.list", begun=111)
    assert client.tally == {TOLD: 3, KEPT: 1}
    assert client.asked(429, "60", begun=111.5, ended=112) is None, "a new one"


def test_one_that_waited_and_is_refused_was_lied_to() -> None:
    client = Client()
    client.asked(429, "10", begun=100, ended=101)
    assert client.asked(429, "5", begun=111, ended=112) is not None
    assert client.wait(112) == 5
    assert client.asked(404, None, begun=118, ended=119) == "answered 404"
    assert client.tally[KEPT] == 1, "whatever the answer was, it was let in"


def test_to_be_let_in_early_is_no_promise_kept() -> None:
    client = Client()
    client.asked(429, "10", begun=100, ended=101)
    for begun in (105, 120):
        client.promises.admitted("books.list", begun)
    assert client.tally[KEPT] == 0


@pytest.mark.parametrize(("status", "told"), [(0, None), (503, "1")])
def test_what_nobody_can_tell_holds_nobody_to_a_promise(status: int, told: str | None) -> None:
    client = Client()
    client.asked(429, "10", begun=100, ended=101)
    client.asked(status, told, begun=112, ended=113)
    assert client.asked(429, "10", begun=120, ended=121) is None


def test_limits_of_an_address_are_nobodys_alone() -> None:
    client = Client(limit="login")
    for begun in (100, 200):
        assert client.asked(429, "10", begun, begun + 1) is None
    assert client.wait(201) == 0


def test_a_503_is_no_failure_only_where_that_is_allowed_and_it_says_when() -> None:
    for allowed in (False, True):
        client = Client(allow_503=allowed)
        assert (client.asked(503, "1", 0, 1) is None) is allowed
        assert client.asked(503, None, 0, 1) == "answered 503"
        assert client.asked(500, "1", 0, 1) == "answered 500"
        assert client.asked(0, None, 0, 1) == "no answer"


async def test_everything_is_late_once_and_in_order() -> None:
    """A long answer does not take as many delays as it has parts."""
    parts = [b"%d," % n * 500 for n in range(400)]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, delayed(server.sockets[0].getsockname()[1], 0.2) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        begun = time.monotonic()
        writer.write(b"ask\n")
        first = await reader.read(1)
        late = time.monotonic() - begun
        assert first + await reader.read() == b"".join(parts)
        whole = time.monotonic() - begun
        writer.close()
    assert 0.2 <= late
    assert whole < 2


async def test_where_nobody_listens_nobody_is_connected() -> None:
    async with delayed(1, 0.1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), 5)
        writer.close()
