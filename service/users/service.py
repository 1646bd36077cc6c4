"""Business rules and SQL of users.

A write that changes which tokens of a user are valid locks the user's row.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from pydantic.networks import validate_email
from sqlalchemy import bindparam, delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from service.db.errors import violated_constraint
from service.errors import InvalidInputError, Messages, ResourceNotFoundError
from service.http.auth import CurrentUser, recheck_user
from service.models import RefreshToken, User, fold
from service.security.usernames import name_key
from service.users.schemas import MAX_EMAIL

_USER = User.__table__.c
CREDENTIALS = select(_USER.id, _USER.password_hash).where(_USER.email_key == bindparam("email_key"))


def email_key(email: str) -> str:
    """Return the form of an address for comparison: normalised if valid, and case-folded."""
    if len(email) <= MAX_EMAIL:
        with suppress(ValueError):
            email = validate_email(email)[1]
    return fold(email)


async def get_user(db: AsyncSession, user_id: int, *, lock: bool = False) -> User:
    """Return a user. lock: by SELECT ... FOR UPDATE. Raises ResourceNotFoundError."""
    user = await db.get(User, user_id, with_for_update=lock)
    if user is None:
        raise not_found(user_id)
    return user


def not_found(user_id: int, headers: Mapping[str, str] | None = None) -> ResourceNotFoundError:
    """Return the error for a user that does not exist."""
    return ResourceNotFoundError(f"User with id {user_id} not found", headers=headers)


async def find_credentials(db: AsyncSession, email: str) -> tuple[int, str] | None:
    """Return the id and the password hash of the user with an e-mail address, ignoring case."""
    row = (await db.execute(CREDENTIALS, {"email_key": email_key(email)})).one_or_none()
    return None if row is None else (row.id, row.password_hash)


async def create_user(
    db: AsyncSession, username: str, email: str, password_hash: str, *, is_admin: bool = False
) -> User:
    """Add a user. Raises InvalidInputError if the name or address is taken."""
    user = User(
        username=username,
        username_key=name_key(username),
        email=email,
        email_key=email_key(email),
        password_hash=password_hash,
        is_admin=is_admin,
    )
    async with _unique(db, None, username, email):
        db.add(user)
    return user


async def update_profile(
    db: AsyncSession,
    current_user: CurrentUser,
    *,
    username: str | None,
    email: str | None,
    password_hash: str | None,
    checked_hash: str | None,
) -> User:
    """Change the caller's account. A new password ends all tokens except that of this request.

    checked_hash: the hash against which the current password was verified, if it was required.
    Raises InvalidInputError if the name or address is taken, or the password has changed since.
    """
    await recheck_user(db, current_user, to_change=True)
    user = await get_user(db, current_user.id)
    if checked_hash not in {None, user.password_hash}:
        raise wrong_password()  # the password has changed since it was verified
    async with _unique(db, current_user.id, username, email):
        if username is not None:
            user.username, user.username_key = username, name_key(username)
        if email is not None:
            user.email, user.email_key = email, email_key(email)
        if password_hash is not None:
            user.password_hash = password_hash
            await end_tokens(db, user, kept_jti=current_user.jti)
    return user


async def end_tokens(db: AsyncSession, user: User, *, kept_jti: str | None = None) -> None:
    """End all tokens of a user, except the pair of `kept_jti`. The user's row must be locked."""
    user.token_version += 1
    user.kept_jti = kept_jti
    ended = delete(RefreshToken).where(RefreshToken.user_id == user.id)
    if kept_jti is not None:
        ended = ended.where(RefreshToken.access_jti != kept_jti)
    await db.execute(ended)


def wrong_password() -> InvalidInputError:
    """Return the error for a wrong `current_password`."""
    return InvalidInputError({"current_password": ["Current password is wrong"]})


@asynccontextmanager
async def _unique(
    db: AsyncSession, own_id: int | None, username: str | None, email: str | None
) -> AsyncIterator[None]:
    """Run the block in a savepoint. Raises InvalidInputError with each field that is taken.

    The unique constraints decide. The database reports only one violation, so both fields are
    then checked.
    """
    try:
        async with db.begin_nested():
            yield
    except IntegrityError as error:
        if violated_constraint(error) not in {"uq_users_username_key", "uq_users_email_key"}:
            raise
    else:
        return
    taken: Messages = {}
    if await _is_taken(db, own_id, User.username_key, username and name_key(username)):
        taken["username"] = ["Username already exists"]
    if await _is_taken(db, own_id, User.email_key, email and email_key(email)):
        taken["email"] = ["Email already registered"]
    raise InvalidInputError(taken)


async def _is_taken(
    db: AsyncSession, own_id: int | None, column: InstrumentedAttribute[str], key: str | None
) -> bool:
    others = select(User.id).where(column == key, User.id != (own_id or 0))
    return key is not None and await db.scalar(others) is not None
