"""Hostile input, row by row, over a raw socket.

More of it: JSON and queries in test_web, tokens in test_security, cursors in test_lists, rights in
test_matrix.
"""

import asyncio
import gzip
import json
import re
import time
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
from tests.test_web import is_problem, raw


def post(path: str, body: bytes, member: Member, *headers: str, length: int | None = -1) -> bytes:
    """Make the bytes of a POST; `length` None: chunked."""
    told = len(body) if length == -1 else length
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {member.token}",
        "Transfer-Encoding: chunked" if told is None else f"Content-Length: {told}",
        *(headers or ("Content-Type: application/json",)),
    ]
    if told is None:
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
async def test_a_body_as_it_should_not_be(
    site: Site, make: Factory, body: bytes, status: int, length: int | None
) -> None:
    member = await make.member()
    answered, headers, answer = await raw(site, post("/api/books", body, member, length=length))
    assert answered == status, answer
    if status != 201:
        assert headers["content-type"] == "application/problem+json"
        assert json.loads(answer)["request_id"] == headers["x-request-id"]


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_that_ends_too_early_is_refused_however_whole_it_looks(
    site: Site, client: httpx.AsyncClient, make: Factory, is_chunked: bool
) -> None:
    member, body = await make.member(), b'{"title": "T", "author": "A"}'
    request = post("/api/books", body, member, length=None if is_chunked else len(body) + 30)
    request = request.removesuffix(b"0\r\n\r\n")
    status, _, answer = await raw(site, request, ends=True)
    assert (status, json.loads(answer)["message"]) == (400, "The body ends too early")
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
    status, _, answer = await raw(site, request)
    assert (status, json.loads(answer)["error"]) == (415, "Unsupported Media Type")


async def test_a_body_that_is_packed_is_415(site: Site, make: Factory) -> None:
    packed = gzip.compress(b'{"title": "T", "author": "A"}')
    kind = ("Content-Type: application/json", "Content-Encoding: gzip")
    status, _, answer = await raw(site, post("/api/books", packed, await make.member(), *kind))
    assert status == 415
    assert json.loads(answer)["message"] == "Send the body without a content coding"


async def test_nobody_signs_in_twice_at_once(site: Site, make: Factory) -> None:
    member, other = await make.member(), await make.member()
    lines = f"Authorization: Bearer {member.token}\r\nAuthorization: Bearer {other.token}"
    request = f"GET /api/profile HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n"
    status, _, answer = await raw(site, request.encode())
    assert status == 400
    assert json.loads(answer)["message"] == "Authorization is given more than once"


async def test_tags_may_stand_on_several_lines(site: Site, client: httpx.AsyncClient) -> None:
    tag = (await client.get("/openapi.json")).headers["ETag"]
    lines = f'If-None-Match: "x"\r\nIf-None-Match: {tag}'
    request = f"GET /openapi.json HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n"
    assert (await raw(site, request.encode()))[0] == 304


