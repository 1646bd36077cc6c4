"""Errors: problem documents that reveal no internals."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
import quart
from quart import Quart, abort
from werkzeug.exceptions import ImATeapot

from service.errors import APIError, ResourceNotFoundError
from tests.conftest import Site, settings_for, visiting
from tests.cycles import garbage_of, type_names
from tests.factories import Factory
from tests.http_client import assert_problem

SPA = "https://app.example.org"


def faulty(app: Quart) -> None:
    """Add routes that fail in different ways."""

    @app.get("/api/defect")
    async def defect() -> str:
        raise RuntimeError("SELECT secret FROM /etc/passwd")

    @app.get("/api/teapot")
    async def teapot() -> str:
        raise ImATeapot("short and stout")

    @app.get("/api/abort")
    async def aborted() -> str:
        abort(503)

    @app.get("/api/own")
    async def own() -> str:
        raise APIError("Not like this", 418, {"hint": 7})

    @app.get("/api/family")
    async def family() -> str:
        raise ResourceNotFoundError

    @app.get("/api/late")
    async def late() -> str:
        return "fine so far"

    @app.after_request
    async def fail(response: Any) -> Any:
        from quart import request

        if request.path == "/api/late":
            raise RuntimeError("too late for an error handler")
        return response


@pytest.fixture
async def faults(site: Site, folder: Path) -> Any:
    """A client of an application that fails."""
    url = site.another_url
    log_dir = folder / "faults"
    async with visiting(settings_for(url, folder, log_dir=log_dir), faulty) as client:
        yield client


@pytest.mark.parametrize("path", ["/api/defect", "/api/late"])
async def test_a_defect_is_a_500_without_its_cause(
    faults: httpx.AsyncClient, path: str, folder: Path
) -> None:
    response = await faults.get(path, headers={"X-Request-ID": "my-request"})
    assert_problem(response, 500, "Internal Server Error")
    assert response.json()["message"] == "An unexpected error occurred"
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert response.headers.get_list("X-Request-ID") == ["my-request"]


async def test_errors_of_every_origin_are_problem_documents(faults: httpx.AsyncClient) -> None:
    assert_problem(await faults.get("/api/teapot"), 418, "I'm a Teapot")
    assert_problem(await faults.get("/api/abort"), 503, "Service Unavailable")
    assert_problem(await faults.get("/api/family"), 404, "Not Found")
    own = await faults.get("/api/own")
    assert_problem(own, 418, "Bad Request")
    assert (own.json()["message"], own.json()["hint"]) == ("Not like this", 7)


async def test_an_unknown_page_redirects_a_browser_to_the_single_page_application(
    site: Site, folder: Path
) -> None:
    url = site.another_url
    async with visiting(settings_for(url, folder, spa_fallback_url=SPA)) as client:
        html = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
        for path in ("/shelves", "/books/7", "/apiary"):
            response = await client.get(path, headers=html)
            assert response.status_code == 302
            assert response.headers["Location"] == SPA
        for path, headers in (
            ("/shelves", {"Accept": "application/json"}),
            ("/shelves", {"Accept": "*/*"}),
            ("/api/shelves", html),
            ("/api", html),
            ("/admin/shelves", html),
            ("/health/shelves", html),
            ("/docs/shelves", html),
        ):
            assert_problem(await client.get(path, headers=headers), 404, "Not Found")
        assert_problem(await client.post("/shelves", headers=html), 404, "Not Found")
    async with httpx.AsyncClient(base_url=site.url, timeout=60) as client:
        assert_problem(await client.get("/shelves", headers=html), 404, "Not Found")


async def test_errors_leave_no_reference_cycles(site: Site, make: Factory) -> None:
    """A cycle would keep the data of a request until the next garbage collection."""
    owner, other = [await make.member() for _ in range(2)]
    book = await make.book(owner)
    title, headers = {"title": "x"}, other.headers
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/nowhere", {}),
        ("GET", "/api/nowhere", {}),
        ("GET", "/api/books/999", {}),
        ("GET", "/api/books?year_min=x", {}),
        ("DELETE", "/api/books", {}),
        ("POST", "/api/books", {"json": title}),
        ("POST", "/api/books", {"json": {"title": ""}, "headers": headers}),
        ("POST", "/api/books", {"content": b"{", "headers": headers}),
        ("PATCH", f"/api/books/{book.id}", {"json": title, "headers": headers}),
    ]
    async with httpx.AsyncClient(base_url=site.url, timeout=60) as client:

        async def send_all() -> None:
            responses = [
                await client.request(method, path, **more) for method, path, more in requests
            ]
            statuses = {response.status_code for response in responses}
            assert statuses == {400, 401, 403, 404, 405, 415}
            await asyncio.sleep(0.1)  # the server ends its work after the responses

        left = await garbage_of(send_all)
    assert not [each for each in left if isinstance(each, quart.Request)]
    assert not {"traceback", "frame", "RequestContext"} & type_names(left)
