"""Registration, login, refresh and logout."""

import asyncio
import os
import statistics
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from argon2 import Parameters, PasswordHasher, extract_parameters
from sqlalchemy import select, update

from service.auth import service
from service.auth.service import MAX_PRUNED_TOKENS
from service.models import RefreshToken, User
from service.security import digest
from tests.conftest import SECRET, Site, serving, settings_for, visiting
from tests.factories import PASSWORD, Factory, Member

ANNA = {"username": "Anna", "email": "Anna.B@Example.org", "password": PASSWORD}


async def alive(client: httpx.AsyncClient, token: str) -> bool:
    """Whether an access token works."""
    response = await client.get("/api/profile", headers={"Authorization": f"Bearer {token}"})
    assert response.status_code in {200, 401}
    return response.status_code == 200


async def test_register_gives_the_account_without_the_password(client: httpx.AsyncClient) -> None:
    response = await client.post("/api/auth/register", json=ANNA)
    assert response.status_code == 201
    user = response.json()
    assert list(user) == ["id", "username", "email", "tier", "is_admin", "created_at"]
    assert user | {"username": "Anna", "tier": "free", "is_admin": False} == user
    assert PASSWORD not in response.text
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        ({"username": "aNNA"}, {"username": ["Username already exists"]}),
        ({"email": "anna.b@EXAMPLE.ORG"}, {"email": ["Email already registered"]}),
    ],
)
async def test_names_and_addresses_are_unique_without_case(
    client: httpx.AsyncClient, change: dict[str, str], messages: dict[str, list[str]]
) -> None:
    assert (await client.post("/api/auth/register", json=ANNA)).status_code == 201
    other = {"username": "Bea", "email": "bea@example.org", "password": PASSWORD}
    response = await client.post("/api/auth/register", json=other | change)
    assert response.status_code == 400
    assert response.json()["messages"] == messages
    assert (await client.post("/api/auth/register", json=other)).status_code == 201


@pytest.mark.parametrize(
    ("change", "field", "sentence"),
    [
        ({"username": "ab"}, "username", "Shorter than minimum length 3."),
        ({"username": "x" * 51}, "username", "Longer than maximum length 50."),
        ({"username": "root\u200b"}, "username", "Must not hold control or invisible characters."),
        ({"username": "a\nb"}, "username", "Must not hold control or invisible characters."),
        ({"email": "nobody"}, "email", "Not a valid email address."),
        ({"email": "Anna <anna@example.org>"}, "email", "Not a valid email address."),
        ({"email": "a@b"}, "email", "Not a valid email address."),
        ({"password": "1234567"}, "password", "Shorter than minimum length 8."),
        ({"password": "x" * 129}, "password", "Longer than maximum length 128."),
        ({"password": 12345678}, "password", "Not a valid string."),
        ({"is_admin": True}, "is_admin", "Unknown field."),
        ({"tier": "premium"}, "tier", "Unknown field."),
        ({"password_hash": "x"}, "password_hash", "Unknown field."),
        ({"token_version": 7}, "token_version", "Unknown field."),
    ],
)
async def test_an_invalid_account_is_refused(
    client: httpx.AsyncClient, change: dict[str, object], field: str, sentence: str
) -> None:
    response = await client.post("/api/auth/register", json=ANNA | change)
    assert response.status_code == 400
    assert response.json()["messages"] == {field: [sentence]}


async def test_a_taken_name_and_a_taken_address_are_both_reported(
    client: httpx.AsyncClient,
) -> None:
    await client.post("/api/auth/register", json=ANNA)
    response = await client.post("/api/auth/register", json=ANNA)
    assert response.json()["messages"] == {
        "username": ["Username already exists"],
        "email": ["Email already registered"],
    }


@pytest.mark.parametrize(
    "address", ["anna@xn--bcher-kva.example.org", "anna@ｅxample.org", "a.NNA@Example.ORG"]
)
async def test_a_user_signs_in_with_the_registered_address_in_any_form(
    client: httpx.AsyncClient, address: str
) -> None:
    made = await client.post("/api/auth/register", json=ANNA | {"email": address})
    assert made.status_code == 201
    for email in (address, made.json()["email"]):
        response = await client.post("/api/auth/login", json={"email": email, "password": PASSWORD})
        assert response.status_code == 200, email


async def test_of_simultaneous_registrations_of_a_name_only_the_first_succeeds(
    client: httpx.AsyncClient,
) -> None:
    responses = await asyncio.gather(
        *(client.post("/api/auth/register", json=ANNA) for _ in range(8))
    )
    assert sorted(response.status_code for response in responses) == [201] + [400] * 7


