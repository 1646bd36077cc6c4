"""Issue and verify signed access tokens (JWT, RFC 7519), and make refresh tokens."""

import hashlib
import secrets
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import jwt
from pydantic import BaseModel, ConfigDict, Field

from service.config import Settings
from service.errors import UnauthorizedError
from service.models.types import INT64

ALGORITHM = "HS256"  # the only algorithm to sign with and to accept
ISSUER = AUDIENCE = "octavo"
CLAIMS = ["user_id", "username", "tier", "iat", "exp", "jti", "iss", "aud", "ver"]
HEADER = {"alg": ALGORITHM, "typ": "JWT"}  # header of every issued token
LEEWAY = 30  # seconds by which the clock of the machine that issued a token may be ahead
MAX_TOKEN = 4_096  # characters; an issued token has about 350
TOKEN_CACHE_SIZE = 4_096  # verified tokens in memory, so that each signature is computed once


class InvalidTokenError(UnauthorizedError):
    """The access token is invalid, expired or revoked: `invalid_token` of RFC 6750, 3.1."""

    def __init__(self, error: str | None = None) -> None:
        super().__init__(error)
        self.headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'}


def bearer(header: str) -> str:
    """Return the token of an Authorization header. `Bearer ` is optional, as in the Flask guide."""
    scheme, _, rest = header.strip().partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else header.strip()


class Claims(BaseModel):
    """The claims of an access token. `ver` and `jti` are checked against the user's row."""

    model_config = ConfigDict(strict=True, frozen=True)

    user_id: int = Field(ge=1, le=INT64)
    username: str
    tier: str
    exp: int
    jti: str
    ver: int


class Tokens:
    """Issues and verifies access tokens: JWT, HS256. `SECRET_KEY_PREVIOUS` only verifies.

    A token whose header has other members than `alg` and `typ` (`kid`, `jku`, `jwk`, `crit`, ...)
    is refused, even if its signature is valid: a header must not select a key.
    """

    def __init__(self, settings: Settings) -> None:
        keys = [settings.secret_key, settings.secret_key_previous]
        self._keys = [key.get_secret_value() for key in keys if key is not None]
        # An invalid token raises, so it is not cached.
        self._verified = lru_cache(TOKEN_CACHE_SIZE)(self._verify)
        self.lifetime = settings.access_token_seconds

    def issue(self, user: Any) -> tuple[str, str]:
        """Return an access token for `user`, a User or a row of its columns, and its `jti`."""
        now = int(datetime.now(UTC).timestamp())
        jti = secrets.token_hex(16)
        claims = {
            "user_id": user.id,
            "username": user.username,
            "tier": user.tier,
            "iat": now,
            "exp": now + self.lifetime,
            "jti": jti,
            "iss": ISSUER,
            "aud": AUDIENCE,
            "ver": user.token_version,
        }
        return jwt.encode(claims, self._keys[0], algorithm=ALGORITHM), jti

    def read(self, token: str) -> Claims:
        """Verify a token, and return its claims. Raises InvalidTokenError for every defect."""
        if len(token) > MAX_TOKEN:
            raise InvalidTokenError
        claims = self._verified(token)
        if claims.exp <= time.time():  # checked at each use, without the LEEWAY of `_verify`
            raise InvalidTokenError
        return claims

    def _verify(self, token: str) -> Claims:
        for key in self._keys:
            try:
                decoded = jwt.decode_complete(
                    token,
                    key,
                    algorithms=[ALGORITHM],
                    audience=AUDIENCE,
                    issuer=ISSUER,
                    leeway=LEEWAY,
                    options={"require": CLAIMS},
                )
                if decoded["header"] == HEADER:
                    return Claims.model_validate(decoded["payload"])
            except (jwt.PyJWTError, ValueError, OverflowError, RecursionError):
                continue
        raise InvalidTokenError


def new_refresh_token() -> str:
    """Make a refresh token: 256 random bits."""
    return secrets.token_urlsafe(32)


def digest(refresh_token: str) -> str:
    """Return the digest (SHA-256, hex) under which a refresh token is stored."""
    return hashlib.sha256(refresh_token.encode()).hexdigest()
