"""The cached rows and lists that a write changes, also by cascades of the database.

The models have a metadata of their own: the metadata of the service is compared with the
migrations.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import (
    ForeignKey,
    ForeignKeyConstraint,
    UniqueConstraint,
    delete,
    event,
    insert,
    select,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

from service.cache import (
    Cache,
    Entry,
    Kind,
    ListIds,
    ListQuery,
    Status,
    delete_rows,
    touch_rows,
)
from service.cache import change_tracking as change_tracking
from service.cache.change_tracking import Changes, changes_of
from service.errors import ResourceNotFoundError
from service.http.auth import USERS
from service.models import Book, User
from service.models.cached import cached
from tests.conftest import Site
from tests.factories import Factory

Work = Callable[[Any], Awaitable[object]]


class Base(DeclarativeBase):
    """The models of these tests."""


class Publisher(Base):
    """A row that is not cached, with cached rows that refer to its name."""

    __tablename__ = "test_publishers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


@cached("series", lists=True)
class Series(Base):
    """A child of a publisher."""

    __tablename__ = "test_series"

    id: Mapped[int] = mapped_column(primary_key=True)
    publisher: Mapped[str] = mapped_column(ForeignKey("test_publishers.name", ondelete="CASCADE"))


class Volume(Base):
    """A child of a series, which is not cached."""

    __tablename__ = "test_volumes"

    series_id: Mapped[int] = mapped_column(
        ForeignKey("test_series.id", ondelete="cascade"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True)


@cached("leaf", lists=True)
class Leaf(Base):
    """A child of a volume, whose key has two columns."""

    __tablename__ = "test_leaves"
    __table_args__ = (
        ForeignKeyConstraint(
            ["series_id", "volume"],
            ["test_volumes.series_id", "test_volumes.number"],
            ondelete="CASCADE",
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    series_id: Mapped[int]
    volume: Mapped[int]


@cached("reader")
class Reader(Base):
    """A reader whose favourite series may be deleted. No list of readers is cached."""

    __tablename__ = "test_readers"

    id: Mapped[int] = mapped_column(primary_key=True)
    favourite: Mapped[int | None] = mapped_column(ForeignKey("test_series.id", ondelete="SET NULL"))


@cached("loan", lists=True)
class Loan(Base):
    """A row whose foreign key prevents that its reader is deleted."""

    __tablename__ = "test_loans"

    id: Mapped[int] = mapped_column(primary_key=True)
    reader_id: Mapped[int] = mapped_column(ForeignKey("test_readers.id"))


@cached("branch", lists=True)
class Branch(Base):
    """A tree: a row may be its own ancestor."""

    __tablename__ = "test_branches"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(
        ForeignKey("test_branches.id", ondelete="CASCADE")
    )


class Rack(Base):
    """A row that is not cached, and whose bottles the ORM deletes."""

    __tablename__ = "test_racks"

    id: Mapped[int] = mapped_column(primary_key=True)
    bottles: Mapped[list["Bottle"]] = relationship(cascade="all, delete-orphan")


@cached("bottle", lists=True)
class Bottle(Base):
    """A row that the ORM deletes when its rack loses it."""

    __tablename__ = "test_bottles"

    id: Mapped[int] = mapped_column(primary_key=True)
    rack_id: Mapped[int] = mapped_column(ForeignKey("test_racks.id"))


class Stamp(Base):
    """A row to which no cached row refers."""

    __tablename__ = "test_stamps"
    __table_args__ = (UniqueConstraint("id"),)

    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
async def library(site: Site) -> AsyncIterator[Site]:
    """An application whose database has tables of these models, with rows."""
    engine = site.database.writer
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    try:
        await fill(site)
        yield site
    finally:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.drop_all)


async def fill(site: Site) -> None:
    """Add two publishers with three series, and the rows that refer to them."""
    await changes(
        site,
        *(Publisher(id=number, name=name) for number, name in enumerate("AB", 1)),
        Series(id=1, publisher="A"),
        Series(id=2, publisher="A"),
        Series(id=3, publisher="B"),
        *(Volume(series_id=1, number=number) for number in (1, 2)),
        Volume(series_id=3, number=1),
        *(Leaf(id=number, series_id=1, volume=number) for number in (1, 2)),
        Leaf(id=3, series_id=3, volume=1),
        Reader(id=1, favourite=1),
        Reader(id=2, favourite=3),
        Loan(id=1, reader_id=1),
    )


async def changes(site: Site, *work: Any) -> Changes:
    """Do work in a write, or add rows, and return the changes that its session tracked."""
    tracked: list[Changes] = []

    async def tracking(db: Any) -> None:
        for part in work:
            if isinstance(part, Base):
                db.add(part)
            else:
                await part(db)
            await db.flush()
        tracked.append(changes_of(db))

    await site.database.write(tracking)
    return tracked[-1]


def deletion(model: Any, row_id: int) -> Work:
    """Delete a row with the ORM."""

    async def work(db: Any) -> None:
        await db.delete(await db.get(model, row_id))

    return work


async def test_a_cascade_is_followed_over_tables_that_are_not_cached(library: Site) -> None:
    tracked = await changes(library, deletion(Publisher, 1))
    assert tracked.keys == {"series:1", "series:2", "leaf:1", "leaf:2", "reader:1"}
    assert tracked.lists == {"series", "leaf"}
    assert not tracked.many
    async with library.database.session() as db:
        assert [*await db.scalars(select(Leaf.id))] == [3]
        assert [*await db.scalars(select(Reader.favourite).order_by(Reader.id))] == [None, 3]


async def test_a_cascade_ends_at_a_row_that_stays(library: Site) -> None:
    """SET NULL changes a row; rows that refer to that row do not change."""
    tracked = await changes(library, deletion(Series, 3))
    assert tracked.keys == {"series:3", "leaf:3", "reader:2"}
    assert tracked.lists == {"series", "leaf"}


async def test_lists_of_dependent_rows_end_also_without_such_rows(library: Site) -> None:
    """An empty list of a deleted row must not stay, with each action of the foreign key."""
    tracked = await changes(library, deletion(Series, 2))
    assert (tracked.keys, tracked.lists) == ({"series:2"}, {"series", "leaf"})
    tracked = await changes(library, deletion(Reader, 2))
    assert (tracked.keys, tracked.lists) == ({"reader:2"}, {"loan"})


async def test_rows_that_one_statement_deletes_are_tracked(library: Site) -> None:
    """Also the rows that the database deletes with them."""
    table: Any = Series.__table__
    statement = delete(table).where(table.c.id.in_([1, 3])).returning(table.c.id)

    async def work(db: Any) -> None:
        await delete_rows(db, Series, [1, 3], statement, {})

    tracked = await changes(library, work)
    series, leaves, readers = {"series:1", "series:3"}, {"leaf:1", "leaf:2", "leaf:3"}, {1, 2}
    assert tracked.keys == series | leaves | {f"reader:{n}" for n in readers}
    assert tracked.lists == {"series", "leaf"}
    assert not tracked.many


async def test_a_cascade_within_a_table_ends(library: Site) -> None:
    await changes(
        library, *(Branch(id=n, parent_id=n - 1 or None) for n in range(1, 5)), Branch(id=9)
    )

    async def close_the_ring(db: Any) -> None:
        (await db.get(Branch, 1)).parent_id = 4

    await changes(library, close_the_ring)
    tracked = await changes(library, deletion(Branch, 2))
    assert tracked.keys == {f"branch:{n}" for n in range(1, 5)}
    async with library.database.session() as db:
        assert [*await db.scalars(select(Branch.id))] == [9]


async def test_rows_that_the_orm_deletes_are_tracked(library: Site) -> None:
    await changes(library, Rack(id=1, bottles=[Bottle(id=1), Bottle(id=2), Bottle(id=3)]))

    async def remove_bottle(db: Any) -> None:
        query = select(Rack).options(selectinload(Rack.bottles))
        rack = await db.scalar(query)
        rack.bottles.remove(await db.get(Bottle, 2))

    assert (await changes(library, remove_bottle)).keys == {"bottle:2"}

    async def delete_rack(db: Any) -> None:
        await db.delete(await db.scalar(select(Rack).options(selectinload(Rack.bottles))))

    tracked = await changes(library, delete_rack)
    assert (tracked.keys, tracked.lists) == ({"bottle:1", "bottle:3"}, {"bottle"})


@pytest.mark.parametrize(("most", "is_many"), [(1, True), (7, True), (8, False)])
async def test_more_rows_than_the_limit_count_as_many(
    library: Site, monkeypatch: pytest.MonkeyPatch, most: int, is_many: bool
) -> None:
    """A publisher, two series, two volumes, two leaves and a reader make eight rows."""
    monkeypatch.setattr(change_tracking, "MAX_CHANGED_KEYS", most)

    async def undone(db: Any) -> None:
        await deletion(Publisher, 1)(db)
        await db.flush()
        assert changes_of(db).many == is_many
        raise InterruptedError  # committed, it would turn the cache off

    with pytest.raises(InterruptedError):
        await library.database.write(undone)


@pytest.mark.parametrize(
    ("statement", "is_many"),
    [
        (delete(Series), True),
        (delete(Base.metadata.tables["test_series"]), True),
        (update(Series).values(publisher="A"), True),
        (insert(Series).values(id=9, publisher="A"), True),
        (delete(Publisher), True),
        (delete(Base.metadata.tables["test_publishers"]), True),
        (delete(Volume), True),
        (update(Publisher).values(id=Publisher.id + 5), False),
        (insert(Publisher).values(id=9, name="C"), False),
        (delete(Stamp), False),
    ],
)
async def test_a_statement_on_a_table_changes_many_rows_if_cached_rows_depend_on_it(
    library: Site, statement: Any, is_many: bool
) -> None:
    async def undone(db: Any) -> None:
        await db.execute(statement)
        assert changes_of(db).many == is_many
        raise InterruptedError

    with pytest.raises(InterruptedError):
        await library.database.write(undone)


@pytest.mark.parametrize(
    ("model", "values", "key"),
    [
        (Series, {"id": 7, "publisher": "A"}, "series:7"),
        (Leaf, {"id": 7, "series_id": 1, "volume": 1}, "leaf:7"),
    ],
)
async def test_a_child_that_is_added_during_a_deletion_is_marked(
    library: Site, model: Any, values: dict[str, Any], key: str
) -> None:
    """The deletion waits for the child's write, and selects the children after that."""
    if library.database.url.get_backend_name() == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    is_inserted, go_on = asyncio.Event(), asyncio.Event()

    async def add(db: Any) -> None:
        db.add(model(**values))
        await db.flush()
        is_inserted.set()
        await go_on.wait()

    adding = asyncio.create_task(library.database.write(add))
    try:
        await is_inserted.wait()
        deleting = asyncio.create_task(changes(library, deletion(Publisher, 1)))
        await asyncio.sleep(0.3)
        assert not deleting.done()
    finally:
        go_on.set()
        await adding
    assert key in (await deleting).keys


