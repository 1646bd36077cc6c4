"""The HTTP edge: ids, bodies, queries, caps, methods, headers; much of it over a raw socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from quart import Quart
from quart_schema import conversion

from service.books.schemas import BookCreate
from tests.conftest import Site, serving, settings_for
from tests.factories import Factory

JSON = {"Content-Type": "application/json"}


async def raw(
    site: Site, request: bytes, *, ends: bool = False
) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are; give status, headers and body of the first answer.

    ends: say that nothing more will come.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(request)
    if ends:
        writer.write_eof()
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 15)).decode()
    lines = head.split("\r\n")[:-2]
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
    length = int(headers.get("content-length", "0"))
    body = b"" if request.startswith(b"HEAD") else await reader.readexactly(length)
    writer.close()
    return int(lines[0].split()[1]), headers, body


def is_problem(answer: httpx.Response, status: int, error: str) -> None:
    """Assert that an answer is an error of the one shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Cache-Control"] == "no-store"
    body = answer.json()
    assert list(body)[:6] == ["type", "title", "status", "detail", "error", "message"]
    assert (body["status"], body["error"]) == (status, error)
    assert body["detail"] == body["message"]
    assert body["request_id"] == answer.headers["X-Request-ID"]


def test_what_validates_a_body_is_made_once() -> None:
    """By quart-schema itself for each request: should it look elsewhere, that is back."""
    made = vars(conversion)["TypeAdapter"]
    before = made.cache_info()
    for title in ("one", "two", "three"):
        load = conversion.model_load({"title": title, "author": "x"}, BookCreate, ValueError)
        assert load.title == title
    now = made.cache_info()
    assert now.misses <= before.misses + 1
    assert now.hits + now.misses == before.hits + before.misses + 3, "it is asked for nowhere else"


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{'title': 1}", "not JSON"),
        (b'{"title": "a", "title": "b"}', "repeats a key"),
        (b'{"x": {"a": 1, "a": 2}}', "repeats a key"),
        (b"[]", "JSON object"),
        (b"null", "JSON object"),
        (b'"text"', "JSON object"),
        (b"7", "JSON object"),
        (b'{"price": NaN}', "NaN is not JSON"),
        (b'{"price": -Infinity}', "Infinity is not JSON"),
        (b'{"price": 1e999}', "out of range"),
        (b'{"price": 1e99999999999999999999}', "out of range"),
        (b'{"price": 0.' + b"1" * 5000 + b"}", "out of range"),
        (b'{"price": ' + b"1" * 5000 + b"}", "beyond 64 bits"),
        (b'{"published_year": 9223372036854775808}', "beyond 64 bits"),
        (b'{"title": "a\\u0000b"}', "NUL"),
        (b'{"title": "\\ud800"}', "surrogate"),
        (b'{"a\\u0000": 1}', "NUL"),
        (b'{"title": "a\x00b"}', "not JSON"),
        (b'{"title": "\xff"}', "not UTF-8"),
        (b'\xef\xbb\xbf{"title": "a"}', "not JSON"),
        ('{"title": "a"}'.encode("utf-16"), "not UTF-8"),
        (b'{"a":' * 33 + b"1" + b"}" * 33, "nested too deeply"),
        (b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}", "nested too deeply"),
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(
    client: httpx.AsyncClient, make: Factory, body: bytes, part: str
) -> None:
    member = await make.member()
    answer = await client.post("/api/books", content=body, headers=member.headers | JSON)
    is_problem(answer, 400, "Bad Request")
    assert part in answer.json()["message"]


async def test_a_body_nested_as_deeply_as_allowed_is_read(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    body = b'{"a":' * 32 + b"1" + b"}" * 32
    answer = await client.post("/api/books", content=body, headers=member.headers | JSON)
    is_problem(answer, 400, "Validation Error")


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "json"],
)
async def test_a_body_that_is_not_called_json_is_refused(
    client: httpx.AsyncClient, make: Factory, content_type: str | None
) -> None:
    member = await make.member()
    headers = member.headers | ({"Content-Type": content_type} if content_type else {})
    answer = await client.post("/api/books", content=b'{"title": "a"}', headers=headers)
    is_problem(answer, 415, "Unsupported Media Type")


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "application/problem+json", "APPLICATION/JSON"],
)
async def test_json_has_several_names(
    client: httpx.AsyncClient, make: Factory, content_type: str
) -> None:
    member = await make.member()
    answer = await client.post(
        "/api/books",
        content=b'{"title": "a", "author": "b"}',
        headers=member.headers | {"Content-Type": content_type},
    )
    assert answer.status_code == 201


