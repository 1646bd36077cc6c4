"""Authenticate and authorise users: `token_required` and `admin_required` pass a CurrentUser."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, NamedTuple

from quart import current_app, request
from quart_schema import security_scheme
from sqlalchemy import Row, ScalarSelect, Select, Table, bindparam, or_, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from service.cache import Entry, Kind
from service.cache.entries import read
from service.errors import APIError, ForbiddenError, UnauthorizedError
from service.http.context import context_of
from service.http.documentation import document_errors
from service.http.headers import parse_headers
from service.models import User
from service.security import TOKEN_CACHE_SIZE, Claims, InvalidTokenError, Tokens, bearer

BEARER: list[dict[str, list[str]]] = [{"bearer": []}]

Handler = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class CurrentUser:
    """The user of a request, as in the database. jti, ver: claims of the request's token."""

    id: int
    username: str
    email: str
    tier: str
    is_admin: bool
    created_at: datetime
    jti: str
    ver: int


class Account(NamedTuple):
    """The columns of a user's row that are cached, for authentication and the profile.

    kept_jti: `jti` of the one token that stays valid with a `ver` older than token_version.
    """

    id: int
    username: str
    email: str
    tier: str
    is_admin: bool
    created_at: datetime
    token_version: int
    kept_jti: str | None

    def accepts(self, claims: Claims) -> bool:
        """Whether the claims of a token match: it is not revoked, and its tier is current."""
        is_current = claims.ver == self.token_version or claims.jti == self.kept_jti
        return is_current and claims.tier == self.tier


# Built once, and without the ORM, because nearly every request runs one of these statements.
_ROWS = select(*(User.__table__.c[name] for name in Account._fields))
MANY = _ROWS.where(User.__table__.c.id.in_(bindparam("ids", expanding=True)))
SELECT_ONE = _ROWS.where(User.__table__.c.id == bindparam("id"))
# The SQL types of the values that `actor_values` returns.
ACTOR_TYPES = {
    "acting_id": User.__table__.c.id.type,
    "acting_ver": User.__table__.c.token_version.type,
    "acting_jti": User.__table__.c.kept_jti.type,
}
TO_READ, TO_CHANGE = SELECT_ONE.with_for_update(read=True), SELECT_ONE.with_for_update()


async def load_users(db: AsyncSession, ids: Sequence[int]) -> dict[int, Entry]:
    """Return cache entries by id, for the ids that exist. The body is the account as JSON."""
    rows = await db.execute(MANY, {"ids": ids})
    return {row.id: Entry(b"%d" % row.token_version, _bytes(row)) for row in rows}


def _bytes(row: Any) -> bytes:
    return json.dumps([*row], default=datetime.isoformat).encode()


USERS = Kind("user", ",".join(Account._fields), load_users, _bytes)


async def authenticate(scope: Any, extensions: Mapping[str, Any]) -> CurrentUser:
    """Return the user of a request (ASGI scope). Raises as `verify_token` and `load_user` do.

    The limit middleware has already set the user, except on routes that it skips.
    """
    user = context_of(scope).user
    if user is None:
        claims = verify_token(scope, extensions["tokens"])
        entry, _ = await extensions["cache"].items.read(USERS, claims.user_id)
        user = load_user(scope, claims, entry)
    return user


def verify_token(scope: Any, tokens: Tokens) -> Claims:
    """Verify the token of the Authorization header. `Bearer ` may be missing, as in the guide.

    Raises UnauthorizedError (no token), InvalidTokenError, or APIError (more than one header).
    """
    headers = parse_headers(scope["headers"]).authorization
    if len(headers) > 1:
        raise APIError("Authorization is given more than once")
    token = bearer("".join(headers))
    if not token:
        raise UnauthorizedError("Token is missing")
    return tokens.read(token)


def load_user(scope: Any, claims: Claims, entry: Entry) -> CurrentUser:
    """Decode the cached account of a request's user, set the user in the context, and return it.

    Raises InvalidTokenError if the token is revoked, the user is deleted, or the user's tier is not
    the tier in the token: the limits were decided by the tier in the token.
    """
    account = account_in(entry.body) if entry.body else None
    user = _check_user(account, claims.jti, claims.ver)
    if user.tier != claims.tier:
        raise InvalidTokenError
    context = context_of(scope)
    context.user, context.user_id = user, user.id
    return user


