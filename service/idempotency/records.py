"""SQL of idempotency records: find, save and prune them."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Double,
    FromClause,
    Row,
    Select,
    and_,
    bindparam,
    delete,
    func,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from service.db.json_rows import ORDER, JsonRows
from service.errors import APIError, ConflictError
from service.http.operations import Reply
from service.http.responses import to_bytes
from service.models import IdempotencyRecord
from service.models.types import FromNow, UtcNow

REPLAYED = "Idempotency-Replayed"  # the header of a replayed response
PRUNED = 200  # maximum number of expired records that one call of `prune` deletes
TABLE: Any = IdempotencyRecord.__table__
COLUMNS = TABLE.c
IDENTITY = ("user_id", "key")
REPLY = ("fingerprint", "status", "headers", "is_tagged", "body")
CLAIMS = JsonRows("claims", {name: COLUMNS[name].type for name in IDENTITY})
RECORDS = JsonRows("records", {name: COLUMNS[name].type for name in (*IDENTITY, *REPLY)})
EXPIRED = (
    select(COLUMNS.user_id, COLUMNS.key)
    .where(COLUMNS.expires_at <= UtcNow())
    .order_by(COLUMNS.expires_at)
    .limit(PRUNED)
    .with_for_update(skip_locked=True)
)
PRUNE = delete(TABLE).where(tuple_(COLUMNS.user_id, COLUMNS.key).in_(EXPIRED))


class Claim(NamedTuple):
    """The use of a key by a request. fingerprint: a digest of the request."""

    user_id: int
    key: str
    fingerprint: str


class KeyInFlightError(ConflictError):
    """409: another request with this key has not ended. `Retry-After` is 1 s."""

    message = "A request with this Idempotency-Key is in flight"

    def __init__(self) -> None:
        super().__init__(headers={"Retry-After": "1"})


class KeyReusedError(APIError):
    """422: the key belongs to another request."""

    status_code = 422
    error = "Unprocessable Entity"
    message = "This Idempotency-Key was used for another request"


Outcome = Reply | APIError  # an error of a claim in a group must not roll back the group


async def find(db: AsyncSession, claims: Mapping[int, Claim]) -> dict[int, Outcome]:
    """Return the outcomes of the claims whose keys are in use; the other keys are free.

    A key is in use if it has a record, or if another transaction is about to write its record.
    """
    dialect = db.get_bind().dialect
    places = [*claims]
    values = CLAIMS.write([claim._asdict() for claim in claims.values()], dialect)
    outcomes: dict[int, Outcome] = {}
    for row in await db.execute(_select(dialect.name), values):
        place = places[row.n]
        if row.status is not None:
            is_same = row.fingerprint == claims[place].fingerprint
            outcomes[place] = _replay(row) if is_same else KeyReusedError()
        elif not row.is_free:
            outcomes[place] = KeyInFlightError()
    return outcomes


def _replay(row: Row[Any]) -> Reply:
    headers = json.loads(row.headers) | {REPLAYED: "true"}
    body = None if row.body is None else row.body.encode()
    return Reply(body, row.status, headers, is_tagged=row.is_tagged)


@lru_cache
def _select(dialect: str) -> Select[Any]:
    claims = CLAIMS.read(dialect)
    is_known = and_(
        *(COLUMNS[name] == claims.c[name] for name in IDENTITY), COLUMNS.expires_at > UtcNow()
    )
    query = select(
        claims.c[ORDER],
        _try_lock(claims, dialect).label("is_free"),
        *(COLUMNS[name] for name in REPLY),
    )
    return query.join_from(claims, TABLE, is_known, isouter=True)


def _try_lock(claims: FromClause, dialect: str) -> ColumnElement[bool]:
    """Lock a key until the transaction ends; false if another transaction has locked it.

    Without the lock, an insert waits for the other transaction, and so does the whole group. On
    SQLite there is only one writer at a time.
    """
    if dialect == "sqlite":
        return true()
    return func.pg_try_advisory_xact_lock(func.hashtextextended(claims.c.key, claims.c.user_id))


async def save(
    db: AsyncSession, replies: Mapping[int, tuple[Claim, Reply]], seconds: int
) -> set[int]:
    """Insert a record for each claim, valid for `seconds`. An expired record is replaced.

    Return the places of the claims whose keys are in use. Then the caller must roll back.
    """
    dialect = db.get_bind().dialect
    places: dict[tuple[int, str], int] = {}  # a cancelled attempt and its retry may be in a group
    for n, (claim, _) in replies.items():
        places.setdefault((claim.user_id, claim.key), n)
    rows = [replies[n][0]._asdict() | _values(replies[n][1]) for n in places.values()]
    values = {**RECORDS.write(rows, dialect), "seconds": seconds}
    saved = await db.execute(_insert(dialect.name), values)
    return set(replies) - {places[row.user_id, row.key] for row in saved}


def _values(reply: Reply) -> dict[str, Any]:
    body = reply.body
    if body is not None and not isinstance(body, bytes):
        body = to_bytes(body)
    return {
        "status": reply.status,
        "headers": json.dumps(dict(reply.headers)),
        "is_tagged": reply.is_tagged,
        "body": None if body is None else body.decode(),
    }


@lru_cache
def _insert(dialect: str) -> Any:
    records = RECORDS.read(dialect)
    names = (*IDENTITY, *REPLY)
    expires_at = FromNow(bindparam("seconds", type_=Double()))
    rows = (
        select(*(records.c[name] for name in names), expires_at)
        .where(_try_lock(records, dialect))
        .order_by(records.c[ORDER])
    )
    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    statement = insert(TABLE).from_select([*names, "expires_at"], rows)
    replaced = {name: statement.excluded[name] for name in (*REPLY, "expires_at")}
    return statement.on_conflict_do_update(
        index_elements=IDENTITY, set_=replaced, where=COLUMNS.expires_at <= UtcNow()
    ).returning(COLUMNS.user_id, COLUMNS.key)


async def prune(db: AsyncSession) -> None:
    """Delete expired records of any user, at most PRUNED. Waits for no lock."""
    await db.execute(PRUNE)
