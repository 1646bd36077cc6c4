"""Idempotency-Key (IETF draft-ietf-httpapi-idempotency-key-header): a retried write runs once.

    records     SQL of the records: a reply by user and key, in the transaction of its write
    writes      runs writes with and without keys, alone or in a group
    decorator   declares that an operation accepts keys

The record and the rows commit together. So a key whose request ended without a commit (an error, a
killed worker) is free, and a key whose request committed replays the reply, even if no client got
it. The primary key of the table decides between two requests with the same key.
"""

from quart import Quart

from service.config import Settings
from service.idempotency.decorator import Attempt, idempotent
from service.idempotency.records import REPLAYED, KeyReusedError
from service.idempotency.writes import OUTCOMES, IdempotentWrites

__all__ = [
    "OUTCOMES",
    "REPLAYED",
    "Attempt",
    "IdempotentWrites",
    "KeyReusedError",
    "idempotent",
    "init_app",
]


def init_app(app: Quart, settings: Settings) -> None:
    """Make the state of this process for writes with keys."""
    app.extensions["idempotency"] = IdempotentWrites(
        app.extensions["database"], settings.idempotency_seconds
    )