@pytest.mark.parametrize(("model", "selects"), [(Book, 0), (User, 2)])
async def test_a_deletion_selects_rows_only_for_cascades(
    site: Site, make: Factory, model: Any, selects: int
) -> None:
    """Without cached rows that refer to the row: no SELECT. Else its lock and its children: two."""
    owner = await make.member()
    row_id = (await make.book(owner)).id if model is Book else owner.id
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        statements.append(statement)

    async def work(db: Any) -> None:
        row = await db.get(model, row_id)
        event.listen(site.database.writer.sync_engine, "before_cursor_execute", note)
        try:
            await db.delete(row)
            await db.flush()
        finally:
            event.remove(site.database.writer.sync_engine, "before_cursor_execute", note)

    await site.database.write(work)
    assert [statement.split()[0] for statement in statements] == ["SELECT"] * selects + ["DELETE"]


async def load_leaves(db: Any, ids: Any) -> dict[int, Entry]:
    """Return the entries of leaves."""
    rows = await db.scalars(select(Leaf).where(Leaf.id.in_(ids)))
    return {row.id: Entry(b"1", b"%d" % row.volume) for row in rows}


LEAVES = Kind("leaf", "1", load_leaves, lambda row: b"%d" % row.volume)


def leaves_of(series_id: int) -> ListQuery:
    """List the leaves of a series. Raises ResourceNotFoundError."""

    async def rows(db: Any) -> list[Leaf]:
        if await db.get(Series, series_id) is None:
            raise ResourceNotFoundError
        query = select(Leaf).where(Leaf.series_id == series_id).order_by(Leaf.id)
        return [*await db.scalars(query)]

    async def find(db: Any, wanted: tuple[bool, bool]) -> ListIds:
        leaves = await rows(db)
        return ListIds(tuple(leaf.id for leaf in leaves), len(leaves))

    async def read_all(db: Any) -> Any:
        leaves = await rows(db)
        return [LEAVES.write(leaf) for leaf in leaves], len(leaves), None

    return ListQuery(LEAVES, {"series": series_id}, [], counted=True, find=find, read_all=read_all)


