"""An epoch of the cache ends while a list is read: its ids and its rows are of one moment.

After the end of an epoch, writes mark no keys of it: generation and rows look unchanged there.
"""

from typing import Any

import pytest

from service.cache import ListResult
from tests.epochs import NEW, OLD, Catalogue


def assert_of_one_moment(result: ListResult, rows: dict[int, bytes]) -> None:
    """Check that ids, rows and total belong together."""
    assert (list(result.bodies), result.total) == (list(rows.values()), len(rows))


@pytest.mark.parametrize("token", [None, "second"])
@pytest.mark.parametrize("place", ["before_rows", "after_rows"])
async def test_an_epoch_that_ends_between_ids_and_rows(place: str, token: str | None) -> None:
    catalogue = Catalogue()
    setattr(catalogue, place, lambda: catalogue.end_epoch(token))
    result = await catalogue.read()
    assert_of_one_moment(result, NEW)
    assert result.status == "bypass"
    assert_of_one_moment(await catalogue.read(), NEW)


@pytest.mark.parametrize("token", [None, "second"])
async def test_an_epoch_that_ends_while_only_the_ids_are_missing(token: str | None) -> None:
    """Every row is in the cache, so no row is loaded after the end of the epoch."""
    catalogue = Catalogue()
    for row_id in OLD:
        await catalogue.items.read(catalogue.kind, row_id)
    await catalogue.reader.close()
    catalogue.before_rows = lambda: catalogue.end_epoch(token)
    assert_of_one_moment(await catalogue.read(), NEW)


@pytest.mark.parametrize("place", ["before_rows", "after_rows"])
async def test_a_write_between_ids_and_rows(place: str) -> None:
    """The epoch goes on: the write marks its rows, and ends the generation of the lists."""
    catalogue = Catalogue()

    async def write() -> None:
        catalogue.before_rows = catalogue.after_rows = None
        prefix, keys = catalogue.state("first").prefix, ["book:1", "book:2", "book:3", "book:4"]
        await catalogue.store.mark(prefix, keys, "writer", ["book"])
        catalogue.rows = dict(NEW)
        await catalogue.store.unmark(prefix, keys, "writer", ["book"])

    setattr(catalogue, place, write)
    assert_of_one_moment(await catalogue.read(), NEW)
    assert_of_one_moment(await catalogue.read(), NEW)


async def test_a_list_is_a_hit_until_a_write_and_in_its_own_epoch_alone() -> None:
    catalogue = Catalogue()
    assert [(await catalogue.read()).status for _ in range(3)] == ["miss", "hit", "hit"]
    await catalogue.end_epoch("second")
    for status in ("miss", "hit"):
        result = await catalogue.read()
        assert result.status == status
        assert_of_one_moment(result, NEW)
    catalogue.lease.state = None
    assert (await catalogue.read()).status == "bypass"


async def test_a_row_that_is_deleted_under_its_list_is_no_gap() -> None:
    """The rows are read past the lost marks of a write: one id of the list has no row."""
    catalogue = Catalogue()

    async def lose() -> None:
        catalogue.before_rows = None
        del catalogue.rows[1]

    catalogue.before_rows = lose
    result = await catalogue.read()
    assert_of_one_moment(result, {2: OLD[2]})


@pytest.mark.parametrize("keeping", ["generation", "ttl"])
async def test_a_total_ends_with_the_generation_of_its_list(keeping: Any) -> None:
    """Pages may be kept for their time to live. A total never is."""
    catalogue = Catalogue(keeping)
    assert (await catalogue.read()).total == len(OLD)
    prefix = catalogue.state("first").prefix
    await catalogue.store.mark(prefix, [], "writer", ["book"])
    catalogue.rows = OLD | NEW
    await catalogue.store.unmark(prefix, [], "writer", ["book"])
    result = await catalogue.read()
    assert result.total == len(catalogue.rows)
    assert len(result.bodies) == (len(catalogue.rows) if keeping == "generation" else len(OLD))
