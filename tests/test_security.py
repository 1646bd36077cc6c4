"""Tokens: forged, damaged, expired and missing."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import httpx
import jwt
import pytest

from service.security.tokens import CLAIMS
from tests.conftest import SECRET
from tests.factories import Factory, Member
from tests.http_client import assert_problem


def claims_of(member: Member) -> dict[str, Any]:
    """Read the claims of a good token."""
    claims: dict[str, Any] = jwt.decode(member.token, options={"verify_signature": False})
    return claims


def b64(data: bytes | dict[str, Any]) -> str:
    """Encode a part of a token."""
    raw = json.dumps(data).encode() if isinstance(data, dict) else data
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(header: dict[str, Any], payload: bytes | dict[str, Any], key: str = SECRET) -> str:
    """Sign any header and payload with HS256."""
    text = f"{b64(header)}.{b64(payload)}"
    return f"{text}.{b64(hmac.digest(key.encode(), text.encode(), hashlib.sha256))}"


HS256 = {"alg": "HS256", "typ": "JWT"}


def hostile(member: Member, other: Member) -> dict[str, str]:
    """Make tokens that must be refused. Their names say why."""
    good = claims_of(member)
    head, body, signature = member.token.split(".")
    now = int(time.time())
    tokens = {
        f"alg {name}": f"{b64({'alg': name, 'typ': 'JWT'})}.{body}."
        for name in ("none", "None", "nOnE", "NONE", "")
    }
    tokens |= {
        f"without {name}": signed(HS256, {k: v for k, v in good.items() if k != name})
        for name in CLAIMS
    }
    wrong: dict[str, tuple[Any, ...]] = {
        "exp": (now - 1, "soon", None, -1, 1e400),
        "iat": (now + 3600, now + 60, "now"),
        "nbf": (now + 60, "now"),
        "iss": ("other", None, ["octavo"]),
        "aud": ("other", None, 7, []),
        "ver": (good["ver"] + 1, "1", 1.0, True, None),
        "user_id": (str(good["user_id"]), True, None, 1.5, -1, 0, 2**63, 2**70, [1], {"a": 1}),
        "jti": (7, None),
        "tier": (None, 3),
        "username": (None, ["x"]),
    }
    for name, values in wrong.items():
        for value in values:
            tokens[f"{name} {value!r}"] = signed(HS256, good | {name: value})
    tokens |= {
        "another key": signed(HS256, good, "another key, also long enough to be one"),
        "empty key": signed(HS256, good, ""),
        "HS384": jwt.encode(good, SECRET.ljust(64, "."), algorithm="HS384"),
        "HS512": jwt.encode(good, SECRET.ljust(64, "."), algorithm="HS512"),
        "named HS384, signed HS256": signed({"alg": "HS384", "typ": "JWT"}, good),
        "RS256 with our secret": signed({"alg": "RS256", "typ": "JWT"}, good),
        "critical": signed(HS256 | {"crit": ["exp"], "b64": False}, good),
        "unencoded": signed(HS256 | {"b64": False, "crit": ["b64"]}, good),
        "jwk inside": signed(HS256 | {"jwk": {"kty": "oct", "k": b64(b"mine")}}, good, "mine" * 9),
        "kid with a path": signed(HS256 | {"kid": "../../dev/null"}, good, ""),
        "kid with sql": signed(HS256 | {"kid": "' OR 1=1"}, good, "x" * 32),
        "no signature": f"{head}.{body}.",
        "two parts": f"{head}.{body}",
        "four parts": f"{member.token}.{signature}",
        "the body of another": f"{head}.{other.token.split('.')[1]}.{signature}",
        "one bit": f"{head}.{body}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}",
        "refresh as access": member.refresh_token,
        "payload a list": signed(HS256, b"[]"),
        "payload a number": signed(HS256, b"7"),
        "payload not json": signed(HS256, b"{"),
        "payload not utf-8": signed(HS256, b'{"a": "\xff"}'),
        "payload deep": signed(HS256, b'{"a":' + b"[" * 900 + b"]" * 900 + b"}"),
        "payload long integer": signed(HS256, b'{"exp":' + b"9" * 900 + b"}"),
        "header a list": f"{b64(b'[]')}.{body}.{signature}",
        "header not base64": f"!!!!.{body}.{signature}",
        "dots": "...",
        "word": "token",
        "blank inside": member.token.replace(".", ". ", 1),
        "not ascii": "tökén",
        "10 KB": "x" * 10_000,
        "scheme basic": "Basic " + b64(b"anna:secret"),
        "twice": f"{member.token}, {member.token}",
    }
    # Signed with the right key, but their headers are not those of the service.
    more: dict[str, tuple[Any, ...]] = {
        "kid": ("1", "", "../../dev/null", None, {"a": 1}),
        "jku": ("https://keys.example.org/jwks.json",),
        "jwk": ({"kty": "oct", "k": b64(SECRET.encode())},),
        "x5u": ("https://keys.example.org/chain.pem",),
        "x5c": (["MIIB"],),
        "x5t": ("dGVzdA",),
        "crit": (["exp"], [], None),
        "b64": (True,),
        "zip": ("DEF",),
        "cty": ("JWT",),
        "unknown": (1,),
        "typ": ("at+jwt", "jwt", "", None, 7),
    }
    for name, values in more.items():
        for value in values:
            tokens[f"header {name} {value!r}"] = signed(HS256 | {name: value}, good)
    tokens["header without typ"] = signed({"alg": "HS256"}, good)
    return tokens


async def test_no_hostile_token_is_accepted(client: httpx.AsyncClient, make: Factory) -> None:
    member, other = await make.member(), await make.member()
    tokens = hostile(member, other)
    assert len(tokens) >= 60
    for name, token in tokens.items():
        for header in (token, f"Bearer {token}"):
            response = await client.get(
                "/api/profile", headers={b"Authorization": header.encode("latin-1")}
            )
            assert response.status_code == 401, (name, response.text)
            assert response.json()["error"] in {"Invalid or expired token", "User not found"}, name
            assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"', name
    good = signed(HS256, claims_of(member))
    accepted = await client.get("/api/profile", headers={"Authorization": good})
    assert accepted.status_code == 200, "signed() makes valid tokens"


async def test_a_token_that_was_valid_expires(
    client: httpx.AsyncClient, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verified signature is remembered, but the expiry is checked at each use."""
    member = await make.member()
    now = time.time
    ending = signed(HS256, claims_of(member) | {"exp": int(now()) + 600})
    headers = {"Authorization": f"Bearer {ending}"}
    assert (await client.get("/api/profile", headers=headers)).status_code == 200
    monkeypatch.setattr(time, "time", lambda: now() + 601)
    assert (await client.get("/api/profile", headers=headers)).status_code == 401


