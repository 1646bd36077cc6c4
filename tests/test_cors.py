"""CORS: on every response under /api, for exactly the configured origins."""

from pathlib import Path

import httpx
import pytest

from tests.conftest import Site, serving, settings_for, visiting
from tests.factories import Factory

SHOP = "https://shop.example"
EXPOSED = {
    "ETag", "Link", "Location", "Retry-After", "RateLimit", "RateLimit-Policy", "X-Request-ID",
    "Idempotency-Replayed",
}  # fmt: skip


async def test_development_allows_every_origin(client: httpx.AsyncClient, make: Factory) -> None:
    book = await make.book()
    for method, path in (
        ("GET", "/api/books"),
        ("GET", f"/api/books/{book.id}"),
        ("HEAD", "/api/books"),
        ("GET", "/api/books/0"),
        ("GET", "/api/nothing"),
        ("GET", "/api/books?page=0"),
        ("TRACE", "/api/books"),
        ("POST", "/api/books"),
        ("POST", "/api/auth/login"),
    ):
        response = await client.request(method, path, headers={"Origin": SHOP})
        assert response.headers["Access-Control-Allow-Origin"] == "*", (method, path)
        assert set(response.headers["Access-Control-Expose-Headers"].split(", ")) == EXPOSED
        assert "Access-Control-Allow-Credentials" not in response.headers
    for path in ("/health", "/", "/admin/users", "/nothing"):
        response = await client.get(path, headers={"Origin": SHOP})
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_a_preflight_lists_methods_and_headers(client: httpx.AsyncClient) -> None:
    for path in ("/api/books/7", "/api/books?genre=Fiction&page=2", "/api/books/7?x=1"):
        response = await client.options(
            path,
            headers={
                "Origin": SHOP,
                "Access-Control-Request-Method": "PUT",
                "Access-Control-Request-Headers": "authorization, if-match, x-unknown",
            },
        )
        assert response.status_code == 200
        assert response.content == b""
        methods = set(response.headers["Access-Control-Allow-Methods"].split(", "))
        assert methods == {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}
        allowed = response.headers["Access-Control-Allow-Headers"].lower().split(", ")
        assert set(allowed) == {"authorization", "if-match"}


async def test_only_configured_origins_are_allowed(site: Site, folder: Path) -> None:
    url = site.another_url
    settings = settings_for(
        url,
        folder,
        cors_origins=SHOP + ", https://b.example:8443",
        cors_credentials=True,
        cors_blueprint_origins={"books": ["https://library.example"]},
    )
    async with (
        serving(settings) as strict,
        httpx.AsyncClient(base_url=strict.url, timeout=60) as client,
    ):

        async def is_allowed(origin: str, path: str) -> bool:
            response = await client.get(path, headers={"Origin": origin})
            allowed = response.headers.get("Access-Control-Allow-Origin")
            assert allowed in {None, origin}
            assert "Origin" in response.headers["Vary"]
            if allowed:
                assert response.headers["Access-Control-Allow-Credentials"] == "true"
            return allowed is not None

        for path in ("/api/users/1", "/api/nothing"):
            assert await is_allowed(SHOP, path)
            assert await is_allowed("https://b.example:8443", path)
            assert not await is_allowed("https://library.example", path)
        for path in ("/api/books", "/api/books/0", "/api/books/abc", "/api/books/1/2"):
            assert await is_allowed("https://library.example", path)
            assert not await is_allowed(SHOP, path)
        for origin in (
            "https://shop.example.evil.com", "https://shop.example:444", "http://shop.example",
            "https://evilshop.example", "https://shop_example", "null", "https://sub.shop.example",
        ):  # fmt: skip
            assert not await is_allowed(origin, "/api/users/1")


@pytest.mark.parametrize("origins", [(), ("https://a.example",)])
async def test_two_applications_in_one_process_share_nothing(
    site: Site, client: httpx.AsyncClient, folder: Path, origins: tuple[str, ...]
) -> None:
    url = site.another_url
    async with visiting(settings_for(url, folder, cors_origins=origins)) as strict:
        closed = await strict.get("/api/books", headers={"Origin": SHOP})
        assert "Access-Control-Allow-Origin" not in closed.headers
        opened = await client.get("/api/books", headers={"Origin": SHOP})
        assert opened.headers["Access-Control-Allow-Origin"] == "*"
    assert (await client.get("/api/books")).status_code == 200, (
        "the first application is still open"
    )
