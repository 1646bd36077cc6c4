"""/api/data: the whole catalogue, in pages and as a stream, on both databases."""

import asyncio
import csv
import gzip
import io
import json
import socket
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from h2.events import StreamReset
from sqlalchemy import event, insert, make_url, select, text

from service.books.schemas import BookCreate, BookOut
from service.books.service import book_values
from service.db.database import Database
from service.export.formats import CSV_TYPE, FORMATS
from service.export.service import MAX_STREAMS, STREAM_PAGE_SIZE, Exports
from service.http import responses
from service.importer.importer import Rejects, Report, import_books, open_reading
from service.importer.loader import Loader
from service.models import Book
from tests.codings import zstd
from tests.conftest import REAL, Site, cache_on, fresh_catalogue, serving, settings_for
from tests.factories import Factory
from tests.http_client import TIMEOUT, assert_problem, send_raw
from tests.test_http2 import Client, encrypted

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

NDJSON, CSV = {"Accept": "application/x-ndjson"}, {"Accept": "text/csv"}
PLAIN = {"Accept-Encoding": "identity"}
PAGE = STREAM_PAGE_SIZE
HTTP2_HEAD = [(":method", "GET"), (":path", "/api/data"), (":scheme", "https")]
HTTP2_HEAD.append((":authority", "x"))
DOUBLED = 13  # times: 8,192 books of 1,400 bytes are more than all buffers of a connection
ODD_BOOKS: list[dict[str, Any]] = [
    {"title": "=cmd|' /C calc'!A0", "author": "+1, -1 and @sum"},
    {"title": 'Quotes "within", commas', "author": '"', "price": 0},
    {"title": "Two\nlines, a comma\r\nand\rthree", "author": ",,,,,,,,,,\n,,,,,,,,,,\n,,,,,,,,,,"},
    {"title": "\\N", "author": "None", "isbn": "080442957X", "genre": "Non-Fiction"},
    {"title": "A\u030angstro\u0308m", "author": "Ünï 書 \u2028 \U0001f4d6", "price": 99999999.99},
    {"title": "1997.0", "author": "null", "published_year": 1997, "price": 9.5, "genre": "Science"},
]


async def add(database: Database, books: Sequence[BookCreate]) -> None:
    """Add books without an owner."""
    table: Any = Book.__table__
    async with database.writer.begin() as connection:
        await connection.execute(insert(table), [book_values(None, book) for book in books])


async def fill(site: Site, number: int) -> None:
    """Add different books."""
    await add(
        site.database, [BookCreate(title=f"Book {n}", author=f"A {n % 97}") for n in range(number)]
    )


async def catalogue(site: Site) -> list[dict[str, Any]]:
    """Read all books, as clients see them."""
    async with site.database.session() as db:
        books = await db.scalars(select(Book).order_by(Book.id))
        return [json.loads(BookOut.model_validate(book).model_dump_json()) for book in books]


def lines(body: bytes) -> list[dict[str, Any]]:
    """Parse JSON Lines."""
    assert not body or body.endswith(b"\n")
    return [json.loads(line) for line in body.splitlines()]


async def test_pages_hold_every_book_once_in_order_of_id(
    site: Site, client: httpx.AsyncClient
) -> None:
    await fill(site, 1_003)
    expected = await catalogue(site)
    for limit, sizes in ((None, [1_000, 3]), (400, [400, 400, 203]), (5_000, [1_000, 3])):
        seen: list[list[dict[str, Any]]] = []
        params: dict[str, int] = {} if limit is None else {"limit": limit}
        while True:
            response = await client.get("/api/data", params=params)
            assert response.status_code == 200
            body = response.json()
            seen.append(body["data"])
            if "next_cursor" not in body:
                break
            params["cursor"] = body["next_cursor"]
        assert [len(page) for page in seen] == sizes
        assert [book for page in seen for book in page] == expected
    body = (await client.get("/api/data", params={"cursor": expected[-1]["id"]})).json()
    assert body == {"data": []}


async def test_a_page_is_validated_by_its_etag(
    client: httpx.AsyncClient, make: Factory, site: Site
) -> None:
    member = await make.member()
    book = await make.book(member)
    response = await client.get("/api/data")
    assert response.headers["Vary"] == "Accept, Accept-Encoding, Origin, Authorization"
    item = (await client.get(f"/api/books/{book.id}")).content
    assert response.content == b'{"data":[%b]}' % item
    known = {"If-None-Match": response.headers["ETag"]}
    assert (await client.get("/api/data", headers=known)).status_code == 304
    await client.patch(f"/api/books/{book.id}", json={"title": "New"}, headers=member.headers)
    changed = await client.get("/api/data", headers=known)
    assert changed.json()["data"][0]["title"] == "New"


