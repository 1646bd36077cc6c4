"""Passwords, tokens and usernames.

passwords   hashing with argon2id in separate threads
tokens      signed access tokens (JWT), and refresh tokens
usernames   allowed characters of usernames, and their comparison (Unicode)
"""

from collections.abc import AsyncGenerator

from quart import Quart

from service.config import Settings
from service.security.passwords import Passwords
from service.security.tokens import (
    TOKEN_CACHE_SIZE,
    Claims,
    InvalidTokenError,
    Tokens,
    bearer,
    digest,
    new_refresh_token,
)

__all__ = [
    "TOKEN_CACHE_SIZE",
    "Claims",
    "InvalidTokenError",
    "Passwords",
    "Tokens",
    "bearer",
    "digest",
    "new_refresh_token",
]


def init_app(app: Quart, settings: Settings) -> None:
    """Register `passwords` and `tokens` as extensions of the application."""
    store = app.extensions["passwords"] = Passwords(settings)
    app.extensions["tokens"] = Tokens(settings)

    @app.while_serving
    async def lifespan() -> AsyncGenerator[None, None]:
        await store.open()
        yield
        await store.close()