async def test_login_gives_a_pair_of_tokens(client: httpx.AsyncClient, site: Site) -> None:
    user = (await client.post("/api/auth/register", json=ANNA)).json()
    response = await client.post(
        "/api/auth/login", json={"email": "ANNA.b@example.org", "password": PASSWORD}
    )
    assert response.status_code == 200
    pair = response.json()
    assert list(pair) == ["token", "token_type", "expires_in", "refresh_token"]
    assert (pair["token_type"], pair["expires_in"]) == ("Bearer", 86_400)
    assert jwt.get_unverified_header(pair["token"]) == {"alg": "HS256", "typ": "JWT"}
    claims = jwt.decode(pair["token"], SECRET, algorithms=["HS256"], audience="octavo")
    assert set(claims) == {
        "user_id", "username", "tier", "iat", "exp", "jti", "iss", "aud", "ver",
    }  # fmt: skip
    assert (claims["user_id"], claims["username"], claims["tier"]) == (user["id"], "Anna", "free")
    assert claims["exp"] - claims["iat"] == 86_400
    async with site.database.session() as db:
        stored = (await db.execute(select(RefreshToken))).scalar_one()
    assert pair["refresh_token"] not in (stored.digest, stored.family)


@pytest.mark.parametrize("header", ["{}", "Bearer {}", "bearer {}", "BEARER  {}"])
async def test_the_header_works_with_and_without_bearer(
    client: httpx.AsyncClient, make: Factory, header: str
) -> None:
    member = await make.member()
    response = await client.get(
        "/api/profile", headers={"Authorization": header.format(member.token)}
    )
    assert response.json()["username"] == member.username