async def test_a_body_over_the_cap_is_refused(client: httpx.AsyncClient, make: Factory) -> None:
    member = await make.member()
    fits = b'{"title": "' + b" " * (65_536 - 40) + b'a", "author": "b"}'
    assert len(fits) <= 65_536
    answer = await client.post("/api/books", content=fits, headers=member.headers | JSON)
    assert answer.status_code == 201
    answer = await client.post(
        "/api/books", content=fits + b" " * 40, headers=member.headers | JSON
    )
    is_problem(answer, 413, "Payload Too Large")


async def test_a_chunked_body_over_the_cap_is_refused_unread(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 64 * 1024 * 1024:
            sent += 65_536
            yield b" " * 65_536

    try:
        answer = await client.post(
            "/api/books",
            content=endless(),
            headers=member.headers | JSON,
        )
        is_problem(answer, 413, "Payload Too Large")
    except httpx.TransportError:
        pass  # the server has answered and closed while we were still sending
    assert (await client.get("/health/live")).status_code == 200


async def test_a_body_that_does_not_come_is_not_waited_for(
    site: Site, make: Factory, folder: Path
) -> None:
    member = await make.member()
    url = site.another_url

    def hasty(app: Quart) -> None:
        app.config["BODY_TIMEOUT"] = 0.3

    async with serving(settings_for(url, folder), hasty) as slow:
        status, headers, body = await raw(
            slow,
            b"POST /api/books HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Authorization: {member.token}\r\nContent-Length: 30\r\n\r\n".encode()
            + b'{"title": ',
        )
    assert (status, json.loads(body)["error"]) == (408, "Request Timeout")
    assert headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "query",
    [
        "page=%00",
        "q=%00",
        "q=%ff",
        "q=%ed%a0%80",
        "%00=1",
        "q=a%00b",
        "&".join(f"a{n}" for n in range(60)),
    ],
)
async def test_a_query_that_cannot_be_read_is_refused(
    client: httpx.AsyncClient, query: str
) -> None:
    answer = await client.get(f"/api/books?{query}")
    is_problem(answer, 400, "Bad Request")