@pytest.mark.parametrize(
    "query", ["cursor=-1", "cursor=x", "limit=0", "page=1", "cursor=1&cursor=2"]
)
async def test_invalid_queries_are_refused(client: httpx.AsyncClient, query: str) -> None:
    for headers in ({}, NDJSON):
        assert_problem(
            await client.get(f"/api/data?{query}", headers=headers), 400, "Validation Error"
        )


async def test_a_stream_holds_the_whole_catalogue(site: Site, client: httpx.AsyncClient) -> None:
    await fill(site, 2 * PAGE)
    expected = await catalogue(site)
    response = await client.get("/api/data", headers=NDJSON | PLAIN)
    assert response.headers["Content-Type"] == "application/x-ndjson"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Vary"] == "Accept, Accept-Encoding, Origin, Authorization"
    assert "ETag" not in response.headers
    assert lines(response.content) == expected
    cursor = expected[PAGE - 3]["id"]
    rest = await client.get(f"/api/data?cursor={cursor}", headers=NDJSON)
    assert lines(rest.content) == expected[PAGE - 2 :]
    refused = await client.get("/api/data?limit=5", headers=CSV)
    assert_problem(refused, 400, "Validation Error")
    async with site.database.writer.begin() as connection:
        await connection.execute(text("DELETE FROM books"))
    assert (await client.get("/api/data", headers=NDJSON)).content == b""


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("*/*", "application/json"),
        ("text/html, */*;q=0.8", "application/json"),
        ("image/png", "application/json"),
        ("text/csv;q=0", "application/json"),
        ("text/csv; charset=utf-8", "text/csv"),
        ("application/x-ndjson, */*", "application/x-ndjson"),
        ("application/json;q=0.5, TEXT/CSV;q=0.7", "text/csv"),
        ("text/csv" + ", a/b;q=0.1" * 100, "application/json"),
    ],
)
async def test_the_client_chooses_the_media_type(
    client: httpx.AsyncClient, accept: str, media: str
) -> None:
    for method in ("GET", "HEAD"):
        response = await client.request(method, "/api/data", headers={"Accept": accept})
        assert response.headers["Content-Type"].partition(";")[0] == media


async def test_a_stream_is_compressed_as_the_client_prefers(
    site: Site, client: httpx.AsyncClient
) -> None:
    await fill(site, PAGE + 1)
    plain = (await client.get("/api/data", headers=CSV | PLAIN)).content
    for accepted, coding, read in (
        ("gzip", "gzip", gzip.decompress),
        ("gzip;q=0.5, zstd", "zstd", zstd.decompress),
        ("zstd;q=0, gzip;q=0, *", None, bytes),
    ):
        headers = CSV | {"Accept-Encoding": accepted}
        async with client.stream("GET", "/api/data", headers=headers) as response:
            assert response.headers.get("Content-Encoding") == coding
            body = b"".join([part async for part in response.aiter_raw()])
        assert read(body) == plain


async def import_file(path: Path, settings: Any) -> tuple[int, int, int]:
    """Import a file, as `octavo import-books` does: numbers of added, known and refused records."""

    def run() -> Report:
        report = Report()
        with (
            open_reading(str(path), None, None, {}) as reading,
            Rejects(None) as rejects,
            Loader(settings) as loader,
        ):
            import_books(reading, loader, rejects, report, strict_isbn=False)
        return report

    report = await asyncio.to_thread(run)
    return report.added, report.known, report.refused.total()


@pytest.mark.parametrize("accept", [CSV, NDJSON], ids=["csv", "ndjson"])
async def test_an_export_is_imported_as_it_is(
    site: Site,
    client: httpx.AsyncClient,
    make: Factory,
    request: pytest.FixtureRequest,
    folder: Path,
    accept: dict[str, str],
) -> None:
    member = await make.member()
    for odd in ODD_BOOKS:
        response = await client.post("/api/books", json=odd, headers=member.headers)
        assert response.status_code == 201, response.text
    url = site.database.url.render_as_string(hide_password=False)
    name = "export.csv" if accept is CSV else "export.jsonl"
    path = folder / f"{len(url)}-{name}"
    path.write_bytes((await client.get("/api/data", headers=accept)).content)
    expected, number = await catalogue(site), len(ODD_BOOKS)
    backend = site.database.url.get_backend_name()
    async with fresh_catalogue(backend, request, folder) as other:
        settings = settings_for(other.url.render_as_string(hide_password=False), folder)
        assert await import_file(path, settings) == (number, 0, 0)
        assert await import_file(path, settings) == (0, number, 0)
        async with other.session() as db:
            books = (await db.scalars(select(Book).order_by(Book.id))).all()
    same = ("title", "author", "isbn", "published_year", "genre", "price")
    for row, before in zip(books, expected, strict=True):
        after = json.loads(BookOut.model_validate(row).model_dump_json())
        assert [after[field] for field in same] == [before[field] for field in same]
    # The catalogue that was exported knows its books, although none was imported.
    assert await import_file(path, settings_for(url, folder)) == (0, number, 0)
    assert await catalogue(site) == expected


