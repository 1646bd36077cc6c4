"""Hostile input, row by row, over a raw socket.

More hostile input: JSON and queries in test_responses, tokens in test_security, cursors in
test_lists, permissions in test_matrix.
"""

import asyncio
import gzip
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from quart import Quart, current_app
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from service import __version__
from service.books.schemas import BookCreate
from service.books.service import new_book
from tests.conftest import Site, serving, settings_for, visiting
from tests.factories import Factory, Member
from tests.http_client import TIMEOUT, assert_problem, send_raw


def post(path: str, body: bytes, member: Member, *headers: str, length: int | None = -1) -> bytes:
    """Return the bytes of a POST request. length: Content-Length; None: a chunked body."""
    declared = len(body) if length == -1 else length
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {member.token}",
        "Transfer-Encoding: chunked" if declared is None else f"Content-Length: {declared}",
        *(headers or ("Content-Type: application/json",)),
    ]
    if declared is None:
        body = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:7], body[7:]) if p)
        body += b"0\r\n\r\n"
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize("length", [-1, None])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"\xef\xbb\xbf{}", 400),
        (b'{"title": "\xff", "author": "A"}', 400),
        (b'{"title": "\xed\xa0\x80", "author": "A"}', 400),
        ('{"title": "T", "author": "A"}'.encode("utf-16"), 400),
        (b'{"title": "T", "author": "A"', 400),
        (b'{"title": "T\\u0000", "author": "A"}', 400),
        (b'{"title": "T\\ud83d", "author": "A"}', 400),
        (b'{"title": "T", "title": "U", "author": "A"}', 400),
        (b'{"title": "T", "author": "A", "price": NaN}', 400),
        (b'{"title": "T", "author": "A", "price": 1e999}', 400),
        (b'{"title": "T", "author": "A", "published_year": ' + b"9" * 5_000 + b"}", 400),
        (b'{"title": ' + b"[" * 33 + b"]" * 33 + b"}", 400),
        (b'{"title": "T", "author": "A", "id": 7}', 400),
        (b'{"title": "T", "author": "A"}' + b" " * 65_536, 413),
        (b'{"title": "T", "author": "A"}', 201),
    ],
)
async def test_an_invalid_body_is_refused_and_a_valid_body_is_accepted(
    site: Site, make: Factory, body: bytes, status: int, length: int | None
) -> None:
    member = await make.member()
    request = post("/api/books", body, member, length=length)
    received, headers, content = await send_raw(site, request)
    assert received == status, content
    if status != 201:
        assert headers["content-type"] == "application/problem+json"
        assert json.loads(content)["request_id"] == headers["x-request-id"]


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_truncated_body_is_refused_even_if_it_is_valid_json(
    site: Site, client: httpx.AsyncClient, make: Factory, is_chunked: bool
) -> None:
    member, body = await make.member(), b'{"title": "T", "author": "A"}'
    request = post("/api/books", body, member, length=None if is_chunked else len(body) + 30)
    request = request.removesuffix(b"0\r\n\r\n")
    status, _, content = await send_raw(site, request, ends=True)
    assert (status, json.loads(content)["message"]) == (400, "The body ends too early")
    assert (await client.get("/api/books")).json()["total"] == 0


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=b",
        "",
        "json",
    ],
)
async def test_another_content_type_is_415(site: Site, make: Factory, kind: str) -> None:
    member = await make.member()
    request = post("/api/books", b'{"title": "T", "author": "A"}', member, f"Content-Type: {kind}")
    status, _, content = await send_raw(site, request)
    assert (status, json.loads(content)["error"]) == (415, "Unsupported Media Type")


async def test_a_compressed_body_is_415(site: Site, make: Factory) -> None:
    compressed = gzip.compress(b'{"title": "T", "author": "A"}')
    kind = ("Content-Type: application/json", "Content-Encoding: gzip")
    status, _, content = await send_raw(
        site, post("/api/books", compressed, await make.member(), *kind)
    )
    assert status == 415
    assert json.loads(content)["message"] == "Send the body without a content coding"


async def test_two_authorization_headers_are_refused(site: Site, make: Factory) -> None:
    member, other = await make.member(), await make.member()
    lines = f"Authorization: Bearer {member.token}\r\nAuthorization: Bearer {other.token}"
    request = f"GET /api/profile HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n"
    status, _, content = await send_raw(site, request.encode())
    assert status == 400
    assert json.loads(content)["message"] == "Authorization is given more than once"


