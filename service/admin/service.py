"""Business rules and SQL of administration."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from service.db.list_queries import Order, Page, count_of, fetch_page, page_query
from service.errors import ConflictError
from service.http.auth import CurrentUser, recheck_user, require_admin
from service.models import User
from service.users.service import get_user

COLUMNS = User.__table__.c
ALL = count_of(User, [])
NEWEST_FIRST = page_query(User, [], Order(COLUMNS.created_at, COLUMNS.id, descending=True), ALL)


async def list_users(db: AsyncSession, page: Page) -> tuple[list[User], int]:
    """Return a page of users, newest first, and the total number of users."""
    return await fetch_page(db, NEWEST_FIRST, ALL, page)


async def update_rights(
    db: AsyncSession,
    current_user: CurrentUser,
    user_id: int,
    *,
    tier: str | None,
    is_admin: bool | None,
) -> User:
    """Change a user's tier or rights. A change ends the user's access tokens.

    Raises ConflictError if no administrator would be left, or ResourceNotFoundError.
    """
    await _confirm_administrator(db, current_user)
    user = await get_user(db, user_id, lock=True)
    if is_admin is False:
        await _keep_one_administrator(db, user)
    before = (user.tier, user.is_admin)
    user.tier = user.tier if tier is None else tier
    user.is_admin = user.is_admin if is_admin is None else is_admin
    if (user.tier, user.is_admin) != before:
        # Refresh tokens stay valid: they give access tokens with the new rights.
        user.token_version += 1
        user.kept_jti = None
    await db.flush()
    return user


async def delete_user(db: AsyncSession, current_user: CurrentUser, user_id: int) -> None:
    """Delete a user. The database also deletes the user's books and tokens.

    Raises ConflictError for the last administrator, or ResourceNotFoundError.
    """
    await _confirm_administrator(db, current_user)
    user = await get_user(db, user_id, lock=True)
    await _keep_one_administrator(db, user)
    await db.delete(user)
    await db.flush()


async def _confirm_administrator(db: AsyncSession, current_user: CurrentUser) -> None:
    """Lock the rows of all administrators, and check that the caller is still one of them.

    Without the lock, two administrators could remove each other.
    """
    await db.execute(
        select(User.id).where(User.is_admin.is_(True)).order_by(User.id).with_for_update()
    )
    require_admin(await recheck_user(db, current_user, to_change=True))


async def _keep_one_administrator(db: AsyncSession, user: User) -> None:
    others = select(User.id).where(User.is_admin.is_(True), User.id != user.id).limit(1)
    if user.is_admin and await db.scalar(others) is None:
        raise ConflictError("The last administrator stays")
