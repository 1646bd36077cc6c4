"""Business rules and SQL of sign-in sessions. Changes of a user's tokens lock the user's row."""

import secrets
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Double, Table, bindparam, delete, insert, select, type_coerce
from sqlalchemy.ext.asyncio import AsyncSession

from service.auth.schemas import TokenPair
from service.http.auth import CurrentUser, recheck_user
from service.models import RefreshToken, User
from service.models.types import FromNow, UtcDateTime, UtcNow
from service.security import Tokens, digest, new_refresh_token
from service.users.service import end_tokens, get_user

MAX_PRUNED_TOKENS = 20  # expired refresh tokens that are deleted for each new token
# The database's clock. A worker's clock may jump: then sessions would end early, or rows would be
# deleted that are needed to detect reuse.
NOW = type_coerce(UtcNow(), UtcDateTime)
_TOKENS = cast(Table, RefreshToken.__table__)
_USER = User.__table__.c
EXPIRED = (
    select(_TOKENS.c.id)
    .where(_TOKENS.c.expires_at < UtcNow())
    .order_by(_TOKENS.c.expires_at)
    .limit(MAX_PRUNED_TOKENS)
    .with_for_update(skip_locked=True)
)
PRUNE = delete(_TOKENS).where(_TOKENS.c.id.in_(EXPIRED))
# Made once, and without the ORM: each sign-in runs them.
ISSUED = insert(_TOKENS).values(
    expires_at=FromNow(bindparam("seconds", type_=Double())),
    **{name: bindparam(name) for name in ("user_id", "family", "digest", "access_jti", "used")},
)
OWNER = (
    select(_USER.id, _USER.username, _USER.tier, _USER.token_version, _USER.password_hash)
    .where(_USER.id == bindparam("user_id"))
    .with_for_update()
)


async def login(
    db: AsyncSession,
    user_id: int,
    checked_hash: str,
    new_hash: str | None,
    tokens: Tokens,
    refresh_seconds: int,
) -> TokenPair | None:
    """Open a session of the user whose password was verified against `checked_hash`.

    None if the user was deleted or the password has changed since. new_hash: replaces a hash with
    outdated parameters. refresh_seconds: lifetime of the refresh token.
    """
    owner = (await db.execute(OWNER, {"user_id": user_id})).one_or_none()
    if owner is None or owner.password_hash != checked_hash:
        return None
    if new_hash is not None:
        (await get_user(db, user_id)).password_hash = new_hash
    return await _issue(db, owner, secrets.token_hex(16), tokens, refresh_seconds)


async def refresh(
    db: AsyncSession, refresh_token: str, tokens: Tokens, refresh_seconds: int
) -> TokenPair | None:
    """Exchange a refresh token for a new pair, once. None if the token is not valid.

    If a token is used twice, the token or its successor was stolen (RFC 9700, 4.14.2). Then all
    refresh tokens of its family and all access tokens of the user end, because a stolen access
    token cannot be identified.
    """
    by_digest = select(RefreshToken).where(RefreshToken.digest == digest(refresh_token))
    row = await db.scalar(by_digest)
    if row is None:
        return None
    user = await db.get(User, row.user_id, with_for_update=True)
    row = await db.scalar(by_digest.execution_options(populate_existing=True))
    if user is None or row is None or row.expires_at < await _now(db):
        return None
    if row.used:
        user.token_version += 1
        user.kept_jti = None
        await db.execute(delete(RefreshToken).where(RefreshToken.family == row.family))
        return None
    row.used = True
    return await _issue(db, user, row.family, tokens, refresh_seconds)


async def logout(db: AsyncSession, current_user: CurrentUser) -> None:
    """End every token of a user."""
    await recheck_user(db, current_user, to_change=True)
    await end_tokens(db, await get_user(db, current_user.id))


async def _issue(
    db: AsyncSession, user: Any, family: str, tokens: Tokens, refresh_seconds: int
) -> TokenPair:
    token, jti = tokens.issue(user)
    refresh_token = new_refresh_token()
    values = {
        "user_id": user.id,
        "family": family,
        "digest": digest(refresh_token),
        "access_jti": jti,
        "used": False,
        "seconds": refresh_seconds,
    }
    await db.execute(ISSUED, values)
    await db.execute(PRUNE)
    return TokenPair(token=token, expires_in=tokens.lifetime, refresh_token=refresh_token)


async def _now(db: AsyncSession) -> datetime:
    return (await db.execute(select(NOW))).scalar_one()
