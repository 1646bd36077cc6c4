"""HEAD on every route that has GET: the same response without its body, on each path."""

import asyncio
import re
from pathlib import Path

import httpx
import pytest

from tests.conformance import Watched
from tests.conftest import Site, serving, settings_for
from tests.factories import Factory

# Headers that differ between equal requests.
OWN = {"date", "x-request-id", "ratelimit", "ratelimit-remaining", "ratelimit-reset"}
VARIABLE = {"/health", "/health/ready", "/metrics"}  # bodies with times and counters
HIT = "Octavo; hit"


def paths_of(site: Site, book_id: int, user_id: int) -> list[str]:
    """Return a path for each rule of the URL map that has GET."""
    paths = []
    for rule in site.app.url_map.iter_rules():
        if "GET" in (rule.methods or ()):
            assert "HEAD" in (rule.methods or ()), rule
            path = rule.rule.replace("<id:book_id>", str(book_id))
            path = path.replace("<id:user_id>", str(user_id))
            paths.append(re.sub(r"<any\('([^']+).*>", r"\1", path))
    return paths


def comparable(response: httpx.Response) -> dict[str, str]:
    """Return the headers that the responses to GET and HEAD share."""
    headers = {key: value for key, value in response.headers.items() if key not in OWN}
    if response.request.url.path in VARIABLE:
        del headers["content-length"]
    return headers


@pytest.mark.parametrize("is_fast", [True, False])
async def test_every_get_has_a_head_with_the_same_headers(
    site: Site, make: Factory, folder: Path, is_fast: bool
) -> None:
    admin = await make.admin()
    book = await make.book(admin)
    settings = settings_for(site.another_url, folder, fast_path=is_fast)
    async with (
        serving(settings) as served,
        httpx.AsyncClient(base_url=served.url, timeout=60) as client,
    ):
        client.headers["Accept-Encoding"] = "identity"  # the length is that of the bytes sent
        paths = paths_of(served, book.id, admin.id)
        missing = ["/api/books/7000000", "/api/users/7000000", "/api/books?page=0", "/nowhere"]
        for path in [*paths, *missing, "/api/books?per_page=5", "/api/books?limit=5&fields=id"]:
            for _ in range(3 if is_fast else 2):  # loaded, cached, and remembered
                full = await client.get(path, headers=admin.headers)
            head = await client.head(path, headers=admin.headers)
            assert (head.status_code, head.content) == (full.status_code, b""), path
            assert comparable(head) == comparable(full), path
            assert full.content, path
            if path not in VARIABLE:
                assert head.headers["content-length"] == str(len(full.content)), path


async def test_head_is_answered_from_the_cache_without_a_task(
    site: Site, client: httpx.AsyncClient, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = await make.book()
    paths = [f"/api/books/{book.id}", "/api/books?per_page=5", "/health/live"]
    for path in paths:
        for _ in range(3):
            await client.get(path)

    async def never(*args: object) -> None:
        raise AssertionError("the application is called")

    monkeypatch.setattr(Watched, "__call__", never)
    for path in paths:
        head, full = await client.head(path), await client.get(path)
        assert (head.status_code, full.status_code) == (200, 200)
        assert comparable(head) == comparable(full)
        if "api" in path:
            tag = {"If-None-Match": full.headers["ETag"]}
            assert (await client.head(path, headers=tag)).status_code == 304


async def test_no_byte_follows_the_head_of_a_response_to_head(
    site: Site, client: httpx.AsyncClient, make: Factory
) -> None:
    """Else the next response on the connection would be read from the middle of a body."""
    book = await make.book()
    for _ in range(2):
        full = await client.get(f"/api/books/{book.id}")
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    try:
        head = f"/api/books/{book.id} HTTP/1.1\r\nHost: {site.url.removeprefix('http://')}\r\n"
        writer.write(f"HEAD {head}\r\nHEAD {head}\r\nGET {head}Connection: close\r\n\r\n".encode())
        async with asyncio.timeout(60):
            received = await reader.read()
    finally:
        writer.close()
    *heads, last, body = received.split(b"\r\n\r\n")
    assert len(heads) == 2
    assert body == full.content
    for response in (*heads, last):
        assert response.startswith(b"HTTP/1.1 200")
        assert b"\r\ncontent-length: %d\r\n" % len(body) in response
        assert f"\r\ncache-status: {HIT}\r\n".encode() in response
