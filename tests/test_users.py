"""Profiles: of the user who signed in, and public."""

import asyncio

import httpx
import pytest

from tests.factories import PASSWORD, Factory
from tests.test_auth import alive


async def test_a_public_profile_shows_id_name_and_date_only(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member("Zoë")
    response = await client.get(f"/api/users/{member.id}")
    assert list(response.json()) == ["id", "username", "created_at"]
    assert (response.json()["id"], response.json()["username"]) == (member.id, "Zoë")
    missing = await client.get("/api/users/999999")
    assert missing.status_code == 404
    assert missing.json()["message"] == "User with id 999999 not found"


async def test_a_user_reads_the_own_profile_uncached(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    response = await client.get("/api/profile", headers=member.headers)
    assert list(response.json()) == ["id", "username", "email", "tier", "is_admin", "created_at"]
    assert response.headers["Cache-Control"] == "no-store"
    assert "ETag" not in response.headers


async def test_a_new_name_needs_no_password(client: httpx.AsyncClient, make: Factory) -> None:
    member, other = await make.member(), await make.member("Taken")
    response = await client.patch(
        "/api/profile", json={"username": " Renamed "}, headers=member.headers
    )
    assert (response.status_code, response.json()["username"]) == (200, "Renamed")
    taken = await client.patch("/api/profile", json={"username": "tAKEN"}, headers=member.headers)
    assert taken.status_code == 400
    assert taken.json()["messages"] == {"username": ["Username already exists"]}
    own = await client.patch("/api/profile", json={"username": "TAKEN"}, headers=other.headers)
    assert (own.status_code, own.json()["username"]) == (200, "TAKEN")


@pytest.mark.parametrize("change", [{"email": "new@example.org"}, {"password": "a new password"}])
async def test_a_new_address_or_password_needs_the_current_password(
    client: httpx.AsyncClient, make: Factory, change: dict[str, str]
) -> None:
    member = await make.member()
    for given, sentence in (
        ({}, "Missing data for required field."),
        ({"current_password": "wrong password"}, "Current password is wrong"),
    ):
        response = await client.patch("/api/profile", json=change | given, headers=member.headers)
        assert response.status_code == 400
        assert response.json()["messages"] == {"current_password": [sentence]}
    right = change | {"current_password": PASSWORD}
    response = await client.patch("/api/profile", json=right, headers=member.headers)
    assert response.status_code == 200
    credentials = {"email": member.email, "password": PASSWORD} | change
    signed_in = await client.post("/api/auth/login", json=credentials)
    assert signed_in.status_code == 200
    old = await client.post("/api/auth/login", json={"email": member.email, "password": PASSWORD})
    assert old.status_code == 401


async def test_a_taken_address_is_refused(client: httpx.AsyncClient, make: Factory) -> None:
    member, other = await make.member(), await make.member()
    response = await client.patch(
        "/api/profile",
        json={"email": other.email.upper(), "current_password": PASSWORD},
        headers=member.headers,
    )
    assert response.status_code == 400
    assert response.json()["messages"] == {"email": ["Email already registered"]}


@pytest.mark.parametrize("field", ["username", "email", "password"])
async def test_no_field_of_an_account_can_be_cleared(
    client: httpx.AsyncClient, make: Factory, field: str
) -> None:
    member = await make.member()
    response = await client.patch(
        "/api/profile",
        json={field: None, "current_password": PASSWORD},
        headers=member.headers,
    )
    assert response.status_code == 400
    assert response.json()["messages"] == {field: ["Field may not be null."]}


@pytest.mark.parametrize("field", ["tier", "is_admin", "id", "token_version", "password_hash"])
async def test_a_profile_update_changes_no_rights(
    client: httpx.AsyncClient, make: Factory, field: str
) -> None:
    member = await make.member()
    before = (await client.get("/api/profile", headers=member.headers)).json()
    response = await client.patch("/api/profile", json={field: True}, headers=member.headers)
    assert response.status_code == 400
    assert (await client.get("/api/profile", headers=member.headers)).json() == before


async def test_a_new_password_ends_every_other_token(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    other = await make.signed_in(member)
    for password, new in ((PASSWORD, "second password"), ("second password", PASSWORD)):
        response = await client.patch(
            "/api/profile",
            json={"password": new, "current_password": password},
            headers=member.headers,
        )
        assert response.status_code == 200
        assert await alive(client, member.token)
        assert not await alive(client, other.token)
        ended = await client.post("/api/auth/refresh", json={"refresh_token": other.refresh_token})
        assert ended.status_code == 401
        other = await make.signed_in(member)
        assert await alive(client, other.token)
    kept = await client.post("/api/auth/refresh", json={"refresh_token": member.refresh_token})
    assert kept.status_code == 200
    assert (await client.post("/api/auth/logout", headers=member.headers)).status_code == 204
    for token in (member.token, other.token, kept.json()["token"]):
        assert not await alive(client, token)


async def test_of_simultaneous_password_changes_only_the_first_succeeds(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    responses = await asyncio.gather(
        *(
            client.patch(
                "/api/profile",
                json={"password": f"password {n}", "current_password": PASSWORD},
                headers=member.headers,
            )
            for n in range(4)
        )
    )
    assert sorted(response.status_code for response in responses) == [200, 400, 400, 400]
