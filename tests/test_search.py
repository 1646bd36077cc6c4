"""The search: ranks, pages, similar words and hostile queries, the same on both databases."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from alembic import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from service.books.schemas import BookCreate
from service.books.service import book_values
from service.db import migrations
from service.db.database import Database
from service.db.list_queries import Page
from service.models import Book
from service.models.search import any_of, book_words, query_of_any, similarity, tsvector_of
from service.search.service import search_books
from tests.conftest import Site, fresh_catalogue, fresh_database, settings_for
from tests.factories import Factory

SHELF = [
    ("The Hobbit", "J.R.R. Tolkien"),
    ("The Lord of the Rings", "J.R.R. Tolkien"),
    ("The Silmarillion", "J.R.R. Tolkien"),
    ("Tolkien: A Biography", "Humphrey Carpenter"),
    ("Dune", "Frank Herbert"),
    ("Dune Messiah", "Frank Herbert"),
    ("The Great Dune Trilogy", "Frank Herbert"),
    ("Pride and Prejudice", "Jane Austen"),
    ("Pride and Prejudice and Zombies", "Seth Grahame-Smith"),
    ("Emma", "Jane Austen"),
    ("The Jane Austen Book Club", "Karen Joy Fowler"),
    ("Cien años de soledad", "Gabriel García Márquez"),
    ("Strange Pilgrims", "Gabriel García Márquez"),
    ("Love in the Time of Cholera", "Gabriel García Márquez"),
    ("A Brief History of Time", "Stephen Hawking"),
    ("A Brief History of Seven Killings", "Marlon James"),
    ("The Grand Design", "Stephen Hawking"),
    ("The Shining", "Stephen King"),
    ("Carrie / 'Salem's Lot / The Shining", "Stephen King"),
    ("Moby-Dick or, The Whale", "Herman Melville"),
    ("1984", "George Orwell"),
    ("Animal Farm / 1984", "George Orwell"),
    ("Animal Farm", "George Orwell"),
    ("Les Misérables", "Victor Hugo"),
    ("Crime and Punishment", "Fyodor Dostoyevsky"),
    ("Brave New World", "Aldous Huxley"),
    ("Lolita", "Vladimir Nabokov"),
    ("Kafka on the Shore", "Haruki Murakami"),
    ("The Metamorphosis", "Franz Kafka"),
    ("Norwegian Wood", "Haruki Murakami"),
    ("A Moveable Feast", "Ernest Hemingway"),
    ("Shakespeare: The World as Stage", "Bill Bryson"),
    ("Hamlet", "William Shakespeare"),
    ("三体", "刘慈欣"),
    ("Straße der Ölsardinen", "John Steinbeck"),
]
# The title of the first result. Databases rank by different formulas: these are the same on both.
FIRST = {
    "hobbit": "The Hobbit",
    "the hobbit": "The Hobbit",
    "hobbit tolkien": "The Hobbit",
    "TOLKIEN, hob": "The Hobbit",
    "tolkien": "Tolkien: A Biography",  # a word of a title counts more than one of an author
    "lord of the rings": "The Lord of the Rings",
    "dune": "Dune",  # of titles with a word, the shortest is first
    "dune herbert": "Dune",
    "herbert mess": "Dune Messiah",
    "pride and prejudice": "Pride and Prejudice",
    "pride prejudice zom": "Pride and Prejudice and Zombies",
    "jane austen": "The Jane Austen Book Club",
    "austen emma": "Emma",
    "cien anos": "Cien años de soledad",
    "GARCIA MÁRQUEZ": "Strange Pilgrims",
    "time of cholera": "Love in the Time of Cholera",
    "brief history": "A Brief History of Time",
    "brief history of time": "A Brief History of Time",
    "brief history sev": "A Brief History of Seven Killings",
    "hawking": "The Grand Design",
    "king shining": "The Shining",
    "moby dick": "Moby-Dick or, The Whale",
    "1984": "1984",
    "orwell farm": "Animal Farm",
    "les miserables": "Les Misérables",
    "kafka": "Kafka on the Shore",
    "shakespeare": "Shakespeare: The World as Stage",
    "shakespeare will": "Hamlet",
    "三体": "三体",
    "strasse": "Straße der Ölsardinen",
}
MISSPELT = {
    "tolkein": "Tolkien: A Biography",
    "hobit tolkein": "The Hobbit",
    "silmarilion": "The Silmarillion",
    "hemmingway": "A Moveable Feast",
    "jane austin": "The Jane Austen Book Club",
    "dostoyevski": "Crime and Punishment",
    "murakmi": "Norwegian Wood",
    "huxly": "Brave New World",
    "nabakov": "Lolita",
    "kafak": "Kafka on the Shore",
    "marqez": "Strange Pilgrims",
    "pride and predjudice": "Pride and Prejudice",
    "steven hawkins": "The Grand Design",
    "steinbek": "Straße der Ölsardinen",
    "shakespaere": "Shakespeare: The World as Stage",
    "tolkein hobb": "The Hobbit",
}
HOSTILE = [
    "' OR 1=1 --", "a & b | !c", "a:*", "'a':A <-> b", "\\", "\\'", "''", '"', '"a" NEAR "b"',
    "{title}: a", "-a", "+a*", "^a", "a AND", "OR", "NOT", "AND OR NOT NEAR", "(((a", "a*b*c*",
    "%", "_a", "a\tb\nc", " ".join("abcdefghij" * 10), "a " * 100, "x" * 200, "é" * 200, "ﷺ" * 200,
    "😀 a", "a\u0301\u200b", "\u2028a", "ａ", "𝒳", "null", "1e9", "$1", ":q", "%s", "{}", "z̷" * 60,
]  # fmt: skip


async def shelve(site: Site, books: Sequence[tuple[str, str]]) -> None:
    """Add books without owners, in this order. The cache does not notice it."""
    values = [book_values(None, BookCreate(title=title, author=author)) for title, author in books]
    async with site.database.writer.begin() as connection:
        await connection.execute(insert(Book), values)


async def search(client: httpx.AsyncClient, q: str, **params: Any) -> Any:
    """Search, and return the body."""
    response = await client.get("/api/search", params={"q": q, **params})
    assert response.status_code == 200, response.text
    return response.json()


def titles(body: Any) -> list[str]:
    """Return the titles of results."""
    return [book["title"] for book in body["results"]]


async def test_the_first_results_are_the_same_on_both_databases(
    site: Site, client: httpx.AsyncClient
) -> None:
    await shelve(site, SHELF)
    for q, title in FIRST.items():
        body = await search(client, q)
        assert (titles(body)[:1], body["fuzzy"]) == ([title], False), q
        listed = (await client.get("/api/books", params={"q": q})).json()
        assert sorted(map(str, body["results"])) == sorted(map(str, listed["items"])), q
        assert body["total"] == len(body["results"])


async def test_every_word_is_required_and_only_the_last_is_a_prefix(
    site: Site, client: httpx.AsyncClient
) -> None:
    await shelve(site, [("Zebra crossing", "Quill Quagga"), ("Zebras", "Quill Quokka")])
    assert titles(await search(client, "quill zeb")) == ["Zebras", "Zebra crossing"]
    assert titles(await search(client, "zebra quill")) == ["Zebra crossing"]
    whole = await search(client, "quagg zebra")
    assert (titles(whole), whole["fuzzy"]) == (["Zebra crossing"], True)
    assert (await search(client, "zebra giraffe"))["total"] == 0


async def test_books_of_equal_rank_are_in_the_order_of_ids_on_all_pages(
    site: Site, client: httpx.AsyncClient
) -> None:
    await shelve(site, [("Quartz", "Anna")] * 45 + [("Quartz Quartz", "Anna")])
    whole = await search(client, "quartz", per_page=100)
    ids = [book["id"] for book in whole["results"]]
    assert titles(whole)[0] == "Quartz Quartz"
    assert ids[1:] == sorted(ids[1:])
    assert whole["total"] == 46
    walked, url = [], f"{client.base_url}/api/search?q=quartz&per_page=10"
    while url:
        response = await client.get(url)
        walked += [book["id"] for book in response.json()["results"]]
        url = response.links.get("next", {}).get("url", "")
    assert walked == ids
    past = await search(client, "quartz", page=9)
    assert past == {"results": [], "total": 46, "fuzzy": False}
    response = await client.get("/api/search?q=quartz&page=100000")
    assert response.json()["messages"] == {"page": ["Too deep: a page may skip 100000 rows."]}


async def test_at_most_the_newest_thousand_matches_are_ranked(
    site: Site, client: httpx.AsyncClient
) -> None:
    old = [("Novel", "Zoe"), ("Rare", "Zoe"), *[("Novel Rare Novel", "Zoe")] * 3]
    await shelve(site, [*old, *[("A Novel Long Title", "Anna")] * 1_010])
    body = await search(client, "nov", per_page=100)
    assert body["total"] == 1_000
    assert {*titles(body)} == {"A Novel Long Title"}
    ids = [book["id"] for book in body["results"]]
    last = (await search(client, "nov", per_page=100, page=10))["results"]
    assert last[-1]["id"] - ids[0] == 999
    assert (await search(client, "nov", per_page=100, page=11))["results"] == []
    rare = await search(client, "rare")
    assert (rare["total"], titles(rare)[0]) == (4, "Rare"), "rare words are found in old books"
    common = await search(client, "zoe")
    assert common["total"] == 5
    # Frequent among the newest books, and yet fewer than a thousand.
    await shelve(site, [("Another Rare", "Anna")] * 30)
    assert (await search(client, "rare", nocache=1))["total"] == 34


async def test_a_misspelt_word_finds_similar_words(site: Site, client: httpx.AsyncClient) -> None:
    await shelve(site, SHELF)
    for q, title in MISSPELT.items():
        body = await search(client, q)
        assert (titles(body)[:1], body["fuzzy"]) == ([title], True), q
    for q in ("xqzvwk", "dun herbet zzz", "hobbit austen", "the xx"):
        assert await search(client, q) == {"results": [], "total": 0, "fuzzy": False}, q
    assert (await search(client, "tolkein " * 8))["fuzzy"] is True
    long = await search(client, "tolkein " * 9)
    assert long["total"] == 0, "a long search is not repeated"


async def test_similar_words_follow_every_change(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    owner = await make.member()
    book = await make.book(owner, title="Ordinary", author="Anna")
    path = f"/api/books/{book.id}"
    assert (await search(client, "silmarilion"))["total"] == 0
    await client.patch(path, json={"title": "Silmarillion"}, headers=owner.headers)
    body = await search(client, "silmarilion")
    assert (titles(body), body["fuzzy"]) == (["Silmarillion"], True)
    data = {"title": "Silmarilion", "author": "Anna"}
    created = await client.post("/api/books", json=data, headers=owner.headers)
    body = await search(client, "silmarilion")
    assert (titles(body), body["fuzzy"]) == (["Silmarilion"], False)
    # The nearest word belongs to no book any more.
    await client.delete(created.headers["Location"], headers=owner.headers)
    body = await search(client, "silmarilion")
    assert (titles(body), body["fuzzy"]) == (["Silmarillion"], True)
    await client.delete(path, headers=owner.headers)
    assert (await search(client, "silmarilion"))["total"] == 0


async def test_a_search_is_cached_and_revalidated_until_the_next_write(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    await shelve(site, SHELF)
    owner = await make.member()
    for path in ("/api/search?q=dune", "/api/search?q=tolkein"):
        first = await client.get(path)
        assert first.headers["Cache-Status"] == "Octavo; fwd=miss"
        assert first.headers["Cache-Control"] == "no-cache"
        for _ in range(2):  # from the cache, then from the remembered response
            again = await client.get(path)
            assert again.headers["Cache-Status"] == "Octavo; hit"
            assert (again.content, again.headers["ETag"]) == (first.content, first.headers["ETag"])
        past = await client.get(f"{path}&nocache=1")
        assert past.headers["Cache-Status"] == "Octavo; fwd=bypass"
        assert past.content == first.content
        tag = {"If-None-Match": first.headers["ETag"]}
        assert (await client.get(path, headers=tag)).status_code == 304
        data = {"title": "Tolkein on Dune", "author": "Anna"}
        await client.post("/api/books", json=data, headers=owner.headers)
        changed = await client.get(path, headers=tag)
        assert changed.status_code == 200
        assert "Tolkein on Dune" in titles(changed.json())


@pytest.mark.parametrize("q", ["", " ", "?!", "\u0301", "x" * 201])
async def test_a_query_without_words_or_too_long_is_refused(
    client: httpx.AsyncClient, q: str
) -> None:
    response = await client.get("/api/search", params={"q": q})
    assert response.status_code == 400
    assert list(response.json()["messages"]) == ["q"]


async def test_a_query_is_required(client: httpx.AsyncClient) -> None:
    response = await client.get("/api/search")
    assert response.json()["messages"] == {"q": ["Missing data for required field."]}
    assert (await client.get("/api/search?q=a%00")).status_code == 400


async def test_hostile_queries_never_fail(site: Site, client: httpx.AsyncClient) -> None:
    await shelve(site, SHELF)

    @settings(
        max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.one_of(st.text(max_size=200), st.text("ab 'é\"*:&|!()<->{}^~\\😀٣", max_size=200)))
    def generate(q: str) -> None:
        generated.append(q)

    generated: list[str] = []
    await asyncio.to_thread(generate)
    for q in [*HOSTILE, *generated]:
        if any("\ud800" <= character <= "\udfff" for character in q):
            continue
        response = await client.get("/api/search", params={"q": q, "per_page": 1})
        assert response.status_code in {200, 400}, q


@pytest.fixture
async def catalogue(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Database]:
    """A database without books, on PostgreSQL."""
    async with fresh_catalogue("postgresql", request, folder) as database:
        yield database


async def matches(database: Database, q: str) -> tuple[int, bool]:
    """Search a database; return the total, and whether the search was repeated."""
    async with database.session() as db:
        ids = await search_books(q, Page(1, 20)).find(db, (True, False))
    total, fuzzy = ids.more
    assert len(ids.ids or ()) == total
    return total, fuzzy


async def add(database: Database, title: str, author: str) -> None:
    """Add a book."""
    values = book_values(None, BookCreate(title=title, author=author))
    await database.write(lambda db: db.execute(insert(Book).values(values)))


async def test_without_pg_trgm_no_similar_words_are_found(catalogue: Database) -> None:
    await add(catalogue, *SHELF[0])
    assert await matches(catalogue, "tolkein") == (1, True)
    async with catalogue.writer.begin() as connection:
        await connection.execute(text("DROP EXTENSION pg_trgm CASCADE"))
    assert await matches(catalogue, "tolkein") == (0, False)
    assert await matches(catalogue, "tolkien") == (1, False)


async def test_the_migration_needs_no_right_to_create_extensions(
    request: pytest.FixtureRequest, folder: Path, postgresql: str
) -> None:
    role = f"octavo_{uuid4().hex[:8]}"
    async with fresh_database("postgresql", request, folder) as url:
        owner = create_async_engine(
            make_url(url).set(drivername="postgresql+asyncpg"), isolation_level="AUTOCOMMIT"
        )
        try:
            async with owner.connect() as connection:
                await connection.execute(text(f"CREATE ROLE {role} LOGIN"))
                await connection.execute(text(f"GRANT ALL ON SCHEMA public TO {role}"))
            limited = make_url(url).set(username=role).render_as_string(hide_password=False)
            database = Database(settings_for(limited, folder))
            await asyncio.to_thread(migrations.upgrade, database.url)
            await database.open()
            try:
                await add(database, *SHELF[0])
                assert await matches(database, "tolkien") == (1, False)
                assert await matches(database, "tolkein") == (0, False)
            finally:
                await database.close()
        finally:
            async with owner.connect() as connection:
                await connection.execute(text(f"DROP OWNED BY {role}"))
                await connection.execute(text(f"DROP ROLE {role}"))
            await owner.dispose()


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
async def test_the_migration_ranks_and_words_existing_books(
    backend: str, request: pytest.FixtureRequest, folder: Path
) -> None:
    async with fresh_catalogue(backend, request, folder, "0005") as database:
        old = text(
            "INSERT INTO books (title, author, author_key, search, version)"
            " VALUES (:title, :author, 'key', :search, 7)"
        )
        if backend == "postgresql":
            old = text(old.text.replace(":search", "CAST(:search AS text)::tsvector"))
        rows = [
            {
                "title": title,
                "author": author,
                "search": " ".join(book_words(title, author).split()),
            }
            for title, author in SHELF
        ]
        async with database.writer.begin() as connection:
            await connection.execute(old, rows)
        config = migrations.configuration(database.url)
        for _ in range(2):
            await asyncio.to_thread(command.upgrade, config, "head")
            await asyncio.to_thread(command.check, config)
            async with database.session() as db:
                for q, title in {**FIRST, **MISSPELT}.items():
                    bodies, _, more = await search_books(q, Page(1, 1)).read_all(db)
                    assert f'"title":"{title}"'.encode() in bodies[0], q
                    assert b'"version":7' in bodies[0]
                    assert more[1] == (q in MISSPELT)
            if backend == "sqlite":
                check = "INSERT INTO books_fts(books_fts, rank) VALUES ('integrity-check', 1)"
                async with database.writer.begin() as connection:
                    await connection.execute(text(check))
            await asyncio.to_thread(command.downgrade, config, "0005")
            query, where = "hobbit", "id IN (SELECT rowid FROM books_fts WHERE books_fts MATCH :q)"
            if backend == "postgresql":
                where = "search @@ CAST(:q AS tsquery)"
            async with database.writer.begin() as connection:
                matched = await connection.scalars(
                    text(f"SELECT title FROM books WHERE {where}"), {"q": query}
                )
                assert list(matched) == ["The Hobbit"]
                await connection.execute(
                    text("UPDATE books SET search = search WHERE title = 'Emma'")
                )


def test_words_of_a_book_have_positions_and_weights() -> None:
    lines = book_words("The Hobbit, the", "É. Tolkien")
    assert lines == "the hobbit the\ne tolkien"
    assert tsvector_of(lines) == "the:1A hobbit:2A the:3A e:4 tolkien:5"
    assert tsvector_of(book_words("?!", "Anna")) == "anna:1"


def test_queries_have_alternatives() -> None:
    groups = [["a", "b"], ["c", "d"]]
    postgresql = query_of_any(groups, "postgresql")
    assert postgresql == "('a' | 'b') & ('c':* | 'd':*)"
    assert any_of(postgresql) == "('a' | 'b') | ('c':* | 'd':*)"
    assert query_of_any(groups, "sqlite") == '("a" OR "b") AND ("c"* OR "d"*)'


async def test_similarity_is_that_of_pg_trgm(catalogue: Database) -> None:
    pairs = [("tolkein", "tolkien"), ("a", "ab"), ("emma", "emma"), ("aaaa", "aaa"), ("é1", "e1")]
    async with catalogue.session() as db:
        for word, other in pairs:
            query = text("SELECT similarity(:word, :other)")
            expected = await db.scalar(query, {"word": word, "other": other})
            assert similarity(word, other) == pytest.approx(expected, abs=1e-6), word


async def test_two_writers_of_a_new_word_do_not_wait_for_each_other(catalogue: Database) -> None:
    values = book_values(None, BookCreate(title="Quetzalcoatl", author="Anna"))
    async with catalogue.writer.connect() as first, catalogue.writer.connect() as second:
        await first.execute(insert(Book).values(values))
        try:
            async with asyncio.timeout(30):
                await second.execute(insert(Book).values(values))
        except DBAPIError as error:
            raise AssertionError("the second writer has waited for a lock") from error
        await second.commit()
        await first.commit()
    assert await matches(catalogue, "quetzalcoalt") == (2, True)
