"""Requests and responses: ids, bodies, queries, limits, methods, headers."""

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
from tests.http_client import TIMEOUT, assert_problem, send_raw

JSON = {"Content-Type": "application/json"}


def test_the_validator_of_a_body_is_made_once() -> None:
    """quart-schema itself makes a validator for each request; the cache takes its place."""
    type_adapter = vars(conversion)["TypeAdapter"]
    before = type_adapter.cache_info()
    for title in ("first", "second", "third"):
        load = conversion.model_load({"title": title, "author": "x"}, BookCreate, ValueError)
        assert load.title == title
    after = type_adapter.cache_info()
    assert after.misses <= before.misses + 1
    assert after.hits + after.misses == before.hits + before.misses + 3, "1 lookup for each body"


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
async def test_a_body_that_is_not_a_json_object_is_refused(
    client: httpx.AsyncClient, make: Factory, body: bytes, part: str
) -> None:
    member = await make.member()
    response = await client.post("/api/books", content=body, headers=member.headers | JSON)
    assert_problem(response, 400, "Bad Request")
    assert part in response.json()["message"]


async def test_a_body_nested_to_the_limit_is_read(client: httpx.AsyncClient, make: Factory) -> None:
    member = await make.member()
    body = b'{"a":' * 32 + b"1" + b"}" * 32
    response = await client.post("/api/books", content=body, headers=member.headers | JSON)
    assert_problem(response, 400, "Validation Error")


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "json"],
)
async def test_a_body_with_another_content_type_is_refused(
    client: httpx.AsyncClient, make: Factory, content_type: str | None
) -> None:
    member = await make.member()
    headers = member.headers | ({"Content-Type": content_type} if content_type else {})
    response = await client.post("/api/books", content=b'{"title": "a"}', headers=headers)
    assert_problem(response, 415, "Unsupported Media Type")


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "application/problem+json", "APPLICATION/JSON"],
)
async def test_every_content_type_of_json_is_accepted(
    client: httpx.AsyncClient, make: Factory, content_type: str
) -> None:
    member = await make.member()
    response = await client.post(
        "/api/books",
        content=b'{"title": "a", "author": "b"}',
        headers=member.headers | {"Content-Type": content_type},
    )
    assert response.status_code == 201


async def test_a_body_over_the_limit_is_refused(client: httpx.AsyncClient, make: Factory) -> None:
    member = await make.member()
    fits = b'{"title": "' + b" " * (65_536 - 40) + b'a", "author": "b"}'
    assert len(fits) <= 65_536
    response = await client.post("/api/books", content=fits, headers=member.headers | JSON)
    assert response.status_code == 201
    response = await client.post(
        "/api/books", content=fits + b" " * 40, headers=member.headers | JSON
    )
    assert_problem(response, 413, "Payload Too Large")