async def test_a_replacement_character_is_a_character(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/books?author=%EF%BF%BD")).status_code == 200


async def test_parameters_of_routes_that_have_none_are_refused(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    book = await make.book(member)
    for method, path in (
        ("GET", f"/api/books/{book.id}"),
        ("POST", "/api/books"),
        ("GET", "/api/profile"),
        ("GET", "/health"),
        ("GET", "/"),
    ):
        answer = await client.request(
            method, path, params={"verbose": "1"}, headers=member.headers, json={}
        )
        is_problem(answer, 400, "Validation Error")
        assert answer.json()["messages"] == {"verbose": ["Unknown field."]}


@pytest.mark.parametrize(
    "path",
    [
        "/api", "/api/", "/api/nothing", "/api/books/", "//api/books", "/api//books",
        "/api/books/1/", "/api/books/abc", "/api/books/-1", "/api/books/01", "/api/books/1.0",
        "/api/books/%D9%A1", "/api/books/1%00", "/api/books/%ff", "/api/books/1e3", "/api/auth",
        "/api/books/9223372036854775808", "/api/books/" + "9" * 40, "/admin", "/health/",
    ],
)  # fmt: skip
async def test_an_unknown_path_is_404(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    is_problem(answer, 404, "Not Found")
    assert answer.json()["message"] == "The requested resource was not found"


@pytest.mark.parametrize("book_id", [0, 7_000_000, 9223372036854775807])
async def test_an_id_that_nobody_has_is_named(client: httpx.AsyncClient, book_id: int) -> None:
    answer = await client.get(f"/api/books/{book_id}")
    is_problem(answer, 404, "Not Found")
    assert answer.json()["message"] == f"Book with id {book_id} not found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/api/books", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("POST", "/api/books/1", {"GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"}),
        ("GET", "/api/auth/login", {"POST", "OPTIONS"}),
        ("TRACE", "/api/books", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("BREW", "/", {"GET", "HEAD", "OPTIONS"}),
    ],
)
async def test_a_method_that_is_not_there_names_those_that_are(
    client: httpx.AsyncClient, method: str, path: str, allowed: set[str]
) -> None:
    answer = await client.request(method, path)
    is_problem(answer, 405, "Method Not Allowed")
    assert set(answer.headers["Allow"].split(", ")) == allowed
    options = await client.options(path)
    assert options.status_code == 200
    assert set(options.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc-1.2_Z", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("a b", False),
        ("a\\nb", False),
        ("", False),
    ],
)
async def test_every_answer_has_a_request_id(
    client: httpx.AsyncClient, given: str, kept: bool
) -> None:
    seen = set()
    for path in ("/api/books", "/api/books/77", "/api/nothing", "/health", "/"):
        answer = await client.get(path, headers={"X-Request-ID": given})
        (name,) = answer.headers.get_list("X-Request-ID")
        assert (name == given) is kept
        seen.add(name)
    assert len(seen) == (1 if kept else 5)


@pytest.mark.parametrize("host", ["a..b", ".", "xn--", "x" * 64 + ".org", "a b", "<script>"])
async def test_a_host_that_is_none_breaks_nothing(site: Site, host: str) -> None:
    for path in ("/api/books", "/health/live", "/"):
        status, headers, body = await raw(
            site, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        )
        assert status in {200, 400}
        assert headers["x-request-id"]
        if status == 400:
            assert headers["content-type"] == "application/problem+json"
            assert json.loads(body)["error"] == "Bad Request"


async def test_a_body_that_no_route_reads_is_capped_as_well(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    for method in ("GET", "DELETE"):
        answer = await client.request(
            method, "/api/books/1", content=b" " * 70_000, headers=member.headers | JSON
        )
        is_problem(answer, 413, "Payload Too Large")


async def test_what_may_be_kept_and_what_an_answer_depends_on(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    book = await make.book(member)
    for path, cache in (
        ("/api/books", "no-cache"),
        (f"/api/books/{book.id}", "no-cache"),
        (f"/api/users/{member.id}", "no-cache"),
        ("/api/profile", "no-store"),
        ("/admin/users", "no-store"),
        ("/api/books/0", "no-store"),
        ("/api/nothing", "no-store"),
    ):
        answer = await client.get(path, headers=member.headers)
        assert answer.headers["Cache-Control"] == cache
        (vary,) = answer.headers.get_list("Vary")
        assert vary == "Accept-Encoding, Origin, Authorization"
    health = await client.get("/health")
    assert health.headers["Cache-Control"] == "no-store"
    assert health.headers["Vary"] == "Accept-Encoding, Origin"


async def test_links_come_from_public_url_and_never_from_the_host(
    site: Site, make: Factory, folder: Path
) -> None:
    member = await make.member()
    url = site.another_url
    public = "https://books.example.org/octavo"
    async with (
        serving(settings_for(url, folder, public_url=public + "/")) as behind,
        httpx.AsyncClient(base_url=behind.url, headers={"Host": "evil.example"}) as client,
    ):
        made = await client.post(
            "/api/books", json={"title": "T", "author": "A"}, headers=member.headers
        )
        assert made.headers["Location"] == f"{public}/api/books/{made.json()['id']}"
        listed = await client.get("/api/books")
        assert listed.json()["links"]["self"] == f"{public}/api/books?page=1"
        for answer in (made, listed, await client.get("/"), await client.get("/nothing")):
            assert "evil" not in answer.text + str(answer.headers)


async def test_answers_without_a_body_say_so(site: Site, make: Factory) -> None:
    member = await make.member()
    book = await make.book(member)
    head = f"/api/books/{book.id} HTTP/1.1\r\nHost: x\r\n"
    status, headers, _ = await raw(site, f"HEAD {head}\r\n".encode())
    assert status == 200
    assert int(headers["content-length"]) > 100
    status, headers, _ = await raw(
        site, f"GET {head}If-None-Match: {headers['etag']}\r\n\r\n".encode()
    )
    assert status == 304
    assert not {"content-type", "content-length"} & set(headers)
    status, headers, _ = await raw(
        site, f"DELETE {head}Authorization: {member.token}\r\n\r\n".encode()
    )
    assert status == 204
    assert not {"content-type", "content-length"} & set(headers)
