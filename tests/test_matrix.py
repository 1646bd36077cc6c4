"""Authorisation: the status of every route for every role. A new route without a row fails."""

import re
import time
from dataclasses import dataclass
from typing import Any

import httpx
import jwt
import pytest

from tests.conftest import SECRET, Site
from tests.factories import PASSWORD, Factory, Member

ROLES = ("nobody", "expired", "owner", "other", "admin", "deleted")


@dataclass(frozen=True)
class Row:
    """A request, and its status for each of ROLES."""

    statuses: tuple[int, int, int, int, int, int]
    body: dict[str, Any] | None = None
    query: str = ""


def exempt() -> Row:
    """Give the row of a route that reads no token."""
    return Row((200,) * 6)


def open_to_all(status: int = 200, body: dict[str, Any] | None = None, query: str = "") -> Row:
    """Give the row of a public route: without a token, or with a valid token."""
    return Row((status, 401, status, status, status, 401), body, query)


def signed_in(status: int, body: dict[str, Any] | None = None) -> Row:
    """Give the row of a route for users who signed in."""
    return Row((401, 401, status, status, status, 401), body)


def owned(status: int, body: dict[str, Any] | None = None) -> Row:
    """Give the row of a route for the owner of the book, and administrators."""
    return Row((401, 401, status, 403, status, 401), body)


def administered(status: int, body: dict[str, Any] | None = None) -> Row:
    """Give the row of a route for administrators."""
    return Row((401, 401, 403, 403, status, 401), body)


BOOK = {"title": "T", "author": "A"}
ACCOUNT = {"username": "newcomer", "email": "newcomer@example.org", "password": PASSWORD}

MATRIX = {
    ("GET", "/"): exempt(),
    ("GET", "/docs"): exempt(),
    ("GET", "/docs/<any('docs.css','docs.js','swagger-ui.css','swagger-ui-bundle.js'):name>"): (
        exempt()
    ),
    ("GET", "/openapi.json"): exempt(),
    ("GET", "/health"): exempt(),
    ("GET", "/health/live"): exempt(),
    ("GET", "/health/ready"): exempt(),
    ("GET", "/metrics"): exempt(),
    ("GET", "/api/rate-limit"): open_to_all(),
    ("POST", "/api/auth/register"): open_to_all(201, ACCOUNT),
    ("POST", "/api/auth/login"): open_to_all(
        200, {"email": "other@example.org", "password": PASSWORD}
    ),
    ("POST", "/api/auth/refresh"): open_to_all(401, {"refresh_token": "unknown"}),
    ("POST", "/api/auth/logout"): signed_in(204),
    ("GET", "/api/profile"): signed_in(200),
    ("PATCH", "/api/profile"): signed_in(200, {"username": "renamed"}),
    ("GET", "/api/users/<id:user_id>"): open_to_all(),
    ("GET", "/api/users/<id:user_id>/books"): open_to_all(),
    ("GET", "/api/data"): open_to_all(),
    ("GET", "/api/report"): open_to_all(),
    ("GET", "/api/popular-books"): open_to_all(),
    ("GET", "/api/books"): open_to_all(),
    ("GET", "/api/search"): open_to_all(query="?q=emma"),
    ("POST", "/api/books"): signed_in(201, BOOK),
    ("GET", "/api/books/<id:book_id>"): open_to_all(),
    ("PUT", "/api/books/<id:book_id>"): owned(200, BOOK),
    ("PATCH", "/api/books/<id:book_id>"): owned(200, {"price": 3}),
    ("DELETE", "/api/books/<id:book_id>"): owned(204),
    ("POST", "/api/books/batch-get"): open_to_all(200, {"ids": [1]}),
    ("POST", "/api/books/bulk"): signed_in(207, {"items": [BOOK]}),
    ("PATCH", "/api/books/bulk"): signed_in(207, {"items": [{"id": 1, "price": 3}]}),
    ("DELETE", "/api/books/bulk"): signed_in(207, {"items": [{"id": 1}]}),
    ("POST", "/admin/clear-cache"): administered(200),
    ("GET", "/admin/users"): administered(200),
    ("PATCH", "/admin/users/<id:user_id>"): administered(200, {"tier": "standard"}),
    ("DELETE", "/admin/users/<id:user_id>"): administered(204),
}
# The last reads books.
PUBLIC_POSTS = {
    "/api/auth/register", "/api/auth/login", "/api/auth/refresh", "/api/books/batch-get",
}  # fmt: skip


def routes(site: Site) -> set[tuple[str, str]]:
    """Give the method and rule of every route."""
    return {
        (method, rule.rule)
        for rule in site.app.url_map.iter_rules()
        for method in rule.methods or ()
        if method not in {"HEAD", "OPTIONS"}
    }


def expired(member: Member) -> dict[str, str]:
    """Give the header of a token that expired a second ago."""
    claims = jwt.decode(member.token, options={"verify_signature": False})
    late = claims | {"iat": int(time.time()) - 9, "exp": int(time.time()) - 1}
    return {"Authorization": jwt.encode(late, SECRET, algorithm="HS256")}


async def test_every_route_has_a_row(site: Site) -> None:
    assert routes(site) == set(MATRIX)


async def test_every_write_needs_a_token_unless_it_is_listed(site: Site) -> None:
    for method, rule in routes(site):
        if method != "GET" and rule not in PUBLIC_POSTS:
            assert MATRIX[method, rule].statuses[0] == 401, rule


async def test_an_invalid_token_is_refused_on_every_route_that_reads_it(site: Site) -> None:
    for method, rule in routes(site):
        statuses = MATRIX[method, rule].statuses
        is_read = rule.startswith(("/api/", "/admin/"))
        assert ((statuses[1], statuses[5]) == (401, 401)) is is_read, rule


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("route", MATRIX, ids=" ".join)
async def test_each_route_answers_each_role_as_the_matrix_says(
    client: httpx.AsyncClient, make: Factory, route: tuple[str, str], role: str
) -> None:
    owner, other, admin = await make.member(), await make.member("other"), await make.admin()
    gone = await make.member()
    book = await make.book(owner)
    await client.delete(f"/admin/users/{gone.id}", headers=admin.headers)
    headers = {
        "nobody": {},
        "expired": expired(owner),
        "owner": owner.headers,
        "other": other.headers,
        "admin": admin.headers,
        "deleted": gone.headers,
    }[role]
    method, rule = route
    path = rule.replace("<id:book_id>", str(book.id)).replace("<id:user_id>", str(other.id))
    path = re.sub(r"<any\('([^']+).*>", r"\1", path)
    row = MATRIX[route]
    response = await client.request(method, path + row.query, json=row.body, headers=headers)
    assert response.status_code == row.statuses[ROLES.index(role)], response.text
    if role in {"expired", "deleted"} and response.status_code == 401:
        assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    if response.status_code in {401, 403}:
        book_after = await client.get(f"/api/books/{book.id}")
        assert book_after.json()["version"] == 1, "a refused request changes nothing"
