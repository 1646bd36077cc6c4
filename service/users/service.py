"""The rules of users, and their SQL.

The row of a user is the lock for all that decides which of their tokens are valid.
"""

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from service.db_errors import violated
from service.errors import InvalidInputError, ResourceNotFoundError
from service.models import RefreshToken, User, fold

TAKEN = {
    "uq_users_username_key": {"username": ["Username already exists"]},
    "uq_users_email_key": {"email": ["Email already registered"]},
}


async def get_user(db: AsyncSession, user_id: int, *, lock: bool = False) -> User:
    """Give a user. Raises ResourceNotFoundError."""
    user = await db.get(User, user_id, with_for_update=lock)
    if user is None:
        raise ResourceNotFoundError(f"User with id {user_id} not found")
    return user


async def find_by_email(db: AsyncSession, email: str) -> User | None:
    """Give the user of an e-mail address, compared without case."""
    found: User | None = await db.scalar(select(User).where(User.email_key == fold(email)))
    return found


async def create_user(
    db: AsyncSession, username: str, email: str, password_hash: str, *, is_admin: bool = False
) -> User:
    """Add a user. Raises InvalidInputError if the name or address is taken."""
    user = User(
        username=username,
        username_key=fold(username),
        email=email,
        email_key=fold(email),
        password_hash=password_hash,
        is_admin=is_admin,
    )
    db.add(user)
    await _flush(db)
    return user


async def update_profile(
    db: AsyncSession,
    user_id: int,
    jti: str,
    *,
    username: str | None,
    email: str | None,
    password_hash: str | None,
    checked_hash: str | None,
) -> User:
    """Change one's own account. A new password ends every token but the one named `jti`.

    `checked_hash` is that of the current password, where it was asked for.
    """
    user = await get_user(db, user_id, lock=True)
    if checked_hash not in {None, user.password_hash}:
        raise wrong_password()  # changed since it was checked
    if username is not None:
        user.username, user.username_key = username, fold(username)
    if email is not None:
        user.email, user.email_key = email, fold(email)
    if password_hash is not None:
        user.password_hash = password_hash
        await end_tokens(db, user, kept_jti=jti)
    await _flush(db)
    return user


async def end_tokens(db: AsyncSession, user: User, *, kept_jti: str | None = None) -> None:
    """End every token of a user (whose row is locked), but for the pair that `kept_jti` names."""
    user.token_version += 1
    user.kept_jti = kept_jti
    ended = delete(RefreshToken).where(RefreshToken.user_id == user.id)
    if kept_jti is not None:
        ended = ended.where(RefreshToken.access_jti != kept_jti)
    await db.execute(ended)


def wrong_password() -> InvalidInputError:
    """Give the error of a `current_password` that is not."""
    return InvalidInputError({"current_password": ["Current password is wrong"]})


async def _flush(db: AsyncSession) -> None:
    try:
        await db.flush()
    except IntegrityError as error:
        messages = TAKEN.get(violated(error))
        if messages is None:
            raise
        raise InvalidInputError(messages) from None
