"""Who may come in: `token_required` and `admin_required` give the route a CurrentUser."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from quart import request

from service.db import session
from service.errors import ForbiddenError, UnauthorizedError
from service.models import User
from service.security import tokens

Handler = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class CurrentUser:
    """Who is asking, as the database has it now; `jti` names the token that was shown."""

    id: int
    username: str
    tier: str
    is_admin: bool
    jti: str


async def authenticate() -> CurrentUser:
    """Recognise the bearer of the Authorization header, with or without `Bearer ` (guide).

    Raises UnauthorizedError: no token, one that does not verify or was revoked, or one of a
    user who is gone.
    """
    header = request.headers.get("Authorization", "").strip()
    scheme, _, rest = header.partition(" ")
    token = rest.strip() if scheme.lower() == "bearer" else header
    if not token:
        raise UnauthorizedError("Token is missing")
    claims = tokens().read(token)
    async with session() as db:
        user = await db.get(User, claims.user_id)
    if user is None:
        raise UnauthorizedError("User not found")
    if claims.ver != user.token_version and claims.jti != user.kept_jti:
        raise UnauthorizedError
    return CurrentUser(user.id, user.username, user.tier, user.is_admin, claims.jti)


def token_required(handler: Handler) -> Handler:
    """Let a route be called with a valid token only; it gets `current_user`."""

    @wraps(handler)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        return await handler(*args, current_user=await authenticate(), **kwargs)

    return guarded


def admin_required(handler: Handler) -> Handler:
    """Let a route be called by administrators only; it gets `current_user`."""

    @wraps(handler)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        user = await authenticate()
        if not user.is_admin:
            raise ForbiddenError("Administrators only")
        return await handler(*args, current_user=user, **kwargs)

    return guarded
