"""Every list reads an index on PostgreSQL: no plan scans the whole table.

For a million books, with times: `python -m bench.plans`.
"""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import text

from bench.plans import SORT_NAMES, every_filter, plans
from service.importer.loader import Loader
from service.sample_data.generated import generated_books
from tests.conftest import fresh_catalogue, settings_for

BOOKS = 12_000  # enough that a scan of the whole table is not the fastest plan


@pytest.mark.parametrize("backend", ["postgresql"])
async def test_every_list_reads_an_index(
    backend: str, request: pytest.FixtureRequest, folder: Path
) -> None:
    async with fresh_catalogue(backend, request, folder) as database:
        settings = settings_for(database.url.render_as_string(hide_password=False), folder)

        def fill() -> None:
            with Loader(settings) as loader:
                for _ in loader.load(generated_books(BOOKS, 1)):
                    pass
                loader.finish()

        await asyncio.to_thread(fill)
        async with database.reader.connect() as connection:
            await connection.execute(text("VACUUM books"))
        async with database.session() as db:
            filters = await every_filter(db)
        all_plans = [plan async for plan in plans(database, filters)]
    assert len(all_plans) >= len(filters) * len(SORT_NAMES) * 4
    assert not [plan for plan in all_plans if plan.reads_everything]
    # Counting reads the index only.
    for plan in all_plans:
        if plan.page.startswith("first") and plan.filter.startswith(("year_", "price_")):
            assert [node for node in plan.nodes if node.startswith("Index Only Scan")], plan
    # Filtered and sorted by the same column: a single index serves both.
    for plan in all_plans:
        if plan.sort.endswith("published_year") and plan.filter.startswith("year_"):
            index = "ix_books_year_desc" if plan.sort.startswith("-") else "ix_books_year_asc"
            used = {node for node in plan.nodes if "ix_books_year" in node}
            assert {node.rpartition(" ")[2] for node in used} == {index}, plan
