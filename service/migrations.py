"""Alembic, called from here: upgrade a database, and tell whether one is behind."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from service.db_errors import lacks_tables

ROOT = Path(__file__).resolve().parent.parent


def configuration(url: URL) -> Config:
    """Give Alembic's configuration for the database at `url`."""
    config = Config(str(ROOT / "alembic.ini"))
    config.set_main_option("script_location", str(ROOT / "alembic").replace("%", "%%"))
    config.attributes["url"] = url
    return config


def upgrade(url: URL, revision: str = "head") -> None:
    """Bring the database up to `revision`. Blocks, and runs its own event loop."""
    command.upgrade(configuration(url), revision)


def older() -> set[str]:
    """Name the revisions that come before the newest one: a database at one of them is behind."""
    scripts = ScriptDirectory(str(ROOT / "alembic")).walk_revisions()
    return {script.revision for script in scripts} - {head()}


def head() -> str:
    """Name the newest revision that this code knows."""
    revision = ScriptDirectory(str(ROOT / "alembic")).get_current_head()
    if revision is None:
        raise RuntimeError(f"no migrations in {ROOT / 'alembic'}")
    return revision


async def current(db: AsyncSession) -> str | None:
    """Name the revision of a database; None if it was never migrated."""
    try:
        revision: str | None = await db.scalar(text("SELECT version_num FROM alembic_version"))
    except DBAPIError as error:
        if lacks_tables(error):
            return None
        raise
    return revision