async def test_a_second_resource_is_cached_and_never_stale(library: Site, make: Factory) -> None:
    """Its lists stay when a book changes, and end with a row to which they refer."""
    cache: Cache = library.app.extensions["cache"]

    async def read(series_id: int) -> tuple[int, Status]:
        rows = await cache.lists.read(leaves_of(series_id))
        while cache.access.under_way:
            await asyncio.wait(set(cache.access.under_way))
        return rows.total, rows.status

    assert [await read(1) for _ in range(2)] == [(2, "miss"), (2, "hit")]
    assert [await read(2) for _ in range(2)] == [(0, "miss"), (0, "hit")]
    await make.book(await make.member())
    assert [await read(1), await read(2)] == [(2, "hit"), (0, "hit")]
    await changes(library, Leaf(id=8, series_id=1, volume=2))
    assert [await read(1) for _ in range(2)] == [(3, "miss"), (3, "hit")]
    assert [await read(2) for _ in range(2)] == [(0, "miss"), (0, "hit")]
    assert (await cache.items.read(LEAVES, 8))[0].body == b"2"
    await changes(library, deletion(Series, 2))
    with pytest.raises(ResourceNotFoundError):
        await read(2)
    await changes(library, deletion(Publisher, 1))
    assert (await cache.items.read(LEAVES, 8))[0].body == b""


