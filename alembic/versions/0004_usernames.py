"""Compute the keys of usernames by NFKC_Casefold, so that names that look the same are equal.

Before, only letter case was ignored.
"""

import logging
from collections.abc import Callable

import sqlalchemy as sa
from alembic import op

from service.models import fold
from service.security.usernames import name_key

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BATCH_SIZE = 1_000
NOBODYS = "\x1f"  # a key with this character equals no name's key: names hold no controls

log = logging.getLogger("alembic.runtime.migration")
users = sa.table("users", sa.column("id"), sa.column("username"), sa.column("username_key"))
SELECT_BATCH = (
    sa.select(users).where(users.c.id > sa.bindparam("last")).order_by(users.c.id).limit(BATCH_SIZE)
)


def rekey(key_of: Callable[[str], str]) -> None:
    """Compute every key again by `key_of`.

    If two names get the same key, the older account gets this key, and the later account gets a key
    that no name can have. Both keep their names, and still sign in by e-mail.
    """
    db = op.get_bind()
    if db.dialect.name == "postgresql":  # no other transaction may write keys meanwhile
        op.execute("LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE")
    last = 0
    while rows := db.execute(SELECT_BATCH, {"last": last}).all():
        for user_id, username, old in rows:
            if (key := key_of(username)) != old:
                _give(db, user_id, key)
        last = rows[-1].id


def _give(db: sa.Connection, user_id: int, key: str) -> None:
    """Give a key to a user. If another user has this key, the older of the two users gets it."""
    other = db.scalar(sa.select(users.c.id).where(users.c.username_key == key))
    if other is not None and other != user_id:
        older, later = sorted((other, user_id))
        _set(db, later, f"{key}{NOBODYS}{later}")
        log.warning("The names of the users %d and %d have become the same", older, later)
        user_id = older
    _set(db, user_id, key)


def _set(db: sa.Connection, user_id: int, key: str) -> None:
    db.execute(sa.update(users).where(users.c.id == user_id).values(username_key=key))


def upgrade() -> None:
    rekey(name_key)


def downgrade() -> None:
    rekey(fold)
