"""Password hashing in separate threads, and signed access tokens."""

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

import jwt
from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from pydantic import BaseModel, ConfigDict, Field
from quart import Quart

from service.admission import OVERLOADED, current, seconds_left, waiting
from service.config import Settings
from service.errors import ServiceUnavailableError, UnauthorizedError
from service.models import User
from service.validation import INT64

T = TypeVar("T")

ALGORITHM = "HS256"  # the only algorithm to sign with and to accept
ISSUER = AUDIENCE = "octavo"
CLAIMS = ["user_id", "username", "tier", "iat", "exp", "jti", "iss", "aud", "ver"]
HEADER = {"alg": ALGORITHM, "typ": "JWT"}  # header of every issued token
LEEWAY = 30  # seconds by which the clock of the issuing machine may be ahead
MAX_TOKEN = 4_096  # characters; an issued token has about 350
MOST_TOKENS = 4_096  # verified tokens in memory, so that each signature is computed once


class Passwords:
    """argon2id (19 MiB, 2 passes: OWASP's first choice) in separate threads."""

    def __init__(self, settings: Settings) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
        self._threads = settings.password_workers
        self._longest_wait = settings.max_wait_seconds
        self._free = asyncio.Semaphore(self._threads)
        self._pending = 0
        self._pool: ThreadPoolExecutor
        self._nobody: str

    @property
    def pending(self) -> int:
        """The number of hashes that run or wait."""
        return self._pending

    async def open(self) -> None:
        """Start the threads, and make the hash to verify passwords of unknown users against."""
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="password")
        self._nobody = await self.hash(secrets.token_hex())

    async def close(self) -> None:
        """Wait for running hashes."""
        await asyncio.to_thread(self._pool.shutdown)

    async def hash(self, password: str) -> str:
        """Hash a password. Raises ServiceUnavailableError if no thread is free in time."""
        return await self._run(lambda: self._hasher.hash(password))

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Return whether a password is right. A hash of None (no user) takes as long: False.

        Raises ServiceUnavailableError if no thread is free in time.
        """
        return await self._run(lambda: self._check(password, password_hash))

    def is_outdated(self, password_hash: str) -> bool:
        """Whether a hash was made with other parameters than the current ones."""
        return self._hasher.check_needs_rehash(password_hash)

    def _check(self, password: str, password_hash: str | None) -> bool:
        try:
            self._hasher.verify(password_hash or self._nobody, password)
        except (Argon2Error, InvalidHashError):
            return False
        return password_hash is not None

    async def _run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread. Raises ServiceUnavailableError if none is free in time.

        The turn of the request is paused, so that other requests run meanwhile.
        """
        admission = current.get()
        with nullcontext() if admission is None else admission.paused():
            self._pending += 1
            try:
                with waiting():
                    async with asyncio.timeout(seconds_left(self._longest_wait)):
                        await self._free.acquire()
            except TimeoutError:
                self._pending -= 1
                raise ServiceUnavailableError(OVERLOADED) from None
            except BaseException:
                self._pending -= 1
                raise
            future = asyncio.get_running_loop().run_in_executor(self._pool, work)
            # Counted until the thread has ended, even if the client disconnects.
            future.add_done_callback(self._done)
            return await asyncio.shield(future)

    def _done(self, future: "asyncio.Future[Any]") -> None:
        self._pending -= 1
        self._free.release()


class InvalidTokenError(UnauthorizedError):
    """The access token does not verify, has expired or was revoked (RFC 6750, 3.1)."""

    def __init__(self, error: str | None = None) -> None:
        super().__init__(error)
        self.headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'}


def bearer(header: str) -> str:
    """Return the token of an Authorization header, with or without `Bearer ` (guide)."""
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
    """Access tokens: JWT, HS256. `SECRET_KEY` signs, `SECRET_KEY_PREVIOUS` still verifies.

    A token whose header has another member (`kid`, `jku`, `jwk`, `crit`, ...) is refused, even if
    its signature is valid: issued tokens have none, and a header must not select a key.
    """

    def __init__(self, settings: Settings) -> None:
        keys = [settings.secret_key, settings.secret_key_previous]
        self._keys = [key.get_secret_value() for key in keys if key is not None]
        self._verified = lru_cache(MOST_TOKENS)(self._verify)  # an invalid token raises: not cached
        self.lifetime = settings.access_token_seconds

    def issue(self, user: User) -> tuple[str, str]:
        """Return an access token for `user`, and its `jti`."""
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
        """Verify a token. Raises InvalidTokenError for every defect."""
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
    """Return the digest under which a refresh token is stored."""
    return hashlib.sha256(refresh_token.encode()).hexdigest()


def init_app(app: Quart, settings: Settings) -> None:
    """Give the application its passwords and tokens."""
    store = app.extensions["passwords"] = Passwords(settings)
    app.extensions["tokens"] = Tokens(settings)

    @app.while_serving
    async def lifespan() -> AsyncGenerator[None, None]:
        await store.open()
        yield
        await store.close()