async def test_entity_tags_may_be_in_several_header_lines(
    site: Site, client: httpx.AsyncClient
) -> None:
    tag = (await client.get("/openapi.json")).headers["ETag"]
    lines = f'If-None-Match: "x"\r\nIf-None-Match: {tag}'
    request = f"GET /openapi.json HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n"
    assert (await send_raw(site, request.encode()))[0] == 304


async def test_a_content_length_over_the_limit_is_refused_before_the_body(
    site: Site, make: Factory
) -> None:
    member = await make.member()
    status, _, _ = await send_raw(site, post("/api/books", b"{", member, length=10**12))
    assert status == 413


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("number", [2**63, 10**40])
async def test_an_id_beyond_64_bits_is_404(
    client: httpx.AsyncClient, make: Factory, method: str, number: int
) -> None:
    member = await make.member()
    response = await client.request(
        method, f"/api/books/{number}", headers=member.headers, json={"price": 1}
    )
    assert response.status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "fields"),
    [
        ("POST", "/api/books", "id user_id version created_at updated_at title_key search views"),
        ("PUT", "/api/books/{book}", "id user_id version created_at updated_at owner"),
        ("PATCH", "/api/books/{book}", "id user_id version created_at updated_at owner"),
        ("POST", "/api/auth/register", "id tier is_admin password_hash token_version created_at"),
        ("PATCH", "/api/profile", "id tier is_admin password_hash token_version kept_jti"),
        ("PATCH", "/admin/users/{user}", "id username email password password_hash token_version"),
    ],
)
async def test_fields_that_the_server_sets_are_refused_and_never_applied(
    client: httpx.AsyncClient, make: Factory, method: str, path: str, fields: str
) -> None:
    admin, member = await make.admin(), await make.member()
    book = await make.book(member)
    headers = (admin if path.startswith("/admin") else member).headers

    async def state() -> list[Any]:
        users = await client.get("/admin/users", headers=admin.headers)
        return [users.json(), (await client.get("/api/books")).json()]

    before = await state()
    bodies = {
        "/api/books": {"title": "T", "author": "A"},
        "/api/auth/register": {"username": "new", "email": "n@example.org", "password": "x" * 9},
    }
    for field in fields.split():
        response = await client.request(
            method,
            path.format(book=book.id, user=member.id),
            json={**bodies.get(path, {}), field: 1},
            headers=headers,
        )
        assert_problem(response, 400, "Validation Error")
        assert response.json()["messages"] == {field: ["Unknown field."]}
    assert await state() == before


@pytest.mark.parametrize("target", [b"?", b"?page=1", b"api/books"])
async def test_a_request_target_that_is_not_a_path_is_404(site: Site, target: bytes) -> None:
    request = b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    status, headers, content = await send_raw(site, request)
    assert (status, json.loads(content)["request_id"]) == (404, headers["x-request-id"])


@pytest.mark.parametrize("target", [b"//admin/users", b"///api/books", b"/api%2Fbooks", b"x:/api"])
async def test_another_spelling_of_a_path_is_404(site: Site, target: bytes) -> None:
    status, _, content = await send_raw(site, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, json.loads(content)["error"]) == (404, "Not Found")


@pytest.mark.parametrize(("size", "status"), [(60_000, 401), (1_000_000, 431)])
async def test_a_long_token_is_refused(site: Site, size: int, status: int) -> None:
    token = b"x" * size
    received, _, _ = await send_raw(
        site, b"GET /api/profile HTTP/1.1\r\nHost: x\r\nAuthorization: " + token + b"\r\n\r\n"
    )
    assert received == status


