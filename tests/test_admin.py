"""Administration: list, change and delete users."""

import asyncio

import httpx
import pytest
from sqlalchemy import delete

from service.models import User
from tests.conftest import Site
from tests.factories import Factory
from tests.test_auth import alive


async def test_the_list_of_users_has_the_envelope_of_books(
    client: httpx.AsyncClient, make: Factory
) -> None:
    admin = await make.admin()
    members = [await make.member() for _ in range(4)]
    response = await client.get("/admin/users?per_page=2", headers=admin.headers)
    page = response.json()
    assert list(page) == ["items", "total", "pagination", "links"]
    assert [user["id"] for user in page["items"]] == [members[3].id, members[2].id]
    assert (page["total"], page["pagination"]["total_pages"]) == (5, 3)
    assert response.links["next"]["url"] == page["links"]["next"]
    assert set(page["items"][0]) == {"id", "username", "email", "tier", "is_admin", "created_at"}
    beyond = await client.get("/admin/users?page=9", headers=admin.headers)
    assert (beyond.json()["items"], beyond.json()["total"]) == ([], 5)
    for query in ("page=0", "sort=id", "limit=3"):
        assert (await client.get(f"/admin/users?{query}", headers=admin.headers)).status_code == 400


async def test_new_rights_end_the_tokens_with_the_old_rights(
    client: httpx.AsyncClient, make: Factory
) -> None:
    admin, member = await make.admin(), await make.member()
    path = f"/admin/users/{member.id}"
    for change in ({"tier": "premium"}, {"is_admin": True}, {"is_admin": False}):
        session = await make.signed_in(member)
        response = await client.patch(path, json=change, headers=admin.headers)
        assert response.status_code == 200
        assert response.json() | change == response.json()
        assert not await alive(client, session.token)
        fresh = await client.post(
            "/api/auth/refresh", json={"refresh_token": session.refresh_token}
        )
        assert await alive(client, fresh.json()["token"])


async def test_a_demoted_administrator_loses_access_at_once(
    client: httpx.AsyncClient, make: Factory
) -> None:
    admin, other = await make.admin(), await make.admin()
    await client.patch(f"/admin/users/{other.id}", json={"is_admin": False}, headers=admin.headers)
    assert (await client.get("/admin/users", headers=other.headers)).status_code == 401
    again = await make.signed_in(other)
    assert (await client.get("/admin/users", headers=again.headers)).status_code == 403


async def test_an_update_without_a_change_ends_no_token(
    client: httpx.AsyncClient, make: Factory
) -> None:
    admin, member = await make.admin(), await make.member()
    for change in ({}, {"tier": "free"}, {"is_admin": False, "tier": "free"}):
        response = await client.patch(
            f"/admin/users/{member.id}", json=change, headers=admin.headers
        )
        assert response.status_code == 200
    assert await alive(client, member.token)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tier": "gold"}, "Must be one of: 'free', 'standard', 'premium' or 'service'."),
        ({"tier": None}, "Field may not be null."),
        ({"is_admin": "yes"}, "Not a valid boolean."),
        ({"is_admin": 1}, "Not a valid boolean."),
        ({"username": "x"}, "Unknown field."),
    ],
)
async def test_invalid_rights_are_refused(
    client: httpx.AsyncClient, make: Factory, change: dict[str, object], sentence: str
) -> None:
    admin, member = await make.admin(), await make.member()
    response = await client.patch(f"/admin/users/{member.id}", json=change, headers=admin.headers)
    assert response.status_code == 400
    assert list(response.json()["messages"].values()) == [[sentence]]


async def test_deleting_a_user_deletes_books_and_tokens(
    client: httpx.AsyncClient, make: Factory
) -> None:
    admin, member = await make.admin(), await make.member()
    book, kept = await make.book(member), await make.book(admin)
    gone = await client.delete(f"/admin/users/{member.id}", headers=admin.headers)
    assert (gone.status_code, gone.content) == (204, b"")
    response = await client.get("/api/profile", headers=member.headers)
    assert (response.status_code, response.json()["error"]) == (401, "User not found")
    refresh = await client.post("/api/auth/refresh", json={"refresh_token": member.refresh_token})
    assert refresh.status_code == 401
    assert (await client.get(f"/api/books/{book.id}")).status_code == 404
    assert (await client.get(f"/api/books/{kept.id}")).status_code == 200
    assert (await client.get(f"/api/users/{member.id}")).status_code == 404
    missing = await client.delete(f"/admin/users/{member.id}", headers=admin.headers)
    assert missing.json()["message"] == f"User with id {member.id} not found"


async def test_the_last_administrator_cannot_be_removed(
    client: httpx.AsyncClient, make: Factory
) -> None:
    admin = await make.admin()
    path = f"/admin/users/{admin.id}"
    for response in (
        await client.patch(path, json={"is_admin": False}, headers=admin.headers),
        await client.delete(path, headers=admin.headers),
    ):
        assert response.status_code == 409
        assert response.json()["error"] == "Conflict"
    assert await alive(client, admin.token)
    assert (await client.patch(path, json={"is_admin": True}, headers=admin.headers)).is_success


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
async def test_two_administrators_cannot_remove_each_other(
    client: httpx.AsyncClient, make: Factory, site: Site, method: str
) -> None:
    for _ in range(5):
        first, second = await make.admin(), await make.admin()
        body = {"is_admin": False} if method == "PATCH" else None
        responses = await asyncio.gather(
            client.request(method, f"/admin/users/{second.id}", json=body, headers=first.headers),
            client.request(method, f"/admin/users/{first.id}", json=body, headers=second.headers),
        )
        codes = sorted(response.status_code for response in responses)
        assert codes[0] in {200, 204}
        assert codes[1] in {401, 409}
        # Not through the cache: a statement about all users would turn it off.
        async with site.database.writer.begin() as connection:
            await connection.execute(delete(User))


async def test_a_user_who_is_deleted_during_a_write_leaves_no_book(
    client: httpx.AsyncClient, make: Factory
) -> None:
    admin = await make.admin()
    for _ in range(5):
        member = await make.member()
        made, gone = await asyncio.gather(
            client.post("/api/books", json={"title": "T", "author": "A"}, headers=member.headers),
            client.delete(f"/admin/users/{member.id}", headers=admin.headers),
        )
        assert gone.status_code == 204
        assert made.status_code in {201, 401}
        if made.status_code == 401:
            assert made.json()["error"] == "User not found"
        books = await client.get(f"/api/users/{member.id}/books")
        assert books.json() == []
