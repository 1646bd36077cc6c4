"""A password change ends every other token. The token of its request stays valid everywhere."""

import asyncio
from typing import Any

import httpx

from tests.factories import PASSWORD, Factory, Member


async def change_password(
    client: httpx.AsyncClient, member: Member, password: str, current: str = PASSWORD
) -> None:
    """Change a member's password, with the token of the member."""
    body = {"password": password, "current_password": current}
    response = await client.patch("/api/profile", json=body, headers=member.headers)
    assert response.status_code == 200


async def create(client: httpx.AsyncClient, member: Member, title: str = "T") -> Any:
    """Create a book with the token of a member."""
    body = {"title": title, "author": "A"}
    return await client.post("/api/books", json=body, headers=member.headers)


async def test_the_token_of_a_password_change_writes_books(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    await change_password(client, member, "another long password")
    assert (await client.get("/api/profile", headers=member.headers)).status_code == 200
    created = await create(client, member)
    assert created.status_code == 201
    assert created.json()["user_id"] == member.id
    path = created.headers["Location"]
    for public in ("/api/books", path, path, f"/api/users/{member.id}"):
        assert (await client.get(public, headers=member.headers)).status_code == 200
    for method in ("PATCH", "PUT"):
        body = {"title": method, "author": "A"}
        changed = await client.request(method, path, json=body, headers=member.headers)
        assert (changed.status_code, changed.json()["title"]) == (200, method)
    assert (await client.delete(path, headers=member.headers)).status_code == 204


async def test_the_token_of_a_password_change_writes_books_together_with_others(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member, other = await make.member(), await make.member()
    await change_password(client, member, "another long password")
    writers = [member, other] * 10
    responses = await asyncio.gather(
        *(create(client, writer, str(n)) for n, writer in enumerate(writers))
    )
    assert [response.status_code for response in responses] == [201] * len(writers)
    assert [response.json()["user_id"] for response in responses] == [w.id for w in writers]


async def test_only_the_token_of_the_newest_password_change_stays(
    client: httpx.AsyncClient, make: Factory
) -> None:
    """Every other token is refused: for reads, for writes, and for the refresh of a pair."""
    first = await make.member()
    second = await make.signed_in(first)
    await change_password(client, first, "another long password")
    assert (await create(client, second)).status_code == 401
    third = await make.signed_in(first)
    assert (await create(client, third)).status_code == 201
    await change_password(client, third, PASSWORD, "another long password")
    assert (await create(client, third)).status_code == 201
    for member in (first, second):
        assert (await create(client, member)).status_code == 401
        assert (await client.get("/api/profile", headers=member.headers)).status_code == 401
        body = {"refresh_token": member.refresh_token}
        assert (await client.post("/api/auth/refresh", json=body)).status_code == 401


async def test_a_logout_also_ends_the_token_of_a_password_change(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    await change_password(client, member, "another long password")
    assert (await client.post("/api/auth/logout", headers=member.headers)).status_code == 204
    assert (await create(client, member)).status_code == 401
    assert (await client.get("/api/profile", headers=member.headers)).status_code == 401


async def test_new_rights_also_end_the_token_of_a_password_change(
    client: httpx.AsyncClient, make: Factory
) -> None:
    admin, member = await make.admin(), await make.member()
    await change_password(client, member, "another long password")
    changed = await client.patch(
        f"/admin/users/{member.id}", json={"is_admin": True}, headers=admin.headers
    )
    assert changed.status_code == 200
    assert (await create(client, member)).status_code == 401
    assert (await client.get("/api/profile", headers=member.headers)).status_code == 401
