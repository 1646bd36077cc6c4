"""Run Alembic: upgrade a database, and read its revision and the revisions of this code."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from service.db.errors import lacks_tables

ROOT = Path(__file__).resolve().parents[2]


def configuration(url: URL) -> Config:
    """Return Alembic's configuration for the database at `url`."""
    config = Config(str(ROOT / "alembic.ini"))
    config.set_main_option("script_location", str(ROOT / "alembic").replace("%", "%%"))
    config.attributes["url"] = url
    return config


def upgrade(url: URL, revision: str = "head") -> None:
    """Upgrade the database to `revision`. Blocking; runs its own event loop."""
    command.upgrade(configuration(url), revision)


def older() -> set[str]:
    """Return all revisions except the newest. A database at such a revision is behind."""
    scripts = ScriptDirectory(str(ROOT / "alembic")).walk_revisions()
    return {script.revision for script in scripts} - {head()}


def head() -> str:
    """Return the newest revision that this code knows."""
    revision = ScriptDirectory(str(ROOT / "alembic")).get_current_head()
    if revision is None:
        raise RuntimeError(f"no migrations in {ROOT / 'alembic'}")
    return revision


async def current(db: AsyncSession) -> str | None:
    """Return the revision of a database, or None if it was never migrated."""
    try:
        revision: str | None = await db.scalar(text("SELECT version_num FROM alembic_version"))
    except DBAPIError as error:
        if lacks_tables(error):
            return None
        raise
    return revision