async def test_a_wrong_password_and_an_unknown_address_get_the_same_response(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    responses = [
        await client.post("/api/auth/login", json={"email": email, "password": "wrong password"})
        for email in (member.email, "nobody@example.org", "no address at all")
    ]
    bodies = [{**response.json(), "request_id": None} for response in responses]
    assert [response.status_code for response in responses] == [401] * 3
    assert bodies[0]["error"] == "Invalid credentials"
    assert bodies[0] == bodies[1] == bodies[2]
    assert {response.headers["WWW-Authenticate"] for response in responses} == {"Bearer"}


async def test_a_login_costs_the_same_hash_for_known_and_unknown_addresses(
    client: httpx.AsyncClient, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the time of a response would reveal which addresses are registered."""
    member = await make.member()
    parameters: list[Parameters] = []
    verify = PasswordHasher.verify

    def recorded(self: PasswordHasher, hash: Any, password: Any) -> Any:  # noqa: A002  (argon2's)
        parameters.append(extract_parameters(hash))
        return verify(self, hash, password)

    monkeypatch.setattr(PasswordHasher, "verify", recorded)
    for email in (member.email, "nobody@example.org"):
        credentials = {"email": email, "password": "wrong password"}
        assert (await client.post("/api/auth/login", json=credentials)).status_code == 401
    known, unknown = parameters
    assert known == unknown


@pytest.mark.skipif(not os.environ.get("SOAK"), reason="measures times: SOAK=1")
async def test_a_login_takes_the_same_time_for_known_and_unknown_addresses(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()

    async def seconds(email: str) -> float:
        begun = time.perf_counter()
        await client.post("/api/auth/login", json={"email": email, "password": "wrong password"})
        return time.perf_counter() - begun

    known, unknown = [], []
    for number in range(15):
        known.append(await seconds(member.email))
        unknown.append(await seconds(f"nobody{number}@example.org"))
    # Without a hash for unknown addresses the ratio is 0.1.
    ratio = statistics.median(unknown) / statistics.median(known)
    assert 0.5 < ratio < 2


async def test_a_refresh_token_works_once(client: httpx.AsyncClient, make: Factory) -> None:
    member = await make.member()
    first = await client.post("/api/auth/refresh", json={"refresh_token": member.refresh_token})
    assert first.status_code == 200
    assert list(first.json()) == ["token", "token_type", "expires_in", "refresh_token"]
    assert first.json()["refresh_token"] != member.refresh_token
    assert await alive(client, first.json()["token"])
    assert await alive(client, member.token)


async def test_a_reused_refresh_token_ends_its_family(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    other = await make.signed_in(member)
    first = await client.post("/api/auth/refresh", json={"refresh_token": member.refresh_token})
    reused = await client.post("/api/auth/refresh", json={"refresh_token": member.refresh_token})
    assert reused.status_code == 401
    assert reused.json()["error"] == "Invalid or expired token"
    for ended in (first.json()["refresh_token"], member.refresh_token):
        response = await client.post("/api/auth/refresh", json={"refresh_token": ended})
        assert response.status_code == 401
    assert not await alive(client, first.json()["token"])
    assert not await alive(client, member.token)
    # Another sign-in of the same user goes on: it gets a new access token by its own refresh.
    again = await client.post("/api/auth/refresh", json={"refresh_token": other.refresh_token})
    assert again.status_code == 200
    assert await alive(client, again.json()["token"])


async def test_of_simultaneous_refreshes_only_the_first_succeeds_and_the_family_ends(
    client: httpx.AsyncClient, make: Factory
) -> None:
    for _ in range(6):
        member = await make.member()
        responses = await asyncio.gather(
            *(
                client.post("/api/auth/refresh", json={"refresh_token": member.refresh_token})
                for _ in range(6)
            )
        )
        assert sorted(response.status_code for response in responses) == [200] + [401] * 5
        (pair,) = [response.json() for response in responses if response.status_code == 200]
        after = await client.post(
            "/api/auth/refresh", json={"refresh_token": pair["refresh_token"]}
        )
        assert after.status_code == 401


async def test_an_expired_refresh_token_is_refused(
    client: httpx.AsyncClient, make: Factory, site: Site
) -> None:
    member = await make.member()
    past = datetime.now(UTC) - timedelta(seconds=1)
    async with site.database.writer.begin() as connection:
        await connection.execute(update(RefreshToken).values(expires_at=past))
    response = await client.post("/api/auth/refresh", json={"refresh_token": member.refresh_token})
    assert response.status_code == 401
    assert await alive(client, member.token)
    await make.signed_in(member)
    async with site.database.session() as db:
        kept = (await db.execute(select(RefreshToken.expires_at))).scalars().all()
    assert len(kept) == 1, "a login deletes expired tokens"


async def expire(site: Site, *, keep: str = "") -> None:
    """Let every refresh token expire, except `keep`."""
    past = datetime.now(UTC) - timedelta(days=1)
    others = RefreshToken.digest != digest(keep)
    async with site.database.writer.begin() as connection:
        await connection.execute(update(RefreshToken).where(others).values(expires_at=past))


async def refresh_tokens(site: Site, member: Member) -> int:
    """Count the refresh tokens of a user."""
    async with site.database.session() as db:
        rows = await db.execute(select(RefreshToken.id).where(RefreshToken.user_id == member.id))
        return len(rows.all())


async def test_a_user_who_refreshes_for_months_leaves_no_used_tokens(
    client: httpx.AsyncClient, make: Factory, site: Site
) -> None:
    member = await make.member()
    token = member.refresh_token
    for _ in range(6):
        response = await client.post("/api/auth/refresh", json={"refresh_token": token})
        assert response.status_code == 200
        token = response.json()["refresh_token"]
        await expire(site, keep=token)
    assert await refresh_tokens(site, member) == 2, "the last token, and the token before it"


async def test_each_refresh_deletes_a_few_expired_tokens_of_other_users(
    client: httpx.AsyncClient, make: Factory, site: Site
) -> None:
    gone, other = await make.member(), await make.member()
    for _ in range(MAX_PRUNED_TOKENS + 4):
        await make.signed_in(gone)
    await expire(site, keep=other.refresh_token)
    assert await refresh_tokens(site, gone) == MAX_PRUNED_TOKENS + 5
    token = other.refresh_token
    for number in (5, 0):
        response = await client.post("/api/auth/refresh", json={"refresh_token": token})
        token = response.json()["refresh_token"]
        assert await refresh_tokens(site, gone) == number
    assert await refresh_tokens(site, other) == 3


async def test_the_deletion_of_expired_tokens_waits_for_no_lock(
    client: httpx.AsyncClient, make: Factory, site: Site
) -> None:
    if site.database.url.get_backend_name() == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    gone, other = await make.member(), await make.member()
    await expire(site, keep=other.refresh_token)
    async with site.database.writer.begin() as connection:
        await connection.execute(
            select(RefreshToken.id).where(RefreshToken.user_id == gone.id).with_for_update()
        )
        response = await client.post(  # the lock ends with this block
            "/api/auth/refresh", json={"refresh_token": other.refresh_token}
        )
        assert response.status_code == 200
    assert await refresh_tokens(site, gone) == 1


@pytest.mark.parametrize("token", ["", "x", "x" * 1_000])
async def test_an_unknown_refresh_token_is_refused(client: httpx.AsyncClient, token: str) -> None:
    response = await client.post("/api/auth/refresh", json={"refresh_token": token})
    assert response.status_code == 401


async def test_logout_ends_every_token_at_once(client: httpx.AsyncClient, make: Factory) -> None:
    member, bystander = await make.member(), await make.member()
    other = await make.signed_in(member)
    response = await client.post("/api/auth/logout", headers=member.headers)
    assert (response.status_code, response.content) == (204, b"")
    for session in (member, other):
        assert not await alive(client, session.token)
        refused = await client.post(
            "/api/auth/refresh", json={"refresh_token": session.refresh_token}
        )
        assert refused.status_code == 401
    assert await alive(client, bystander.token)
    assert await alive(client, (await make.signed_in(member)).token)


async def test_logout_against_refresh_leaves_no_token_alive(
    client: httpx.AsyncClient, make: Factory
) -> None:
    for _ in range(10):
        member = await make.member()
        refreshed, out = await asyncio.gather(
            client.post("/api/auth/refresh", json={"refresh_token": member.refresh_token}),
            client.post("/api/auth/logout", headers=member.headers),
        )
        assert out.status_code == 204
        if refreshed.status_code == 200 and not await alive(client, refreshed.json()["token"]):
            again = await client.post(
                "/api/auth/refresh", json={"refresh_token": refreshed.json()["refresh_token"]}
            )
            assert again.status_code == 401


async def test_a_password_changed_while_it_is_checked_opens_no_session(
    site: Site, make: Factory
) -> None:
    member = await make.member()
    tokens = site.app.extensions["tokens"]
    for user_id, checked_hash in ((member.id, "another hash"), (member.id + 1, "any")):
        pair = await site.database.write(
            lambda db, user_id=user_id, checked_hash=checked_hash: service.login(  # type: ignore[misc]  # a lambda has no types
                db, user_id, checked_hash, None, tokens, 60
            )
        )
        assert pair is None


async def test_a_key_can_be_rotated(site: Site, make: Factory, folder: Path) -> None:
    member = await make.member()
    url = site.another_url
    keys = {"secret_key": "the next secret, long enough as well", "secret_key_previous": SECRET}
    settings = settings_for(url, folder, **keys)
    async with visiting(settings) as client:
        assert await alive(client, member.token)
        new = await client.post(
            "/api/auth/login", json={"email": member.email, "password": PASSWORD}
        )
        fresh = new.json()["token"]
        assert await alive(client, fresh)
        async with httpx.AsyncClient(base_url=site.url, timeout=30) as old:
            assert not await alive(old, fresh), "the new key signs"


async def test_an_outdated_hash_is_replaced_at_login(
    client: httpx.AsyncClient, make: Factory, site: Site
) -> None:
    member = await make.member()
    weak = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)
    async with site.database.writer.begin() as connection:
        await connection.execute(update(User).values(password_hash=weak))
    response = await client.post(
        "/api/auth/login", json={"email": member.email, "password": PASSWORD}
    )
    assert response.status_code == 200
    async with site.database.session() as db:
        stored = (await db.execute(select(User.password_hash))).scalar_one()
    assert "m=19456,t=2,p=1" in stored


async def test_a_member_keeps_blanks_in_the_password(client: httpx.AsyncClient) -> None:
    spaced = ANNA | {"password": "  blanks count  "}
    assert (await client.post("/api/auth/register", json=spaced)).status_code == 201
    for password, status in ((spaced["password"], 200), (spaced["password"].strip(), 401)):
        response = await client.post(
            "/api/auth/login", json={"email": ANNA["email"], "password": password}
        )
        assert response.status_code == status


async def test_logins_that_wait_too_long_for_a_thread_are_a_503(
    site: Site, make: Factory, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member: Member = await make.member()
    url = site.another_url
    settings = settings_for(url, folder, password_workers=1, max_wait_seconds=1.0)
    may_end = threading.Event()
    verify = PasswordHasher.verify

    def blocked(self: PasswordHasher, hash: Any, password: Any) -> Any:  # noqa: A002  (argon2's)
        may_end.wait(60)
        return verify(self, hash, password)

    monkeypatch.setattr(PasswordHasher, "verify", blocked)
    async with (
        serving(settings) as small,
        httpx.AsyncClient(base_url=small.url, timeout=60) as client,
    ):
        credentials = {"email": member.email, "password": PASSWORD}
        logins = [
            asyncio.ensure_future(client.post("/api/auth/login", json=credentials))
            for _ in range(12)
        ]
        try:
            async with asyncio.timeout(60):
                while sum(login.done() for login in logins) < 11:
                    await asyncio.sleep(0.01)
        finally:
            may_end.set()
        responses = await asyncio.gather(*logins)
        assert sorted(response.status_code for response in responses) == [200] + [503] * 11
        refused = next(response for response in responses if response.status_code == 503)
        assert refused.headers["Retry-After"] == "1"
        assert refused.json()["error"] == "Service Unavailable"
        assert (await client.post("/api/auth/login", json=credentials)).status_code == 200
