"""Migrations: upgrade, downgrade, no drift, and never two at once."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import inspect, text
from sqlalchemy.ext.asyncio import create_async_engine

from service.db import migrations
from tests.conftest import fresh_database, settings_for
from tests.test_cli import killed


async def tables(url: str, folder: Path) -> set[str]:
    """Give the names of a database's tables."""
    engine = create_async_engine(settings_for(url, folder).database)
    try:
        async with engine.connect() as connection:
            names = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
            if "alembic_version" in names:
                rows = (await connection.execute(text("SELECT * FROM alembic_version"))).all()
                assert len(rows) <= 1
    finally:
        await engine.dispose()
    return {name for name in names if not name.startswith("books_fts")}


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
async def test_up_down_and_up_again_without_drift(
    backend: str, request: pytest.FixtureRequest, folder: Path
) -> None:
    async with fresh_database(backend, request, folder) as url:
        config = migrations.configuration(settings_for(url, folder).database)
        for _ in range(2):
            await asyncio.to_thread(command.upgrade, config, "head")
            await asyncio.to_thread(command.check, config)
            assert await tables(url, folder) == {
                "users", "books", "refresh_tokens", "book_counts", "cache_state",
                "imported_records", "book_views", "idempotency_records", "search_words",
                "reports", "alembic_version",
            }  # fmt: skip
            await asyncio.to_thread(command.downgrade, config, "base")
            assert await tables(url, folder) == {"alembic_version"}


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
async def test_simultaneous_migrations_wait_for_each_other(
    backend: str, request: pytest.FixtureRequest, folder: Path
) -> None:
    async with fresh_database(backend, request, folder) as url:
        environment = os.environ | {"DEV_DATABASE_URL": url, "OCTAVO_ENV": "development"}
        running = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", "service", "migrate", env=environment,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )
            for _ in range(4)
        ]  # fmt: skip
        try:
            for process in running:
                out, err = await process.communicate()
                assert process.returncode == 0, err.decode()
                assert out.decode().strip() == f"Database at revision {migrations.head()}"
        finally:
            for process in running:
                await killed(process)
        assert "books" in await tables(url, folder)


async def test_the_alembic_command_migrates_as_well(folder: Path) -> None:
    url = f"sqlite:///{folder}/by-alembic.db"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "alembic", "upgrade", "head",
        cwd=migrations.ROOT, env=os.environ | {"DEV_DATABASE_URL": url},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        _, err = await process.communicate()
    finally:
        await killed(process)
    assert process.returncode == 0, err.decode()
    assert "books" in await tables(url, folder)