async def test_a_chunked_body_over_the_limit_is_refused(
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
        response = await client.post(
            "/api/books",
            content=endless(),
            headers=member.headers | JSON,
        )
        assert_problem(response, 413, "Payload Too Large")
    except httpx.TransportError:
        pass  # the server has responded and closed while the client was still sending
    assert (await client.get("/health/live")).status_code == 200


async def test_a_body_that_does_not_arrive_is_408(site: Site, make: Factory, folder: Path) -> None:
    member = await make.member()
    url = site.another_url

    def shorten_timeout(app: Quart) -> None:
        app.config["BODY_TIMEOUT"] = 0.3

    async with serving(settings_for(url, folder), shorten_timeout) as served:
        status, headers, body = await send_raw(
            served,
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
async def test_a_query_that_cannot_be_decoded_is_refused(
    client: httpx.AsyncClient, query: str
) -> None:
    response = await client.get(f"/api/books?{query}")
    assert_problem(response, 400, "Bad Request")


async def test_a_replacement_character_in_a_query_is_accepted(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/books?author=%EF%BF%BD")).status_code == 200


async def test_parameters_of_routes_without_parameters_are_refused(
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
        response = await client.request(
            method, path, params={"verbose": "1"}, headers=member.headers, json={}
        )
        assert_problem(response, 400, "Validation Error")
        assert response.json()["messages"] == {"verbose": ["Unknown field."]}


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
    response = await client.get(path)
    assert_problem(response, 404, "Not Found")
    assert response.json()["message"] == "The requested resource was not found"


@pytest.mark.parametrize("book_id", [0, 7_000_000, 9223372036854775807])
async def test_an_unknown_id_is_404_and_is_named(client: httpx.AsyncClient, book_id: int) -> None:
    response = await client.get(f"/api/books/{book_id}")
    assert_problem(response, 404, "Not Found")
    assert response.json()["message"] == f"Book with id {book_id} not found"


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
async def test_an_unknown_method_is_405_with_the_allowed_methods(
    client: httpx.AsyncClient, method: str, path: str, allowed: set[str]
) -> None:
    response = await client.request(method, path)
    assert_problem(response, 405, "Method Not Allowed")
    assert set(response.headers["Allow"].split(", ")) == allowed
    options = await client.options(path)
    assert options.status_code == 200
    assert set(options.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    ("request_id", "is_kept"),
    [
        ("abc-1.2_Z", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("a b", False),
        ("a\\nb", False),
        ("", False),
    ],
)
async def test_every_response_has_a_request_id(
    client: httpx.AsyncClient, request_id: str, is_kept: bool
) -> None:
    seen = set()
    for path in ("/api/books", "/api/books/77", "/api/nothing", "/health", "/"):
        response = await client.get(path, headers={"X-Request-ID": request_id})
        (received,) = response.headers.get_list("X-Request-ID")
        assert (received == request_id) is is_kept
        seen.add(received)
    assert len(seen) == (1 if is_kept else 5)


@pytest.mark.parametrize("host", ["a..b", ".", "xn--", "x" * 64 + ".org", "a b", "<script>"])
async def test_an_invalid_host_never_causes_a_server_error(site: Site, host: str) -> None:
    for path in ("/api/books", "/health/live", "/"):
        status, headers, body = await send_raw(
            site, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        )
        assert status in {200, 400}
        assert headers["x-request-id"]
        if status == 400:
            assert headers["content-type"] == "application/problem+json"
            assert json.loads(body)["error"] == "Bad Request"


async def test_a_body_that_no_route_reads_has_the_same_limit(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    for method in ("GET", "DELETE"):
        response = await client.request(
            method, "/api/books/1", content=b" " * 70_000, headers=member.headers | JSON
        )
        assert_problem(response, 413, "Payload Too Large")


async def test_cache_control_and_vary_of_each_route(
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
        response = await client.get(path, headers=member.headers)
        assert response.headers["Cache-Control"] == cache
        (vary,) = response.headers.get_list("Vary")
        assert vary == "Accept-Encoding, Origin, Authorization"
    health = await client.get("/health")
    assert health.headers["Cache-Control"] == "no-store"
    assert health.headers["Vary"] == "Accept-Encoding, Origin"


async def test_links_begin_with_public_url_and_never_with_the_host(
    site: Site, make: Factory, folder: Path
) -> None:
    member = await make.member()
    url = site.another_url
    public, host = "https://books.example.org/octavo", {"Host": "evil.example"}
    async with (
        serving(settings_for(url, folder, public_url=public + "/")) as served,
        httpx.AsyncClient(base_url=served.url, headers=host, timeout=TIMEOUT) as client,
    ):
        created = await client.post(
            "/api/books", json={"title": "T", "author": "A"}, headers=member.headers
        )
        assert created.headers["Location"] == f"{public}/api/books/{created.json()['id']}"
        listed = await client.get("/api/books")
        assert listed.json()["links"]["self"] == f"{public}/api/books?page=1"
        for response in (created, listed, await client.get("/"), await client.get("/nothing")):
            assert "evil" not in response.text + str(response.headers)


async def test_responses_without_a_body_have_no_content_headers(site: Site, make: Factory) -> None:
    member = await make.member()
    book = await make.book(member)
    head = f"/api/books/{book.id} HTTP/1.1\r\nHost: x\r\n"
    status, headers, _ = await send_raw(site, f"HEAD {head}\r\n".encode())
    assert status == 200
    assert int(headers["content-length"]) > 100
    status, headers, _ = await send_raw(
        site, f"GET {head}If-None-Match: {headers['etag']}\r\n\r\n".encode()
    )
    assert status == 304
    assert not {"content-type", "content-length"} & set(headers)
    status, headers, _ = await send_raw(
        site, f"DELETE {head}Authorization: {member.token}\r\n\r\n".encode()
    )
    assert status == 204
    assert not {"content-type", "content-length"} & set(headers)
