"""The protocol of a store, which Redis and memory both follow."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from service.cache.entries import (
    Entry,
    generation_key,
    new_generation,
    new_lease,
    read,
    writers_key,
)
from service.cache.redis_store import MARK, UNMARK, RedisStore
from service.cache.store import AnotherStoreError, MemoryStore, Store

GEN, WRITERS = generation_key("book"), writers_key("book")
LIFETIME_SECONDS = 30.0  # of a value or a lease: no key expires during a test


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """A store of each kind."""
    store: Store = (
        MemoryStore(1_000)
        if request.param == "memory"
        else RedisStore(request.getfixturevalue("redis_url"))
    )
    yield store
    await store.close()


@pytest.fixture
async def redis_store(redis_url: str) -> AsyncIterator[RedisStore]:
    """A store in Redis."""
    store = RedisStore(redis_url)
    yield store
    await store.close()


@pytest.fixture
async def prefix(request: pytest.FixtureRequest, redis_url: str) -> str:
    """A prefix of keys that no other test uses, with the run id of the store."""
    if "store" in request.fixturenames:
        run_id = await request.getfixturevalue("store").identify()
    else:
        store = RedisStore(redis_url)
        run_id = await store.identify()
        await store.close()
    return f"octavo:cache:{run_id}:{uuid4().hex}:"


async def test_a_reader_fills_a_key_under_its_lease(store: Store, prefix: str) -> None:
    key, lease = f"{prefix}book:1", new_lease()
    assert await store.get(key) is None
    assert await store.add(key, lease, LIFETIME_SECONDS)
    assert not await store.add(key, new_lease(), LIFETIME_SECONDS)
    assert not await store.replace(key, b"of another", 3.0, new_lease())
    assert await store.replace(key, b"mine", 3.0, lease)
    assert await store.get(key) == b"mine"


async def test_several_keys_are_leased_and_filled_in_one_step(store: Store, prefix: str) -> None:
    keys, lease = [f"{prefix}book:{n}" for n in range(3)], new_lease()
    assert await store.add(keys[1], b"taken", LIFETIME_SECONDS)
    assert await store.lease(keys, lease, LIFETIME_SECONDS) == [True, False, True]
    values = [(key, b"new", LIFETIME_SECONDS) for key in keys]
    assert await store.fill(values, lease) == 2
    assert await store.get_many(keys) == [b"new", b"taken", b"new"]
    assert await store.fill(values) == 3
    assert await store.get_many(keys) == [b"new"] * 3


async def test_a_mark_ends_a_lease(store: Store, prefix: str) -> None:
    key, lease = f"{prefix}book:1", new_lease()
    await store.add(key, lease, LIFETIME_SECONDS)
    await store.mark(prefix, ["book:1"], "writer", lists=[])
    assert not await store.replace(key, b"old", 3.0, lease)
    await store.unmark(prefix, ["book:1"], "writer", lists=[])
    assert await store.get(key) is None
    assert not await store.replace(key, b"old", 3.0, lease), "also after the write"


async def test_the_mark_of_another_write_stays(store: Store, prefix: str) -> None:
    await store.mark(prefix, ["book:1"], "first", lists=[])
    await store.mark(prefix, ["book:1"], "second", lists=[])
    await store.unmark(prefix, ["book:1"], "first", lists=[])
    assert await store.get(f"{prefix}book:1") == b"W:second"


async def test_clearing_deletes_a_value_without_a_mark(store: Store, prefix: str) -> None:
    await store.add(f"{prefix}book:1", b"V\nof a mark that was lost", LIFETIME_SECONDS)
    await store.unmark(prefix, ["book:1"], "writer", lists=[])
    assert await store.get(f"{prefix}book:1") is None


async def test_there_is_no_generation_during_a_write(store: Store, prefix: str) -> None:
    key = prefix + GEN
    await store.add(key, new_generation(), LIFETIME_SECONDS)
    await store.mark(prefix, [], "first", lists=["book"])
    await store.mark(prefix, [], "second", lists=["book"])
    await store.unmark(prefix, [], "second", lists=["book"])
    assert await store.get(key) == b"W", "the first write is under way"
    await store.unmark(prefix, [], "first", lists=["book"])
    generation = await store.get(key)
    assert generation is not None
    assert generation.startswith(b"G:")
    await store.mark(prefix, [], "third", lists=["book"])
    await store.unmark(prefix, [], "third", lists=["book"])
    assert await store.get(key) != generation


async def test_each_kind_has_a_generation_of_its_own(store: Store, prefix: str) -> None:
    kinds = ("book", "review")

    async def generations() -> list[bytes | None]:
        return await store.get_many([prefix + generation_key(kind) for kind in kinds])

    before = [await store.generation(prefix, kind) for kind in kinds]
    await store.mark(prefix, [], "first", lists=["book"])
    assert await generations() == [b"W", before[1]]
    await store.unmark(prefix, [], "first", lists=["book"])
    books, reviews = await generations()
    assert (books or b"").startswith(b"G:")
    assert books != before[0]
    assert reviews == before[1], "no write has changed a review"
    await store.mark(prefix, ["book:1", "review:1"], "second", lists=kinds)
    assert await generations() == [b"W", b"W"]
    await store.mark(prefix, ["review:2"], "third", lists=["review"])
    await store.unmark(prefix, ["book:1", "review:1"], "second", lists=kinds)
    books, reviews = await generations()
    assert (books or b"").startswith(b"G:")
    assert reviews == b"W", "the third write is under way"
    await store.unmark(prefix, ["review:2"], "third", lists=["review"])
    assert ((await generations())[1] or b"").startswith(b"G:")
    names = ("book:1", "review:1", "review:2")
    assert await store.get_many([prefix + name for name in names]) == [None] * 3


async def test_all_kinds_are_marked_and_cleared_in_one_step(
    redis_store: RedisStore, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts: list[Any] = []
    submit = redis_store.batcher.submit

    def note(kind: Any, request: Any, callback: Any) -> None:
        scripts.append(kind)
        submit(kind, request, callback)

    monkeypatch.setattr(redis_store.batcher, "submit", note)
    for kinds in (["book"], ["book", "review", "user"]):
        await redis_store.mark(prefix, ["book:1"], "writer", lists=kinds)
        await redis_store.unmark(prefix, ["book:1"], "writer", lists=kinds)
    assert scripts == [MARK, UNMARK] * 2


async def test_a_sweep_deletes_only_values(store: Store, prefix: str) -> None:
    for name in ("book:1", "list:1"):
        await store.add(prefix + name, Entry(b"1", b"{}").write(name), LIFETIME_SECONDS)
    await store.add(f"{prefix}book:2", new_lease(), LIFETIME_SECONDS)
    await store.mark(prefix, ["book:3"], "writer", lists=["book"])
    await store.generation(prefix, "review")
    await store.aio.add("octavo:limit:somebody", b"V\nof another user", ttl=LIFETIME_SECONDS)
    assert await store.sweep(prefix) == 2
    names = ("book:1", "book:2", "book:3", GEN, generation_key("review"))
    left = await store.get_many([prefix + name for name in names])
    assert [value is not None for value in left] == [False, True, True, True, False]
    assert await store.aio.get("octavo:limit:somebody")
    await store.aio.delete("octavo:limit:somebody")


async def test_every_key_expires(redis_url: str, redis_store: RedisStore, prefix: str) -> None:
    await redis_store.mark(prefix, ["book:1"], "writer", lists=["book"])
    await redis_store.fill([(f"{prefix}list:1", b"V", LIFETIME_SECONDS)])
    await redis_store.lease([f"{prefix}book:2"], new_lease(), LIFETIME_SECONDS)
    redis: Any
    async with Redis.from_url(redis_url) as redis:
        keys = [key async for key in redis.scan_iter(f"{prefix}*")]
        assert len(keys) == 5
        assert all([0 < await redis.pttl(key) <= 30_000 for key in keys])


async def test_memory_keeps_the_values_that_are_used(prefix: str) -> None:
    store = MemoryStore(100)
    for n in range(150):
        await store.add(f"{n}", b"V\n", 30.0)
        await store.get("0")
    assert [await store.get(str(n)) is None for n in (0, 1, 50, 51, 149)] == [
        False, True, True, False, False,
    ]  # fmt: skip


async def test_a_command_for_another_redis_is_refused(redis_store: RedisStore, prefix: str) -> None:
    store = redis_store
    assert await store.get(f"{prefix}book:1") is None
    for _ in range(2):
        with pytest.raises(AnotherStoreError):
            await store.get("octavo:cache:another:1:book:1")
        with pytest.raises(AnotherStoreError):
            await store.mark("octavo:cache:another:1:", ["book:1"], "writer", lists=["book"])
        assert await store.get(f"{prefix}book:1") is None


async def test_a_repeated_command_does_not_restore_a_generation(
    redis_store: RedisStore, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command whose reply was lost is sent again unchanged, perhaps after another write."""
    monkeypatch.setattr("service.cache.redis_store.new_generation", lambda: b"G:the same")
    store = redis_store
    seen = {await store.generation(prefix, "book")}
    for number in range(1, 100):
        await store.unmark(prefix, [], "first", lists=["book"])
        seen.add(await store.generation(prefix, "book"))
        assert len(seen) == 2 * number
        await store.aio.delete(prefix + GEN)
        seen.add(await store.generation(prefix, "book"))
        assert len(seen) == 2 * number + 1


