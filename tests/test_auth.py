"""Signing up, in, on and out."""

import asyncio
import statistics
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import jwt
import pytest
from argon2 import PasswordHasher
from sqlalchemy import select, update

from service.auth import service
from service.auth.service import PRUNED
from service.models import RefreshToken, User
from service.security import digest
from tests.conftest import SECRET, Site, serving, settings_for, visiting
from tests.factories import PASSWORD, Factory, Member

ANNA = {"username": "Anna", "email": "Anna.B@Example.org", "password": PASSWORD}


async def alive(client: httpx.AsyncClient, token: str) -> bool:
    """Whether an access token works."""
    answer = await client.get("/api/profile", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code in {200, 401}
    return answer.status_code == 200


async def test_register_gives_the_account_without_the_password(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/auth/register", json=ANNA)
    assert answer.status_code == 201
    user = answer.json()
    assert list(user) == ["id", "username", "email", "tier", "is_admin", "created_at"]
    assert user | {"username": "Anna", "tier": "free", "is_admin": False} == user
    assert PASSWORD not in answer.text
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        ({"username": "aNNA"}, {"username": ["Username already exists"]}),
        ({"email": "anna.b@EXAMPLE.ORG"}, {"email": ["Email already registered"]}),
    ],
)
async def test_names_and_addresses_are_taken_without_case(
    client: httpx.AsyncClient, change: dict[str, str], messages: dict[str, list[str]]
) -> None:
    assert (await client.post("/api/auth/register", json=ANNA)).status_code == 201
    other = {"username": "Bea", "email": "bea@example.org", "password": PASSWORD}
    answer = await client.post("/api/auth/register", json=other | change)
    assert answer.status_code == 400
    assert answer.json()["messages"] == messages
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
async def test_an_account_that_does_not_fit_is_refused(
    client: httpx.AsyncClient, change: dict[str, object], field: str, sentence: str
) -> None:
    answer = await client.post("/api/auth/register", json=ANNA | change)
    assert answer.status_code == 400
    assert answer.json()["messages"] == {field: [sentence]}


async def test_everything_that_is_taken_is_named(client: httpx.AsyncClient) -> None:
    await client.post("/api/auth/register", json=ANNA)
    answer = await client.post("/api/auth/register", json=ANNA)
    assert answer.json()["messages"] == {
        "username": ["Username already exists"],
        "email": ["Email already registered"],
    }


@pytest.mark.parametrize(
    "address", ["anna@xn--bcher-kva.example.org", "anna@ｅxample.org", "a.NNA@Example.ORG"]
)
async def test_one_signs_in_with_the_address_one_registered(
    client: httpx.AsyncClient, address: str
) -> None:
    made = await client.post("/api/auth/register", json=ANNA | {"email": address})
    assert made.status_code == 201
    for email in (address, made.json()["email"]):
        answer = await client.post("/api/auth/login", json={"email": email, "password": PASSWORD})
        assert answer.status_code == 200, email