def account_in(body: bytes) -> Account:
    """Decode an account from the body of a cache entry."""
    account = Account(*json.loads(body))
    return account._replace(created_at=datetime.fromisoformat(str(account.created_at)))


@lru_cache(TOKEN_CACHE_SIZE)
def read_account(value: bytes | None, own_key: str) -> tuple[Entry | None, Account | None]:
    """Decode a stored value. The entry is None if it is no entry; the account, if no row exists."""
    entry = read(value, own_key)
    return entry, None if entry is None or not entry.body else account_in(entry.body)


async def recheck_user(
    db: AsyncSession, user: CurrentUser, *, to_change: bool = False
) -> CurrentUser:
    """Authenticate a user again within a write's transaction, and lock the user's row.

    Since the first check the user may have signed out, or lost rights. Every write for a user
    begins with a check like this. to_change: lock FOR UPDATE, because the write changes the row;
    else FOR SHARE. Raises InvalidTokenError.
    """
    row = (await db.execute(TO_CHANGE if to_change else TO_READ, {"id": user.id})).one_or_none()
    return _check_user(None if row is None else Account(*row), user.jti, user.ver)


def with_actor(query: Select[Any], table: Table) -> Select[Any]:
    """Extend a query for a row to be changed: lock the row, and add the columns of the actor.

    The actor is the user with the id `actor_id` (bound parameter). PostgreSQL locks the user before
    the row, as every write does. The result is empty if the user or the row does not exist.
    """
    users = User.__table__
    account = (users.c[name].label(f"actor_{name}") for name in Account._fields)
    query = query.add_columns(*account).join_from(table, users, users.c.id == bindparam("actor_id"))
    query = query.with_for_update(read=True, of=users)
    return query.suffix_with(text(f"FOR UPDATE OF {table.name}"), dialect="postgresql")


def actor_in(row: Row[Any], user: CurrentUser) -> CurrentUser:
    """Check a user as `recheck_user` does, with a result row of a `with_actor` query."""
    return _check_user(Account(*row[-len(Account._fields) :]), user.jti, user.ver)


def actor_values(user: CurrentUser) -> dict[str, Any]:
    """Return the values of the columns that `valid_actor_id` compares with the user's row."""
    return {"acting_id": user.id, "acting_ver": user.ver, "acting_jti": user.jti}


def valid_actor_id(actor: Any) -> ScalarSelect[int]:
    """Select the id of a user whose token is still valid, else NULL. actor: columns ACTOR_TYPES.

    Unlike `recheck_user`, it does not wait for locks: it gives NULL also while another transaction
    changes the user's row.
    """
    users = User.__table__.c
    is_valid = or_(users.token_version == actor.acting_ver, users.kept_jti == actor.acting_jti)
    query = select(users.id).where(users.id == actor.acting_id, is_valid)
    return query.with_for_update(read=True, skip_locked=True).scalar_subquery()


def _check_user(user: Account | None, jti: str, ver: int) -> CurrentUser:
    if user is None:
        raise InvalidTokenError("User not found")
    if ver != user.token_version and jti != user.kept_jti:
        raise InvalidTokenError
    return CurrentUser(
        user.id, user.username, user.email, user.tier, user.is_admin, user.created_at, jti, ver
    )


def require_admin(user: CurrentUser) -> None:
    """Raise ForbiddenError if the user is not an administrator."""
    if not user.is_admin:
        raise ForbiddenError("Administrators only")


def token_required(handler: Handler) -> Handler:
    """Require a valid token for a route, and pass `current_user` to the handler.

    The handler is that of an operation, whose first argument is a `Call`, or a Quart view without
    positional arguments. Raises as `authenticate` does.
    """

    @wraps(handler)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        return await handler(*args, current_user=await _user(args), **kwargs)

    return security_scheme(BEARER)(guarded)


def admin_required(handler: Handler) -> Handler:
    """Like `token_required`, but raises ForbiddenError if the user is not an administrator."""

    @wraps(handler)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        user = await _user(args)
        require_admin(user)
        return await handler(*args, current_user=user, **kwargs)

    return document_errors(403)(security_scheme(BEARER)(guarded))


async def _user(args: tuple[Any, ...]) -> CurrentUser:
    if args:
        return await authenticate(args[0].scope, args[0].extensions)
    return await authenticate(request.scope, current_app.extensions)