async def test_the_sampler_finds_a_list_of_a_deleted_row(
    library: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache: Cache = library.app.extensions["cache"]
    monkeypatch.setattr(cache.access, "sampled", 1.0)
    monkeypatch.setattr(cache.access, "sampling_seconds", 0.0)
    stale: list[str] = []
    monkeypatch.setattr(cache.access, "stale", stale.append)

    async def read() -> None:
        await cache.lists.read(leaves_of(2))
        while cache.access.under_way:
            await asyncio.wait(set(cache.access.under_way))

    for _ in range(2):
        await read()
    assert not stale
    async with library.database.writer.begin() as connection:  # a write that the cache does not see
        await connection.execute(delete(Series).where(Series.id == 2))
    await read()
    assert stale == [leaves_of(2).page]


async def test_a_write_can_name_rows_that_raw_sql_changes(library: Site) -> None:
    async def work(db: Any) -> None:
        touch_rows(db, Reader, [1, 2])
        touch_rows(db, Loan, [5])

    tracked = await changes(library, work)
    assert (tracked.keys, tracked.lists) == ({"reader:1", "reader:2", "loan:5"}, {"loan"})


def test_a_kind_that_no_write_would_invalidate_is_refused() -> None:
    with pytest.raises(LookupError, match="No model is registered as 'stamp'"):
        Kind("stamp", "1", load_leaves, lambda row: b"")
    with pytest.raises(LookupError, match=r"@cached\('user', lists=True\)"):
        _ = USERS.generation_key
    assert LEAVES.generation_key == "gen:leaf"


def test_a_model_registers_once_and_has_one_key() -> None:
    with pytest.raises(ValueError, match="Another model is registered as 'leaf'"):
        cached("leaf")(Stamp)
    with pytest.raises(ValueError):
        cached("volume")(Volume)