async def test_of_two_simultaneous_registrations_one_wins(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(
        *(client.post("/api/auth/register", json=ANNA) for _ in range(8))
    )
    assert sorted(answer.status_code for answer in answers) == [201] + [400] * 7


async def test_login_gives_a_pair_of_tokens(client: httpx.AsyncClient, site: Site) -> None:
    user = (await client.post("/api/auth/register", json=ANNA)).json()
    answer = await client.post(
        "/api/auth/login", json={"email": "ANNA.b@example.org", "password": PASSWORD}
    )
    assert answer.status_code == 200
    pair = answer.json()
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
    answer = await client.get(
        "/api/profile", headers={"Authorization": header.format(member.token)}
    )
    assert answer.json()["username"] == member.username


async def test_wrong_password_and_unknown_address_get_the_same_answer(
    client: httpx.AsyncClient, make: Factory
) -> None:
    member = await make.member()
    answers = [
        await client.post("/api/auth/login", json={"email": email, "password": "wrong password"})
        for email in (member.email, "nobody@example.org", "no address at all")
    ]
    bodies = [{**answer.json(), "request_id": None} for answer in answers]
    assert [answer.status_code for answer in answers] == [401] * 3
    assert bodies[0]["error"] == "Invalid credentials"
    assert bodies[0] == bodies[1] == bodies[2]
    assert {answer.headers["WWW-Authenticate"] for answer in answers} == {"Bearer"}


async def test_unknown_addresses_take_as_long_as_known_ones(
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
    # Without the hash for nobody the second is a tenth of the first.
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
        answer = await client.post("/api/auth/refresh", json={"refresh_token": ended})
        assert answer.status_code == 401
    assert not await alive(client, first.json()["token"])
    assert not await alive(client, member.token)
    # Another sign-in of the same user goes on: it gets a new access token by its own refresh.
    again = await client.post("/api/auth/refresh", json={"refresh_token": other.refresh_token})
    assert again.status_code == 200
    assert await alive(client, again.json()["token"])


async def test_of_simultaneous_refreshes_one_wins_and_the_family_ends(
    client: httpx.AsyncClient, make: Factory
) -> None:
    for _ in range(6):
        member = await make.member()
        answers = await asyncio.gather(
            *(
                client.post("/api/auth/refresh", json={"refresh_token": member.refresh_token})
                for _ in range(6)
            )
        )
        assert sorted(answer.status_code for answer in answers) == [200] + [401] * 5
        (winner,) = [answer.json() for answer in answers if answer.status_code == 200]
        after = await client.post(
            "/api/auth/refresh", json={"refresh_token": winner["refresh_token"]}
        )
        assert after.status_code == 401


async def test_an_expired_refresh_token_is_refused(
    client: httpx.AsyncClient, make: Factory, site: Site
) -> None:
    member = await make.member()
    past = datetime.now(UTC) - timedelta(seconds=1)
    async with site.database.writer.begin() as connection:
        await connection.execute(update(RefreshToken).values(expires_at=past))
    answer = await client.post("/api/auth/refresh", json={"refresh_token": member.refresh_token})
    assert answer.status_code == 401
    assert await alive(client, member.token)
    await make.signed_in(member)
    async with site.database.session() as db:
        left = (await db.execute(select(RefreshToken.expires_at))).scalars().all()
    assert len(left) == 1, "signing in clears away what has expired"


async def expire(site: Site, *, keep: str = "") -> None:
    """Let every refresh token expire but one."""
    past = datetime.now(UTC) - timedelta(days=1)
    others = RefreshToken.digest != digest(keep)
    async with site.database.writer.begin() as connection:
        await connection.execute(update(RefreshToken).where(others).values(expires_at=past))


async def left(site: Site, member: Member) -> int:
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
        answer = await client.post("/api/auth/refresh", json={"refresh_token": token})
        assert answer.status_code == 200
        token = answer.json()["refresh_token"]
        await expire(site, keep=token)
    assert await left(site, member) == 2, "the last one, and the one it took the place of"


async def test_those_who_never_come_back_are_cleared_away_by_others_a_few_at_a_time(
    client: httpx.AsyncClient, make: Factory, site: Site
) -> None:
    gone, other = await make.member(), await make.member()
    for _ in range(PRUNED + 4):
        await make.signed_in(gone)
    await expire(site, keep=other.refresh_token)
    assert await left(site, gone) == PRUNED + 5
    token = other.refresh_token
    for number in (5, 0):
        answer = await client.post("/api/auth/refresh", json={"refresh_token": token})
        token = answer.json()["refresh_token"]
        assert await left(site, gone) == number
    assert await left(site, other) == 3


async def test_clearing_away_waits_for_nobody(
    client: httpx.AsyncClient, make: Factory, site: Site
) -> None:
    if site.database.url.get_backend_name() == "sqlite":
        return  # one writer at a time
    gone, other = await make.member(), await make.member()
    await expire(site, keep=other.refresh_token)
    async with site.database.writer.begin() as connection:
        await connection.execute(
            select(RefreshToken.id).where(RefreshToken.user_id == gone.id).with_for_update()
        )
        async with asyncio.timeout(30):  # the lock ends with this block
            answer = await client.post(
                "/api/auth/refresh", json={"refresh_token": other.refresh_token}
            )
        assert answer.status_code == 200
    assert await left(site, gone) == 1


@pytest.mark.parametrize("token", ["", "x", "x" * 1_000])
async def test_an_unknown_refresh_token_is_refused(client: httpx.AsyncClient, token: str) -> None:
    answer = await client.post("/api/auth/refresh", json={"refresh_token": token})
    assert answer.status_code == 401


async def test_logout_ends_every_token_at_once(client: httpx.AsyncClient, make: Factory) -> None:
    member, bystander = await make.member(), await make.member()
    other = await make.signed_in(member)
    answer = await client.post("/api/auth/logout", headers=member.headers)
    assert (answer.status_code, answer.content) == (204, b"")
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
            lambda db, who=user_id, seen=checked_hash: service.login(  # type: ignore[misc]  # a lambda has no types
                db, who, seen, None, tokens, 60
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
        async with httpx.AsyncClient(base_url=site.url) as old:
            assert not await alive(old, fresh), "the new key signs"


async def test_an_outdated_hash_is_replaced_at_login(
    client: httpx.AsyncClient, make: Factory, site: Site
) -> None:
    member = await make.member()
    weak = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)
    async with site.database.writer.begin() as connection:
        await connection.execute(update(User).values(password_hash=weak))
    answer = await client.post(
        "/api/auth/login", json={"email": member.email, "password": PASSWORD}
    )
    assert answer.status_code == 200
    async with site.database.session() as db:
        stored = (await db.execute(select(User.password_hash))).scalar_one()
    assert "m=19456,t=2,p=1" in stored


async def test_a_member_keeps_blanks_in_the_password(client: httpx.AsyncClient) -> None:
    spaced = ANNA | {"password": "  blanks count  "}
    assert (await client.post("/api/auth/register", json=spaced)).status_code == 201
    for password, status in ((spaced["password"], 200), (spaced["password"].strip(), 401)):
        answer = await client.post(
            "/api/auth/login", json={"email": ANNA["email"], "password": password}
        )
        assert answer.status_code == status


async def test_more_sign_ins_than_can_wait_are_told_to_come_back(
    site: Site, make: Factory, folder: Path
) -> None:
    member: Member = await make.member()
    url = site.another_url
    settings = settings_for(url, folder, password_workers=1, max_wait_seconds=0.05)
    async with serving(settings) as small, httpx.AsyncClient(base_url=small.url) as client:
        credentials = {"email": member.email, "password": PASSWORD}
        answers = await asyncio.gather(
            *(client.post("/api/auth/login", json=credentials) for _ in range(12))
        )
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 503}
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert refused.headers["Retry-After"] == "1"
        assert refused.json()["error"] == "Service Unavailable"
        assert (await client.post("/api/auth/login", json=credentials)).status_code == 200
