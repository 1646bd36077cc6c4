"""Passwords, tokens and names.

passwords   hashing with argon2id in separate threads
tokens      signed access tokens (JWT), and refresh tokens
usernames   which names look alike, by Unicode's data
"""

from collections.abc import AsyncGenerator

from quart import Quart

from service.config import Settings
from service.security.passwords import Passwords
from service.security.tokens import (
    MOST_TOKENS,
    Claims,
    InvalidTokenError,
    Tokens,
    bearer,
    digest,
    new_refresh_token,
)

__all__ = [
    "MOST_TOKENS",
    "Claims",
    "InvalidTokenError",
    "Passwords",
    "Tokens",
    "bearer",
    "digest",
    "new_refresh_token",
]


def init_app(app: Quart, settings: Settings) -> None:
    """Give the application its passwords and tokens."""
    store = app.extensions["passwords"] = Passwords(settings)
    app.extensions["tokens"] = Tokens(settings)

    @app.while_serving
    async def lifespan() -> AsyncGenerator[None, None]:
        await store.open()
        yield
        await store.close()
