"""A row that was requested from the cache in advance is used only if it still may be used."""

from typing import Any

import pytest
from redis.exceptions import RedisError

from service.cache import NONE, Entry, Prefetch
from service.cache.entries import new_lease
from service.cache.items import NONE_SECONDS
from service.logs import request_id
from tests.epochs import OLD, Catalogue

ROW = Entry(b"1", OLD[1])


async def filled() -> Catalogue:
    """A catalogue whose first row is in the cache."""
    catalogue = Catalogue()
    assert await catalogue.items.read(catalogue.kind, 1) == (ROW, "miss")
    await catalogue.reader.close()
    return catalogue


def prefetched(catalogue: Catalogue) -> Prefetch:
    """Request the first row in advance."""
    prefetch = catalogue.items.prefetch(catalogue.kind, 1)
    assert prefetch is not None
    return prefetch


async def test_a_prefetched_row_is_used_within_its_epoch() -> None:
    catalogue = await filled()
    prefetch = prefetched(catalogue)
    assert catalogue.items.take(prefetch, catalogue.kind, 1) == ROW
    assert catalogue.reader.counters.hits == 1


@pytest.mark.parametrize("token", [None, "second"])
async def test_a_prefetched_row_is_not_used_after_its_epoch(token: str | None) -> None:
    catalogue = await filled()
    prefetch = prefetched(catalogue)
    await catalogue.end_epoch(token)
    assert catalogue.items.take(prefetch, catalogue.kind, 1) is None


async def test_a_row_of_another_store_is_not_used() -> None:
    """A restarted Redis replies over the same address: its run id is another one."""
    catalogue = await filled()
    prefetch = prefetched(catalogue)
    assert isinstance(prefetch.reply, tuple)
    prefetch.receive(("another run", prefetch.reply[1]))
    assert catalogue.items.take(prefetch, catalogue.kind, 1) is None


async def test_a_reply_that_has_not_arrived_is_not_waited_for() -> None:
    catalogue = await filled()
    waiting = Prefetch(catalogue.state("first"))
    assert catalogue.items.take(waiting, catalogue.kind, 1) is None
    assert catalogue.items.take(None, catalogue.kind, 1) is None


@pytest.mark.parametrize("error", [RedisError("down"), OSError("gone"), TimeoutError()])
async def test_three_failed_replies_open_the_circuit_breaker(error: Exception) -> None:
    catalogue = await filled()
    for _ in range(3):
        prefetch = prefetched(catalogue)
        prefetch.receive(error)
        assert catalogue.items.take(prefetch, catalogue.kind, 1) is None
    assert catalogue.items.prefetch(catalogue.kind, 1) is None
    assert await catalogue.items.read(catalogue.kind, 1) == (ROW, "bypass")
    await catalogue.breaker.close()


@pytest.mark.parametrize("error", [RedisError("down"), OSError("gone"), TimeoutError()])
async def test_a_store_that_fails_is_bypassed(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = await filled()

    async def fail(*_: Any) -> Any:
        raise error

    for command in ("get", "get_many"):
        monkeypatch.setattr(catalogue.store, command, fail)
    assert await catalogue.items.read(catalogue.kind, 1) == (ROW, "bypass")
    result = await catalogue.read()
    assert (list(result.bodies), result.status) == (list(OLD.values()), "bypass")
    await catalogue.breaker.close()


@pytest.mark.parametrize(
    "value",
    [
        b"W:writer",  # a write is under way
        new_lease(),  # another reader fills the entry
        b"V\nshape:book:2\n1\nanother row",
        b"V\nanother shape:book:1\n1\nof another release",
    ],
    ids=["a write", "a lease", "another key", "another release"],
)
async def test_a_value_that_is_not_the_row_is_not_used(value: bytes) -> None:
    catalogue = Catalogue()
    key = catalogue.state("first").prefix + "book:1"
    await catalogue.store.add(key, value, 60)
    prefetch = prefetched(catalogue)
    assert catalogue.items.take(prefetch, catalogue.kind, 1) is None
    assert (await catalogue.items.read(catalogue.kind, 1))[0] == ROW
    await catalogue.reader.close()
    is_kept = value.startswith((b"W:", b"L:"))
    assert (await catalogue.store.get(key) == value) is is_kept


async def test_a_row_that_does_not_exist_is_remembered_for_a_short_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    catalogue = Catalogue()
    lives: list[float] = []
    fill = catalogue.store.fill

    async def note(values: Any, lease: bytes | None = None) -> int:
        lives.extend(seconds for _, _, seconds in values)
        return await fill(values, lease)

    monkeypatch.setattr(catalogue.store, "fill", note)
    assert await catalogue.items.read(catalogue.kind, 99) == (NONE, "miss")
    assert await catalogue.items.read(catalogue.kind, 1) == (ROW, "miss")
    await catalogue.reader.close()
    assert lives[0] == NONE_SECONDS
    assert 0.9 * 60 <= lives[1] <= 1.1 * 60
    assert await catalogue.items.read(catalogue.kind, 99) == (NONE, "hit")


async def test_a_request_for_which_the_store_failed_does_not_use_it_again() -> None:
    catalogue = await filled()
    before = request_id.set("first-request")
    try:
        catalogue.reader.failed(RedisError("down"))
        assert (await catalogue.items.read(catalogue.kind, 1))[1] == "bypass"
        assert catalogue.items.prefetch(catalogue.kind, 1) is None
        request_id.set("second-request")
        assert (await catalogue.items.read(catalogue.kind, 1))[1] == "hit"
    finally:
        request_id.reset(before)
