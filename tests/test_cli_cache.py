"""The command `octavo cache`, while other processes serve."""

from pathlib import Path

import httpx

from tests.conftest import IsolatedSite, migrate
from tests.test_cache import HIT, cache_of, status
from tests.test_cli import empty_url, octavo, served

__all__ = ["empty_url"]  # fixtures


async def test_a_cache_in_memory_is_shown_and_cleared(empty_url: str, tmp_path: Path) -> None:
    settings = {"DEV_DATABASE_URL": empty_url}
    await migrate(settings["DEV_DATABASE_URL"])
    assert await octavo(tmp_path, "cache", "stats", **settings) == (
        0, "The cache is off, epoch 0\n", "",
    )  # fmt: skip
    async with served(tmp_path, **settings) as (_, url, _):
        code, out, _ = await octavo(tmp_path, "cache", "stats", **settings)
        first, store, where = out.splitlines()
        assert (code, first) == (0, "The cache is on, epoch 1")
        assert store.startswith("Store: memory-")
        assert where == "Its entries are in the memory of the process that serves"
        assert (await octavo(tmp_path, "cache", "clear", **settings))[:2] == (
            0, "The cache is off; its entries are never used again\n",
        )  # fmt: skip
        assert "off, epoch 2" in (await octavo(tmp_path, "cache", "stats", **settings))[1]
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            response = await client.get("/api/books")
            assert response.headers["Cache-Status"] == "Octavo; fwd=bypass"


async def test_without_redis_a_second_process_of_a_database_does_not_start(
    empty_url: str, tmp_path: Path
) -> None:
    settings = {"DEV_DATABASE_URL": empty_url}
    await migrate(settings["DEV_DATABASE_URL"])
    async with served(tmp_path, **settings):
        code, _, err = await octavo(tmp_path, "serve", "--bind", "127.0.0.1:0", **settings)
        assert code == 1
        (message,) = [line for line in err.splitlines() if line.startswith("Error: ")]
        assert "Could not start" in message
        assert "another process serves this database" in message
        assert "set REDIS_URL" in message


async def test_a_cache_in_redis_is_shown_cleared_and_bumped(
    isolated: IsolatedSite, tmp_path: Path
) -> None:
    book = await isolated.make.book(await isolated.make.member())
    settings = {
        "DEV_DATABASE_URL": isolated.site.database.url.render_as_string(hide_password=False),
        "REDIS_URL": f"redis://127.0.0.1:{isolated.port}/0",
    }
    path = f"/api/books/{book.id}"
    for target in (path, path, "/api/books", "/api/books"):
        await status(isolated.client, target)
    code, out, _ = await octavo(tmp_path, "cache", "stats", **settings)
    assert (code, out.splitlines()[0]) == (0, "The cache is on, epoch 1")
    assert out.splitlines()[2:] == ["  book: 1", "  gen: 1", "  list: 2"]
    assert await octavo(tmp_path, "cache", "clear", **settings) == (0, "3 entries deleted\n", "")
    for target in (path, "/api/books"):
        assert await status(isolated.client, target) != HIT
    async with isolated.site.database.writer.begin() as connection:  # with another tool
        await connection.exec_driver_sql("UPDATE books SET title = 'By hand'")
    assert (await isolated.client.get(path)).json()["title"] == book.title
    code, out, err = await octavo(tmp_path, "cache", "bump", **settings)  # the old name
    assert (code, out) == (0, "The cache is off; its entries are never used again\n")
    assert err == "octavo cache bump is called octavo cache disable now\n"
    assert (await isolated.client.get(path)).json()["title"] == "By hand"
    isolated.server.stop()
    for words in (("clear",), ("stats",)):
        code, _, err = await octavo(tmp_path, "cache", *words, **settings)
        assert (code, err) == (0, ""), "the cache is off, so Redis is not needed"


async def test_imported_books_are_seen_by_a_running_server(
    isolated: IsolatedSite, tmp_path: Path
) -> None:
    """Every write of the command line turns the cache off first."""
    settings = {
        "DEV_DATABASE_URL": isolated.site.database.url.render_as_string(hide_password=False),
        "REDIS_URL": f"redis://127.0.0.1:{isolated.port}/0",
    }
    await isolated.make.book(await isolated.make.member())
    assert [await status(isolated.client, "/api/books") for _ in range(2)][-1] == HIT
    (tmp_path / "more.csv").write_text("title,author\nNew,A\n")
    code, out, err = await octavo(tmp_path, "import-books", "more.csv", **settings)
    assert code == 0, out + err
    assert (await isolated.client.get("/api/books")).json()["total"] == 2
    assert not (await isolated.cache.epochs.read()).on
    assert cache_of(isolated.site).lease.lease() is None
