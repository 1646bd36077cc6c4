"""The load test: its requests, its judgement of responses, and its delayed network."""

import asyncio
import math
import time
from collections import Counter
from random import Random

import pytest

from loadtest.delay import delayed
from loadtest.demand import Filters, Zipf
from loadtest.retry_after import HONORED, SENT, RetryAfterTracker, retry_after
from service.books.schemas import BookQuery
from service.sample_data.generated import generated_books

DELAY = 3.0  # seconds


def test_books_are_drawn_by_zipfs_law() -> None:
    """Chi-squared for 49 degrees of freedom: 99.9 % of such samples are below 85.4."""
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
    """Draws the highest number, just below 1."""

    def random(self) -> float:
        return 1 - 2**-53


def test_the_last_book_can_be_drawn() -> None:
    zipf = Zipf(10_000, 1)
    assert zipf.draw(Highest()) == zipf.by_rank[-1]


def test_every_drawn_filter_is_valid() -> None:
    books = [item.book.model_dump(mode="python") for item in generated_books(300, 3)]
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
    ("header", "seconds"),
    [("1", 1), ("3600", 3600), ("0", None), ("-1", None), ("1.5", None), ("soon", None),
     ("", None), (" 1", None), ("\u0661", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None)],
)  # fmt: skip
def test_retry_after_is_whole_seconds(header: str, seconds: int | None) -> None:
    assert retry_after({"Retry-After": header}) == seconds
    assert retry_after({}) is retry_after(None) is None


class Client:
    """Requests lists, and remembers the Retry-After of their responses."""

    def __init__(self, *, allow_503: bool = False, limit: str = "books.list") -> None:
        self.tally: Counter[str] = Counter()
        self.promises = RetryAfterTracker(self.tally, allow_503=allow_503)
        self.limit = limit

    def receive(self, status: int, header: str | None, begun: float, ended: float) -> str | None:
        """Receive a response with this Retry-After. Return its error, or None."""
        headers = None if header is None else {"Retry-After": header}
        return self.promises.unexpected(self.limit, status, headers, begun, ended)

    def wait(self, now: float) -> float:
        return self.promises.wait(self.limit, now)


@pytest.mark.parametrize("header", [None, "0", "soon", "1.5"])
def test_a_429_needs_a_valid_retry_after(header: str | None) -> None:
    client = Client()
    assert client.receive(429, header, 0, 1) is not None
    assert not client.tally
    assert client.wait(1) == 0


def test_a_request_after_retry_after_is_admitted() -> None:
    client = Client()
    assert client.receive(429, "10", begun=100, ended=101) is None
    assert client.wait(105) == 6
    assert client.promises.wait("books.item", 105) == 0
    assert client.receive(429, "7", begun=104, ended=105) is None, "the request was too early"
    assert client.receive(429, "1", begun=110.9, ended=111.5) is None, (
        "the request was still too early"
    )
    assert client.wait(111) == 0, "a request that was too early does not prolong the wait"
    client.promises.admitted("books.list", begun=111)
    assert client.tally == {SENT: 3, HONORED: 1}
    assert client.receive(429, "60", begun=111.5, ended=112) is None, "a new one"


def test_a_429_after_the_wait_is_an_error() -> None:
    client = Client()
    client.receive(429, "10", begun=100, ended=101)
    assert client.receive(429, "5", begun=111, ended=112) is not None
    assert client.wait(112) == 5
    assert client.receive(404, None, begun=118, ended=119) == "status 404"
    assert client.tally[HONORED] == 1, "whatever the answer was, it was let in"


def test_an_admission_before_retry_after_does_not_count_as_kept() -> None:
    client = Client()
    client.receive(429, "10", begun=100, ended=101)
    for begun in (105, 120):
        client.promises.admitted("books.list", begun)
    assert client.tally[HONORED] == 0


@pytest.mark.parametrize(("status", "header"), [(0, None), (503, "1")])
def test_an_unclear_response_ends_the_wait(status: int, header: str | None) -> None:
    client = Client()
    client.receive(429, "10", begun=100, ended=101)
    client.receive(status, header, begun=112, ended=113)
    assert client.receive(429, "10", begun=120, ended=121) is None


def test_a_limit_of_an_address_causes_no_wait() -> None:
    client = Client(limit="login")
    for begun in (100, 200):
        assert client.receive(429, "10", begun, begun + 1) is None
    assert client.wait(201) == 0


def test_a_503_is_no_error_if_it_is_allowed_and_has_a_retry_after() -> None:
    for allowed in (False, True):
        client = Client(allow_503=allowed)
        assert (client.receive(503, "1", 0, 1) is None) is allowed
        assert client.receive(503, None, 0, 1) == "status 503"
        assert client.receive(500, "1", 0, 1) == "status 500"
        assert client.receive(0, None, 0, 1) == "no response"


async def test_a_response_is_delayed_once_and_kept_in_order() -> None:
    """A delay for each chunk (13 or more) would take at least 39 s."""
    parts = [b"%d," % n * 500 for n in range(400)]

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    async with server, delayed(server.sockets[0].getsockname()[1], DELAY) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            begun = time.monotonic()
            writer.write(b"request\n")
            first = await reader.read(1)
            first_after = time.monotonic() - begun
            assert first + await reader.read() == b"".join(parts)
            last_after = time.monotonic() - begun
        finally:
            writer.close()
    assert DELAY <= first_after
    assert last_after < 30


async def test_a_connection_to_a_closed_port_is_closed() -> None:
    async with delayed(1, 0.1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await asyncio.wait_for(reader.readexactly(1), 30)
        finally:
            writer.close()
