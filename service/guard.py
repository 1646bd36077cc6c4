"""Who may come in: `token_required` and `admin_required` give the route a CurrentUser."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from quart import request
from quart_schema import security_scheme
from sqlalchemy.ext.asyncio import AsyncSession

from service.db import session
from service.errors import APIError, ForbiddenError, UnauthorizedError
from service.models import User
from service.openapi.answers import fails
from service.security import bearer, tokens

BEARER: list[dict[str, list[str]]] = [{"bearer": []}]

Handler = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class CurrentUser:
    """Who is asking, as the database has it now; `jti` and `ver` are those of their token."""

    id: int
    username: str
    tier: str
    is_admin: bool
    jti: str
    ver: int


async def authenticate() -> CurrentUser:
    """Recognise the bearer of the Authorization header, with or without `Bearer ` (guide).

    Raises UnauthorizedError: no token, one that does not verify or was revoked, or one of a
    user who is gone. Raises APIError: the header is there twice.
    """
    headers = request.headers.getlist("Authorization")
    if len(headers) > 1:
        raise APIError("Authorization is given more than once")
    token = bearer("".join(headers))
    if not token:
        raise UnauthorizedError("Token is missing")
    claims = tokens().read(token)
    async with session() as db:
        return _recognise(await db.get(User, claims.user_id), claims.jti, claims.ver)


async def confirm(db: AsyncSession, user: CurrentUser, *, to_change: bool = False) -> CurrentUser:
    """Recognise a user once more, in the write that acts for them, and until it has ended.

    Between the guard and the write they may have signed out, or lost their rights. Every write
    for a user begins with this; `to_change`: it will change the user's own row.
    """
    row = await db.get(User, user.id, with_for_update={"read": not to_change})
    return _recognise(row, user.jti, user.ver)


def _recognise(user: User | None, jti: str, ver: int) -> CurrentUser:
    if user is None:
        raise UnauthorizedError("User not found")
    if ver != user.token_version and jti != user.kept_jti:
        raise UnauthorizedError
    return CurrentUser(user.id, user.username, user.tier, user.is_admin, jti, ver)


def require_admin(user: CurrentUser) -> None:
    """Raise ForbiddenError unless the user is an administrator."""
    if not user.is_admin:
        raise ForbiddenError("Administrators only")


def token_required(handler: Handler) -> Handler:
    """Let a route be called with a valid token only; it gets `current_user`."""

    @wraps(handler)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        return await handler(*args, current_user=await authenticate(), **kwargs)

    return security_scheme(BEARER)(guarded)


def admin_required(handler: Handler) -> Handler:
    """Let a route be called by administrators only; it gets `current_user`."""

    @wraps(handler)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        user = await authenticate()
        require_admin(user)
        return await handler(*args, current_user=user, **kwargs)

    return fails(403)(security_scheme(BEARER)(guarded))