async def test_slow_headers_are_cut_and_other_clients_do_not_wait(site: Site) -> None:
    """The client never stops sending: only the timeout for headers can end its connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    trickling = asyncio.ensure_future(trickle(writer, b"GET /api/books HTTP/1.1\r\nX-A: ", 0.3))
    try:
        async with httpx.AsyncClient(base_url=site.url, timeout=TIMEOUT) as client:
            for _ in range(10):
                assert (await client.get("/api/books")).status_code == 200
        assert await asyncio.wait_for(reader.read(), TIMEOUT) == b""
    finally:
        trickling.cancel()
        writer.close()


async def test_a_slow_body_is_cut_even_if_it_never_pauses(
    site: Site, make: Factory, folder: Path
) -> None:
    member = await make.member()

    def shorten_timeout(app: Quart) -> None:
        assert app.config["BODY_TIMEOUT"] == 10
        app.config["BODY_TIMEOUT"] = 1

    async with serving(settings_for(site.another_url, folder), shorten_timeout) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(post("/api/books", b"{", member, length=1_000))
        trickling = asyncio.ensure_future(trickle(writer, b" ", 0.1))
        try:
            async with asyncio.timeout(TIMEOUT):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.split()[1] == b"408"
                assert b"connection: close\r\n" in head
                with suppress(ConnectionError):
                    await reader.read()  # the connection ends although the client still sends
                with suppress(ConnectionError):
                    await trickling
        finally:
            trickling.cancel()
            writer.close()


async def trickle(writer: asyncio.StreamWriter, begin: bytes, seconds: float) -> None:
    """Send a byte at an interval until the connection closes."""
    writer.write(begin)
    while not writer.is_closing():
        writer.write(b"x")
        await asyncio.sleep(seconds)


async def test_an_unvalidated_value_that_the_database_refuses_is_400(
    site: Site, folder: Path, tmp_path: Path
) -> None:
    def add_routes(app: Quart) -> None:
        @app.get("/api/unvalidated/<name>")
        async def unvalidated(name: str) -> str:
            """Store a value without validation."""
            title, year = {"long": ("x" * 300, None), "year": ("T", 7), "huge": ("T", 2**70)}[name]
            values: dict[str, Any] = {"title": title, "author": "A", "published_year": year}
            book = new_book(None, BookCreate.model_construct(**values))

            async def work(db: AsyncSession) -> None:
                db.add(book)

            await current_app.extensions["database"].write(work)
            return "stored"

        @app.get("/api/defect")
        async def defect() -> str:
            """Execute SQL with a syntax error."""
            async with current_app.extensions["database"].session() as db:
                await db.execute(text("SELECT 1 FROM books WHERE"))
            return "never"

        @app.get("/api/overflow")
        async def overflow() -> str:
            """Overflow a float within a write."""

            async def work(db: AsyncSession) -> str:
                return str(10.0**400)

            name: str = await current_app.extensions["database"].write(work)
            return name

    settings = settings_for(site.another_url, folder, log_dir=tmp_path)
    async with visiting(settings, add_routes) as client:
        for name in ("long", "year", "huge"):
            response = await client.get(f"/api/unvalidated/{name}")
            assert_problem(response, 400, "Bad Request")
            assert response.json()["message"] == "The request holds a value that cannot be stored"
        for path in ("/api/defect", "/api/overflow"):
            assert_problem(await client.get(path), 500, "Internal Server Error")
    log = (tmp_path / "app.log").read_text(encoding="utf-8")
    assert log.count("Traceback (most recent call last)") >= 5, "each cause is logged"


async def test_no_error_reveals_the_implementation(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    revealing = re.compile(
        rf"select |insert |update |sqlalchemy|asyncpg|sqlite|quart|hypercorn|traceback|\.py\b|"
        rf"/home/|/usr/|{re.escape(__version__)}",
        re.IGNORECASE,
    )
    for method, path, body in (
        ("GET", "/api/books/7000000", None),
        ("GET", "/nowhere'--", None),
        ("GET", "/api/books?sort=;DROP TABLE books", None),
        ("GET", "/api/books?cursor='", None),
        ("POST", "/api/auth/login", {"email": "' OR 1=1 --", "password": "x"}),
        ("POST", "/api/books", {"title": {"$ne": 1}, "author": ["x"]}),
        ("PATCH", "/api/profile", {"username": "x' OR '1'='1", "email": 7}),
        ("BREW", "/api/books", None),
        ("DELETE", "/admin/users/1", None),
    ):
        response = await client.request(method, path, json=body, headers=member.headers)
        if path != "/api/profile":
            assert response.status_code >= 400
        assert not revealing.search(response.text), response.text
        assert "server" not in response.headers or "/" not in response.headers["server"]