async def test_the_clock_of_an_issuer_may_be_half_a_minute_ahead(
    client: httpx.AsyncClient, make: Factory
) -> None:
    good, now = claims_of(await make.member()), int(time.time())
    for claims, status in (
        ({"iat": now + 20}, 200),
        ({"iat": now + 20, "nbf": now + 20}, 200),
        ({"nbf": now + 60}, 401),
        ({"iat": now - 60, "exp": now - 1}, 401),  # no leeway for the expiry
    ):
        headers = {"Authorization": signed(HS256, good | claims)}
        response = await client.get("/api/profile", headers=headers)
        assert response.status_code == status, claims


@pytest.mark.parametrize("header", ["", " ", "Bearer", "bearer ", None])
async def test_a_missing_token_is_reported(client: httpx.AsyncClient, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.strip()}
    response = await client.get("/api/profile", headers=headers)
    assert response.status_code == 401
    assert response.json()["error"] == "Token is missing"


@pytest.mark.parametrize("path", ["/api/books", "/api/books/1", "/api/rate-limit", "/none"])
async def test_an_invalid_token_is_refused_on_a_public_route(
    client: httpx.AsyncClient, path: str
) -> None:
    for token in ("Bearer x", "none", "Basic YTpi"):
        response = await client.get(path, headers={"Authorization": token})
        assert_problem(response, 401, "Invalid or expired token")
        assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
        assert ("RateLimit" in response.headers) is (path != "/api/rate-limit")
        assert response.headers["Vary"] == "Accept-Encoding, Origin, Authorization"
    for nothing in ("Bearer", "bearer "):
        response = await client.get(path, headers={"Authorization": nothing.strip()})
        assert response.status_code in {200, 404}, "an empty token is no token"