async def test_csv_is_as_rfc_4180_says(client: httpx.AsyncClient, make: Factory) -> None:
    book = await make.book(title='A "B", C', author="=A", price=9.5)
    response = await client.get("/api/data", headers=CSV)
    assert response.headers["Content-Type"] == "text/csv; charset=utf-8; header=present"
    body = response.content.decode()
    assert body.count("\r\n") == 2
    header, row = csv.reader(io.StringIO(body, newline=""))
    assert header == list(BookOut.model_fields)
    shown = (await client.get(f"/api/books/{book.id}")).json()
    assert Decimal(row[6]) == Decimal("9.50")
    texts = ["" if value is None else str(value) for value in shown.values()]
    assert row == [*texts[:6], "9.50", *texts[7:]]


class Reader:
    """A client of a server that reads only when told so, through small buffers."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> "Reader":
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        self.socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        await self._loop.sock_connect(self.socket, ("127.0.0.1", self._port))
        return self

    async def __aexit__(self, *error: object) -> None:
        self.socket.close()

    async def request(self, accept: str, version: str = "1.1") -> None:
        """Request the export."""
        head = f"GET /api/data HTTP/{version}\r\nHost: x\r\nAccept: {accept}\r\n\r\n"
        await self._loop.sock_sendall(self.socket, head.encode())

    async def read(self) -> bytes:
        """Read some bytes; none at the end."""
        async with asyncio.timeout(TIMEOUT):
            return await self._loop.sock_recv(self.socket, 65_536)

    async def read_rest(self) -> tuple[bytes, bool]:
        """Read to the end. Give the bytes, and whether the server has reset the connection."""
        parts = []
        try:
            while part := await self.read():
                parts.append(part)
        except ConnectionResetError:
            return b"".join(parts), True
        return b"".join(parts), False


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
async def large(
    database_url: str, request: pytest.FixtureRequest, folder: Path
) -> AsyncIterator[Site]:
    """An application with a catalogue whose export is larger than all buffers of a connection."""
    backend = make_url(database_url).get_backend_name()
    async with fresh_catalogue(backend, request, folder) as database:
        if backend == "postgresql":
            await cache_on(database, REAL["redis_url"])
        book = BookCreate(title="\U0001f4d6" * 200, author="\U0001f4d6" * 100)
        await add(database, [book])
        names = "title, author, author_key, search"
        async with database.writer.begin() as connection:
            for _ in range(DOUBLED):
                await connection.execute(
                    text(f"INSERT INTO books ({names}) SELECT {names} FROM books")
                )
        url = database.url.render_as_string(hide_password=False)
        async with serving(settings_for(url, folder)) as site:
            yield site


async def test_a_client_that_does_not_read_holds_nothing_and_is_cut(
    large: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.server.http1.transport.STALL_SECONDS", 3.0)
    exports: Exports = large.app.extensions["exports"]
    statements: list[str] = []
    engine = large.database.reader.sync_engine

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        async with Reader(large.port) as reader:
            await reader.request("application/x-ndjson")
            assert await reader.read()
            queue = large.app.extensions["load_shedding"].queue
            await until(lambda: not queue.running)
            await until(lambda: not large.database.in_use)
            assert exports.running == 1, "it waits for its client without a turn or a connection"
            await until(lambda: not exports.running)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert len(statements) < 2**DOUBLED / PAGE, "the server reads no further than its client"


@pytest.mark.parametrize("fast_path", [True, False])
async def test_a_client_that_disconnects_ends_its_stream(
    large: Site, folder: Path, fast_path: bool
) -> None:
    settings = settings_for(large.another_url, folder, fast_path=fast_path)
    async with serving(settings) as served:
        exports: Exports = served.app.extensions["exports"]
        async with Reader(served.port) as reader:
            await reader.request("text/csv")
            assert await reader.read()
            await until(lambda: exports.running == 1)
        await until(lambda: not exports.running)


async def test_a_stream_needs_constant_memory(large: Site) -> None:
    size = 0
    tracemalloc.start()
    try:
        stream = await Exports(large.database).stream(0, FORMATS[CSV_TYPE], None)
        async with aclosing(stream):
            async for part in stream:
                size += len(part)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size > 10_000_000
    assert peak < 5_000_000


async def test_too_many_streams_are_refused(client: httpx.AsyncClient, site: Site) -> None:
    exports: Exports = site.app.extensions["exports"]
    exports.running = MAX_STREAMS
    try:
        response = await client.get("/api/data", headers=NDJSON)
        assert_problem(response, 503, "Service Unavailable")
        assert response.headers["Retry-After"] == "1"
        assert (await client.get("/api/data")).status_code == 200
    finally:
        exports.running = 0


async def test_head_reads_no_stream(client: httpx.AsyncClient, site: Site) -> None:
    await fill(site, 2)
    for accept, media in ((NDJSON, "application/x-ndjson"), (CSV, "text/csv")):
        response = await client.head("/api/data", headers=accept)
        assert response.headers["Content-Type"].startswith(media)
        assert response.content == b""
        assert "Content-Length" not in response.headers
    assert site.app.extensions["exports"].running == 0
    status, headers, _ = await send_raw(site, b"HEAD /api/data HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, headers["content-type"]) == (200, "application/json")


async def test_books_that_existed_throughout_are_in_a_stream_once(
    large: Site,
) -> None:
    """While a stream is under way, books are deleted, changed and created."""
    make = Factory(large.app)
    admin = await make.admin()
    async with large.database.session() as db:
        before = [*await db.scalars(select(Book.id).order_by(Book.id))]
    deleted, changed = {before[5], before[-5]}, before[-2]
    async with (
        httpx.AsyncClient(base_url=large.url, timeout=TIMEOUT) as client,
        Reader(large.port) as reader,
    ):
        await reader.request("application/x-ndjson", "1.0")
        received = await reader.read()
        for book_id in deleted:
            path = f"/api/books/{book_id}"
            assert (await client.delete(path, headers=admin.headers)).status_code == 204
        path, change = f"/api/books/{changed}", {"title": "Changed"}
        assert (await client.patch(path, json=change, headers=admin.headers)).status_code == 200
        created = await make.book()
        rest, is_reset = await reader.read_rest()
    assert not is_reset
    books = lines((received + rest).partition(b"\r\n\r\n")[2])
    assert [book["id"] for book in books] == [
        *(book_id for book_id in before if book_id != before[-5]),
        created.id,
    ], "the books at the end were read after the changes"
    assert books[-3]["title"] == "Changed"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("reason", ["error", "shutdown"])
async def test_a_cut_stream_does_not_look_complete(
    large: Site, folder: Path, monkeypatch: pytest.MonkeyPatch, version: str, reason: str
) -> None:
    """HTTP/1.0 has no chunks: only a reset of the connection shows that a response is cut."""
    settings = settings_for(large.another_url, folder, grace_seconds=0.5)
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(serving(settings))
        async with Reader(served.port) as reader:
            await reader.request("text/csv", version)
            received = await reader.read()
            if reason == "error":
                monkeypatch.setattr("service.export.service.SELECT_PAGE", text("SELECT nothing"))
            else:
                await stack.aclose()
            rest, is_reset = await reader.read_rest()
    assert received.startswith(b"HTTP/1.1 200")
    assert is_reset is (version == "1.0")
    assert not rest.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_stream_over_http2_ends_with_its_client(
    large: Site, folder: Path, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    """A client that leaves resets the stream. If it only stops reading, the server resets it."""
    monkeypatch.setattr(responses, "SEND_SECONDS", TIMEOUT if leaves else 1.0)
    async with encrypted(large, folder) as (served, trusted):
        client = await Client.connect(served.port, trusted)
        try:
            client.connection.send_headers(1, [*HTTP2_HEAD, ("accept", "text/csv")], True)
            client.flush()
            exports: Exports = served.app.extensions["exports"]
            await until(lambda: exports.running == 1)
            if leaves:
                client.connection.reset_stream(1)
                client.flush()
            await until(lambda: not exports.running)
            async with asyncio.timeout(TIMEOUT):
                while not leaves:
                    data = await client.reader.read(65_536)
                    assert data, "the connection has ended"
                    events = client.connection.receive_data(data)
                    if any(isinstance(each, StreamReset) for each in events):
                        break
        finally:
            client.writer.transport.abort()
