"""The tables: constraints of the database, words of the search, and indexes for every list."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event, insert, inspect, text
from sqlalchemy.exc import IntegrityError

from service.books.schemas import BookFilters
from service.books.service import list_books, list_books_after
from service.db.errors import violated_constraint
from service.db.list_queries import Page
from service.models import Base, Book, User, fold
from service.models.search import words
from tests.conftest import Site
from tests.factories import Factory

BOOK: dict[str, Any] = {"title": "T", "author": "A", "author_key": "a", "search": "t a"}
USER: dict[str, Any] = {
    "username": "Anna", "username_key": "anna", "email": "a@b.org", "email_key": "a@b.org",
    "password_hash": "x",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"title": ""}, "ck_books_title"),
        ({"title": "  "}, "ck_books_title"),
        ({"author": ""}, "ck_books_author"),
        ({"isbn": "12345678901"}, "ck_books_isbn"),
        ({"published_year": 999}, "ck_books_published_year"),
        ({"published_year": 2101}, "ck_books_published_year"),
        ({"genre": "Poetry"}, "ck_books_genre"),
        ({"price": Decimal("-0.01")}, "ck_books_price"),
        ({"price": Decimal("100000000")}, "ck_books_price"),
        ({"version": 0}, "ck_books_version"),
        ({"user_id": 999_999_999}, "fk_books_user_id_users"),
    ],
)
async def test_the_database_refuses_invalid_books(
    site: Site, change: dict[str, Any], name: str
) -> None:
    with pytest.raises(IntegrityError) as caught:
        await site.database.write(lambda db: db.execute(insert(Book).values(**BOOK | change)))
    sqlite = site.database.url.get_backend_name() == "sqlite"
    assert violated_constraint(caught.value) == (
        "FOREIGN KEY" if sqlite and name[:2] == "fk" else name
    )


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"username": "ab", "username_key": "ab", "email_key": "c"}, "ck_users_username"),
        ({"tier": "gold", "username_key": "c", "email_key": "c"}, "ck_users_tier"),
        ({"email_key": "c"}, "uq_users_username_key"),
        ({"username_key": "c"}, "uq_users_email_key"),
    ],
)
async def test_the_database_refuses_invalid_users(
    site: Site, change: dict[str, Any], name: str
) -> None:
    async def add(values: dict[str, Any]) -> None:
        async def work(db: Any) -> None:
            db.add(User(**values))

        await site.database.write(work)

    await add(USER)
    with pytest.raises(IntegrityError) as caught:
        await add(USER | change)
    assert violated_constraint(caught.value) == name


async def test_every_constraint_and_index_of_the_models_is_in_the_database(site: Site) -> None:
    sqlite = site.database.url.get_backend_name() == "sqlite"
    catalogue = (
        "SELECT name FROM sqlite_master WHERE type = 'index'"
        if sqlite
        else "SELECT indexname FROM pg_indexes WHERE schemaname = 'public'"
    )
    async with site.database.session() as db:
        present = set((await db.execute(text(catalogue))).scalars())
        tables = await (await db.connection()).run_sync(
            lambda connection: {
                table: {str(c["name"]) for c in inspect(connection).get_check_constraints(table)}
                for table in Base.metadata.tables
            }
        )
    wanted = {index.name for table in Base.metadata.tables.values() for index in table.indexes}
    assert wanted - present == (
        {"ix_books_search", "ix_search_words_trigrams"} if sqlite else set()
    )
    for name, table in Base.metadata.tables.items():
        checks = {str(c.name) for c in table.constraints if type(c).__name__ == "CheckConstraint"}
        assert checks == tables[name]


@pytest.mark.parametrize(
    ("given", "split"),
    [
        ("War & Peace", ["war", "peace"]),
        ("L'Étranger", ["l", "etranger"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("ﬁre №5", ["fire", "no5"]),
        ("C++ for e-mail", ["c", "for", "e", "mail"]),
        ("三体", ["三体"]),
        ("_ - !", []),
        ("x" * 300, ["x" * 100]),
    ],
)
def test_a_text_is_split_into_folded_words(given: str, split: list[str]) -> None:
    assert words(given) == split


@given(st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_words_are_letters_and_digits_within_the_limits_of_both_databases(value: str) -> None:
    for word in words(value):
        assert word.isalnum()
        assert len(word.encode()) < 2_046, "PostgreSQL's longest lexeme"
    assert len(fold(value).encode()) <= len(value) * 18
    assert fold(fold(value)) == fold(value)


async def fill(site: Site, rows: int) -> None:
    """Add many books, whose values are distributed as those of real books."""
    columns = (
        "title, author, author_key, isbn, published_year, genre, price, user_id, search, created_at"
    )
    if site.database.url.get_backend_name() == "sqlite":
        source = f"""WITH RECURSIVE n(i) AS
            (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
            SELECT 'Title ' || (i * 7919 % {rows}), 'Author ' || (i % 5000),
            'author ' || (i % 5000), printf('%013d', i),
            CASE WHEN i % 10 THEN 1000 + i % 1100 END,
            CASE i % 5 WHEN 0 THEN NULL WHEN 1 THEN 'Science' WHEN 2 THEN 'History'
                ELSE 'Fiction' END,
            CASE WHEN i % 4 THEN i % 10000 END,
            CASE WHEN i % 50 = 0 THEN (SELECT max(id) FROM users) END,
            'title ' || (i * 7919 % {rows}) || ' author ' || (i % 5000),
            strftime('%Y-%m-%d %H:%M:%f000', 'now', '-' || ({rows} - i) || ' seconds') FROM n"""
        analyze, parts = "ANALYZE", [source]
    else:
        source = f"""SELECT 'Title ' || (i::bigint * 7919 % {rows}), 'Author ' || (i % 5000),
            'author ' || (i % 5000), lpad(i::text, 13, '0'),
            CASE WHEN i % 10 <> 0 THEN 1000 + i % 1100 END,
            CASE i % 5 WHEN 0 THEN NULL WHEN 1 THEN 'Science' WHEN 2 THEN 'History'
                ELSE 'Fiction' END,
            CASE WHEN i % 4 <> 0 THEN (i % 10000) / 100.0 END,
            CASE WHEN i % 50 = 0 THEN (SELECT max(id) FROM users) END,
            ('title ' || (i::bigint * 7919 % {rows}) || ' author ' || (i % 5000))::tsvector,
            now() - ({rows} - i) * interval '1 second' FROM generate_series({{}}, {{}}) i"""
        analyze, tenth = "ANALYZE books", rows // 10
        # In parts: PostgreSQL and the driver end statements that take too long.
        parts = [source.format(n + 1, n + tenth) for n in range(0, rows, tenth)]
    for part in parts:
        async with site.database.writer.begin() as connection:
            await connection.execute(text(f"INSERT INTO books ({columns}) {part}"))
    async with site.database.writer.begin() as connection:
        await connection.execute(text(analyze))


SORTS = [
    "id", "-id", "created_at", "-created_at", "title", "-title",
    "published_year", "-published_year", "price", "-price",
]  # fmt: skip
FILTERS: list[dict[str, Any]] = [
    {"genre": "Science"},
    {"author": "AUTHOR 77"},
    {"isbn": "0000000000777"},
    {"user_id": 0},
    {"year_min": 2090},
    {"year_max": 1010},
    {"year_min": 1500, "year_max": 1505},
    {"price_min": Decimal("99")},
    {"price_max": Decimal("0.5")},
    {"q": "author 77"},
    {"genre": "Fiction", "year_min": 1900},
]


async def test_no_list_scans_the_table(site: Site, make: Factory) -> None:
    """EXPLAIN of each statement of first and deep pages and of filters, at 100,000 books.

    No index can serve a count of all books without a filter.
    """
    sqlite = site.database.url.get_backend_name() == "sqlite"
    await make.member()
    await fill(site, 100_000)
    plans: list[tuple[str, str]] = []
    explaining = False

    def explain(connection: Any, cursor: Any, statement: str, values: Any, *rest: Any) -> None:
        nonlocal explaining
        if explaining or not statement.startswith("SELECT books"):
            return
        explaining = True
        prefix = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "
        cursor.execute(prefix + statement, values)
        plans.append((statement, "\n".join(str(row[-1]) for row in cursor.fetchall())))
        explaining = False

    engine = site.database.reader.sync_engine
    event.listen(engine, "before_cursor_execute", explain)
    try:
        async with site.database.session() as db:
            for sort in SORTS:
                await list_books(BookFilters(), sort, Page(1, 20)).read_all(db)
                page = await list_books_after(BookFilters(), sort, None, 20).read_all(db)
                assert page[2] is not None
            for values in FILTERS:
                filters = BookFilters(**values)
                await list_books(filters, "-created_at", Page(1, 20)).read_all(db)
                await list_books_after(filters, "id", (0, 0), 20).read_all(db)
    finally:
        event.remove(engine, "before_cursor_execute", explain)
    assert len(plans) == 2 * (len(SORTS) + len(FILTERS))
    for statement, plan in plans:
        counts_all = "count(*)" in statement and "WHERE" not in statement
        if sqlite:
            scans = [line for line in plan.splitlines() if line.startswith("SCAN books")]
            whole = [line for line in scans if "INDEX" not in line and "PRIMARY KEY" not in line]
            # The table itself is the index for an order by id.
            by_id = "ORDER BY books.id" in statement
            assert by_id or counts_all or not whole, f"{statement}\n{plan}"
        else:
            assert counts_all or "Seq Scan on books" not in plan, f"{statement}\n{plan}"
