"""Share the report among all processes: one of them computes it, and all read the stored row."""

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from math import inf
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncSession

from service.db.database import Database
from service.errors import ServiceUnavailableError
from service.http.responses import to_bytes
from service.models import GENRES
from service.report.schemas import PriceReport, ReportOut
from service.report.sql import AGGREGATE, CLAIM, LOAD, STORE

NONE = "none"  # the key of the books without a genre, or without a year
LOOK_SECONDS = 0.25  # between two looks for the report that another process computes
MAX_WAIT_SECONDS = 4.0  # for the very first report; then 503


class Reports:
    """The report in one process. lifetime: of a report, in seconds."""

    def __init__(self, database: Database, lifetime: float) -> None:
        self._database = database
        self._lifetime = lifetime
        self._body: bytes | None = None
        self._due = -inf  # when the report must be loaded again, monotonic time
        self._refresh: asyncio.Task[bytes] | None = None

    async def read(self) -> bytes:
        """Return the report as JSON. While a report is computed, others get the one before.

        Raises ServiceUnavailableError if there is none yet and another process still computes it.
        """
        if self._body is not None and (time.monotonic() < self._due or self._refresh is not None):
            return self._body
        if self._refresh is None:  # a task, so that a disconnect does not end the computation
            self._refresh = asyncio.create_task(self._refreshed())
            self._refresh.add_done_callback(self._ended)
        return await asyncio.shield(self._refresh)

    def _ended(self, task: asyncio.Task[bytes]) -> None:
        self._refresh = None
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not log it without a caller

    async def _refreshed(self) -> bytes:
        begun = time.monotonic()
        while True:
            body, left = await self._load()
            claim = await self._database.write(self._claim) if left <= 0 else None
            if claim is not None:
                body, left = await self._compute(claim), self._lifetime
            if body is not None:
                self._body, self._due = body, time.monotonic() + max(left, LOOK_SECONDS)
                return body
            if time.monotonic() > begun + MAX_WAIT_SECONDS:
                raise ServiceUnavailableError("The report is being computed; retry later")
            await asyncio.sleep(LOOK_SECONDS)

    async def _load(self) -> tuple[bytes | None, float]:
        """Return the stored report, and how many seconds are left of its lifetime."""
        async with self._database.session() as db:
            row = (await db.execute(LOAD)).one()
        if row.body is None:
            return None, 0.0
        return row.body.encode(), self._lifetime - (row.now - row.generated_at).total_seconds()

    async def _claim(self, db: AsyncSession) -> datetime | None:
        """Claim the computation. None: another process has, or the report is new."""
        claims = await db.execute(CLAIM, {"outdated": -self._lifetime})
        claim: datetime | None = claims.scalar_one_or_none()
        return claim

    async def _compute(self, claim: datetime) -> bytes:
        """Compute the report in a read, which no write waits for, and store it."""
        async with self._database.session() as db:
            rows = (await db.execute(AGGREGATE)).all()
        body = to_bytes(make_report(rows, claim))
        values = {"claim": claim, "new_body": body.decode()}
        await self._database.write(lambda db: db.execute(STORE, values))
        return body


def make_report(rows: Sequence[Row[Any]], generated_at: datetime) -> ReportOut:
    """Make the report from the rows of AGGREGATE."""
    counts: dict[str, dict[str, int]] = {"users": {}, "by_genre": {}, "by_decade": {}}
    prices: dict[str, Decimal | None] = {}
    for row in rows:
        if row.section == "price":
            prices[row.key] = row.price
        else:
            counts[row.section][row.key] = int(row.number)
    genres, decades = counts["by_genre"], counts["by_decade"]
    return ReportOut(
        books=sum(genres.values()),
        users=counts["users"][""],
        by_genre={genre or NONE: genres.get(genre, 0) for genre in (*GENRES, "")},
        by_decade={decade or NONE: decades[decade] for decade in sorted(decades, key=_order)},
        price=PriceReport.model_validate(prices),
        generated_at=generated_at,
    )


def _order(decade: str) -> tuple[bool, str]:
    """Return the sort key of a decade: books without a year come last."""
    return not decade, decade