@pytest.mark.parametrize("lost", [{GEN}, {WRITERS}, {GEN, WRITERS}])
async def test_clearing_begins_a_generation_also_after_a_loss(
    store: Store, prefix: str, lost: set[str]
) -> None:
    """Also if another generation has begun since the marks were lost."""
    before = await store.generation(prefix, "book")
    await store.mark(prefix, [], "writer", lists=["book"])
    await lose(store, prefix, lost)
    meanwhile = await store.generation(prefix, "book")
    assert meanwhile.startswith(b"G:") == (lost == {GEN, WRITERS}), (
        "a lost generation does not hide the write"
    )
    await store.unmark(prefix, [], "writer", lists=["book"])
    after = await store.generation(prefix, "book")
    assert after.startswith(b"G:")
    assert after not in {before, meanwhile}


async def lose(store: Store, prefix: str, names: set[str]) -> None:
    """Let keys vanish."""
    for name in names:
        await store.aio.delete(prefix + name)
    if isinstance(store, MemoryStore) and WRITERS in names:
        store._writers.clear()  # private: no public method loses the writers of memory


async def test_a_generation_that_was_evicted_does_not_come_back_early(
    store: Store, prefix: str
) -> None:
    for writer in ("first", "second"):
        await store.mark(prefix, [], writer, lists=["book"])
    await store.aio.delete(prefix + GEN)
    await store.add(prefix + GEN, new_generation(), 30.0)
    await store.unmark(prefix, [], "first", lists=["book"])
    assert await store.get(prefix + GEN) == b"W", "the second write is under way"
    await store.unmark(prefix, [], "second", lists=["book"])
    assert (await store.get(prefix + GEN) or b"").startswith(b"G:")


async def test_many_concurrent_commands_wait_for_a_connection(
    redis_store: RedisStore, prefix: str
) -> None:
    values = await asyncio.gather(*(redis_store.get(f"{prefix}{n}") for n in range(200)))
    assert values == [None] * 200


def test_an_entry_is_read_only_under_its_own_key() -> None:
    kept = Entry(b"3", b'{"title":"a\\nb"}')
    assert read(kept.write("1:book:7"), "1:book:7") == kept
    assert read(kept.write("1:book:7"), "1:book:8") is None
    assert read(kept.write("1:book:7"), "2:book:7") is None
    for other in (None, b"L:1", b"W:1", b"W", b"G:1", b"V"):
        assert read(other, "1:book:7") is None
