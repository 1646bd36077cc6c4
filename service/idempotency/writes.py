"""Run writes that may have a key: alone, or in a group with other writes (group commit).

A write without a conflict costs one statement more, which inserts the records of its whole group.
After a conflict, groups look for records before they write: retries come in storms, and each group
with a retry would be rolled back.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Generic

from sqlalchemy.ext.asyncio import AsyncSession

from service.db.database import Database, Work
from service.db.group_commit import In, Out, RetryAloneError, WriteGroup
from service.errors import APIError
from service.http.operations import Reply
from service.idempotency.records import (
    PRUNED,
    REPLAYED,
    Claim,
    KeyInFlightError,
    KeyReusedError,
    Outcome,
    find,
    prune,
    save,
)

CAREFUL_SECONDS = 10.0  # after a conflict, groups look for records first
OUTCOMES = ("recorded", "replayed", "in_flight", "reused")  # of requests with a key


@dataclass(frozen=True, slots=True)
class Entry(Generic[In, Out]):
    """A write of a group. reply: makes the reply from the result. claim: None without a key."""

    item: In
    reply: Callable[[Out], Reply]
    claim: Claim | None


class IdempotentWrites:
    """The writes of one process that may have keys. counts: requests with a key, by outcome.

    seconds: how long a record is valid.
    """

    def __init__(self, database: Database, seconds: int) -> None:
        self.counts = dict.fromkeys(OUTCOMES, 0)
        self._database = database
        self._seconds = seconds
        self._in_flight: set[tuple[int, str]] = set()
        self._groups: dict[Any, Any] = {}
        self._careful_until = -inf
        self._saved = PRUNED  # since the last pruning: the first record prunes

    async def write(
        self, work: Work[Out], reply: Callable[[Out], Reply], claim: Claim | None
    ) -> Reply:
        """Run `work` as `Database.write` does, or replay the reply of the claim's key.

        Raises KeyInFlightError or KeyReusedError.
        """

        async def single(db: AsyncSession, items: Sequence[None], alone: bool) -> list[Out]:
            return [await work(db)]

        recorded = self._recorded(single)

        async def run(db: AsyncSession) -> Outcome:
            (outcome,) = await recorded(db, [Entry(None, reply, claim)], True)
            return outcome

        return await self._once(claim, lambda: self._database.write(run))

    async def write_batched(
        self,
        work: WriteGroup[In, Out],
        item: In,
        reply: Callable[[Out], Reply],
        claim: Claim | None,
    ) -> Reply:
        """Run `work` as `Database.write_batched` does, or replay the reply of the claim's key.

        Raises KeyInFlightError or KeyReusedError.
        """
        if work not in self._groups:
            self._groups[work] = self._recorded(work)
        entry = Entry(item, reply, claim)
        return await self._once(
            claim, lambda: self._database.write_batched(self._groups[work], entry)
        )

    async def _once(self, claim: Claim | None, write: Callable[[], Awaitable[Outcome]]) -> Reply:
        """Write, unless a request of this process with the same key is in flight."""
        if claim is None:
            return _reply(await write())
        name = (claim.user_id, claim.key)
        try:
            if name in self._in_flight:
                raise KeyInFlightError
            self._in_flight.add(name)
            try:
                reply = _reply(await write())
            finally:
                self._in_flight.discard(name)
        except (KeyInFlightError, KeyReusedError) as error:
            self.counts["in_flight" if isinstance(error, KeyInFlightError) else "reused"] += 1
            raise
        self.counts["replayed" if REPLAYED in reply.headers else "recorded"] += 1
        return reply

    def _recorded(self, work: WriteGroup[In, Out]) -> WriteGroup[Entry[In, Out], Outcome]:
        """Extend a write by the records of its entries, in the same transaction."""

        async def write(
            db: AsyncSession, entries: Sequence[Entry[In, Out]], alone: bool
        ) -> Sequence[Outcome]:
            outcomes: dict[int, Outcome] = {}
            claims = {n: e.claim for n, e in enumerate(entries) if e.claim is not None}
            if claims and (alone or time.monotonic() < self._careful_until):
                outcomes = await find(db, claims)
                self._note_conflicts(outcomes)
            places = [n for n in range(len(entries)) if n not in outcomes]
            if places:
                try:
                    results = await work(db, [entries[n].item for n in places], alone)
                except RetryAloneError as error:
                    raise RetryAloneError({places[n] for n in error.places}) from None
                for n, result in zip(places, results, strict=True):
                    outcomes[n] = entries[n].reply(result)
            replies = {n: (claims[n], outcomes[n]) for n in places if n in claims}
            if replies:
                await self._save(db, replies, alone)
            return [outcomes[n] for n in range(len(entries))]

        return write

    async def _save(self, db: AsyncSession, replies: Any, alone: bool) -> None:
        in_use = await save(db, replies, self._seconds)
        self._note_conflicts(in_use)
        if in_use and alone:
            raise KeyInFlightError  # the other request has written since `find`
        if in_use:
            raise RetryAloneError(in_use)
        self._saved += len(replies)
        if self._saved >= PRUNED / 2:  # more are deleted than saved
            self._saved = 0
            await prune(db)

    def _note_conflicts(self, conflicts: Any) -> None:
        if conflicts:
            self._careful_until = time.monotonic() + CAREFUL_SECONDS


def _reply(outcome: Outcome) -> Reply:
    if isinstance(outcome, APIError):
        raise outcome
    return outcome