async def test_a_body_that_only_claims_to_be_too_large_is_refused_at_once(
    site: Site, make: Factory
) -> None:
    member = await make.member()
    status, _, _ = await raw(site, post("/api/books", b"{", member, length=10**12))
    assert status == 413


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("number", [2**63, 10**40])
async def test_an_id_beyond_64_bits_is_nobodys(
    client: httpx.AsyncClient, make: Factory, method: str, number: int
) -> None:
    member = await make.member()
    answer = await client.request(
        method, f"/api/books/{number}", headers=member.headers, json={"price": 1}
    )
    assert answer.status_code == 404


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
async def test_what_the_server_owns_is_refused_and_never_applied(
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
        answer = await client.request(
            method,
            path.format(book=book.id, user=member.id),
            json={**bodies.get(path, {}), field: 1},
            headers=headers,
        )
        is_problem(answer, 400, "Validation Error")
        assert answer.json()["messages"] == {field: ["Unknown field."]}
    assert await state() == before


@pytest.mark.parametrize("target", [b"?", b"?page=1", b"api/books"])
async def test_a_target_that_is_no_path_is_404(site: Site, target: bytes) -> None:
    request = b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    status, headers, answer = await raw(site, request)
    assert (status, json.loads(answer)["request_id"]) == (404, headers["x-request-id"])


@pytest.mark.parametrize("target", [b"//admin/users", b"///api/books", b"/api%2Fbooks", b"x:/api"])
async def test_a_path_has_one_spelling(site: Site, target: bytes) -> None:
    status, _, answer = await raw(site, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, json.loads(answer)["error"]) == (404, "Not Found")


@pytest.mark.parametrize(("size", "status"), [(60_000, 401), (1_000_000, 431)])
async def test_a_token_of_any_length_is_refused(site: Site, size: int, status: int) -> None:
    token = b"x" * size
    answered, _, _ = await raw(
        site, b"GET /api/profile HTTP/1.1\r\nHost: x\r\nAuthorization: " + token + b"\r\n\r\n"
    )
    assert answered == status


async def test_slow_headers_are_cut_and_nobody_else_waits(site: Site) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    begun = time.monotonic()
    trickling = asyncio.ensure_future(trickle(writer, b"GET /api/books HTTP/1.1\r\nX-A: ", 0.3))
    async with httpx.AsyncClient(base_url=site.url) as client:
        for _ in range(10):
            assert (await client.get("/api/books", timeout=2)).status_code == 200
    assert await asyncio.wait_for(reader.read(), 18) == b""
    assert time.monotonic() - begun < 18, "6 s, with threefold slack"
    trickling.cancel()
    writer.close()


async def test_a_slow_body_is_cut_however_steadily_it_trickles(
    site: Site, make: Factory, folder: Path
) -> None:
    member = await make.member()

    def hasty(app: Quart) -> None:
        assert app.config["BODY_TIMEOUT"] == 10
        app.config["BODY_TIMEOUT"] = 1

    async with serving(settings_for(site.another_url, folder), hasty) as slow:
        reader, writer = await asyncio.open_connection("127.0.0.1", slow.port)
        writer.write(post("/api/books", b"{", member, length=1_000))
        trickling = asyncio.ensure_future(trickle(writer, b" ", 0.1))
        async with asyncio.timeout(30):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.split()[1] == b"408"
            assert b"connection: close\r\n" in head
            with suppress(ConnectionError):
                await reader.read()  # it ends, though the client goes on
            with suppress(ConnectionError):
                await trickling
        writer.close()


async def trickle(writer: asyncio.StreamWriter, begin: bytes, seconds: float) -> None:
    """Send a byte every now and then, for ever."""
    writer.write(begin)
    while not writer.is_closing():
        writer.write(b"x")
        await asyncio.sleep(seconds)


async def test_a_value_that_slips_through_to_the_database_is_400(
    site: Site, folder: Path, tmp_path: Path
) -> None:
    def careless(app: Quart) -> None:
        @app.get("/api/careless/<what>")
        async def careless(what: str) -> str:
            """Store what nobody has looked at."""
            title, year = {"long": ("x" * 300, None), "year": ("T", 7), "huge": ("T", 2**70)}[what]
            values: dict[str, Any] = {"title": title, "author": "A", "published_year": year}
            book = new_book(None, BookCreate.model_construct(**values))

            async def work(db: AsyncSession) -> None:
                db.add(book)

            await current_app.extensions["database"].write(work)
            return "stored"

        @app.get("/api/defect")
        async def defect() -> str:
            """Ask for what there is not."""
            async with current_app.extensions["database"].session() as db:
                await db.execute(text("SELECT 1 FROM books WHERE"))
            return "never"

        @app.get("/api/overflow")
        async def overflow() -> str:
            """Compute what no float holds, within a write."""

            async def work(db: AsyncSession) -> str:
                return str(10.0**400)

            name: str = await current_app.extensions["database"].write(work)
            return name

    settings = settings_for(site.another_url, folder, log_dir=tmp_path)
    async with visiting(settings, careless) as client:
        for what in ("long", "year", "huge"):
            answer = await client.get(f"/api/careless/{what}")
            is_problem(answer, 400, "Bad Request")
            assert answer.json()["message"] == "The request holds a value that cannot be stored"
        for path in ("/api/defect", "/api/overflow"):
            is_problem(await client.get(path), 500, "Internal Server Error")
    log = (tmp_path / "app.log").read_text(encoding="utf-8")
    assert log.count("Traceback (most recent call last)") >= 5, "where it slipped through is told"


async def test_no_error_tells_how_the_service_is_made(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    told = re.compile(
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
        answer = await client.request(method, path, json=body, headers=member.headers)
        if path != "/api/profile":
            assert answer.status_code >= 400
        assert not told.search(answer.text), answer.text
        assert "server" not in answer.headers or "/" not in answer.headers["server"]
