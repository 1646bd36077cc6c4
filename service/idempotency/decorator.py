"""The decorator `idempotent`: an operation accepts the header Idempotency-Key."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from hashlib import blake2b
from typing import Annotated, Any

from pydantic import BaseModel, Field
from quart_schema import document_headers

from service.db.database import Work
from service.db.group_commit import In, Out, WriteGroup
from service.errors import APIError
from service.http.auth import CurrentUser
from service.http.call import Call
from service.http.documentation import document_errors, document_status
from service.http.operations import Reply
from service.idempotency.records import Claim
from service.idempotency.writes import IdempotentWrites

MAX_KEY_LENGTH = 255
KEY = re.compile(rb"[!-~]{1,%d}" % MAX_KEY_LENGTH)  # visible ASCII characters
FINGERPRINT_BYTES = 16

Handler = Callable[..., Awaitable[Reply]]


class IdempotencyHeaders(BaseModel):
    """The request header of an operation that accepts keys."""

    key: Annotated[
        str,
        Field(
            alias="Idempotency-Key",
            min_length=1,
            max_length=MAX_KEY_LENGTH,
            pattern="^[!-~]+$",
            description="name of this write, chosen by the client: a retry with the same key gets "
            "the response of the first attempt",
            examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
        ),
    ]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request that may have a key; its handler writes with these methods, once.

    key: the header's value; None: the request has no key, and each write runs.
    """

    call: Call
    user_id: int
    key: str | None

    async def write(self, work: Work[Out], reply: Callable[[Out], Reply]) -> Reply:
        """Run `work` as `Database.write` does, and return the `reply` to its result.

        With a key, the reply is recorded in the same transaction; a retry gets the record. Raises
        KeyInFlightError (409) or KeyReusedError (422).
        """
        return await self._writes.write(work, reply, await self._claim())

    async def write_batched(
        self, work: WriteGroup[In, Out], item: In, reply: Callable[[Out], Reply]
    ) -> Reply:
        """Run `work` as `Database.write_batched` does, else as `write`."""
        return await self._writes.write_batched(work, item, reply, await self._claim())

    @property
    def _writes(self) -> IdempotentWrites:
        writes: IdempotentWrites = self.call.extensions["idempotency"]
        return writes

    async def _claim(self) -> Claim | None:
        if self.key is None:
            return None
        scope = self.call.scope
        target = b"%b?%b" % (self.call.path.encode(), scope["query_string"])
        digest = blake2b(
            b"%b %b\n" % (scope["method"].encode(), target), digest_size=FINGERPRINT_BYTES
        )
        digest.update(await self.call.body())
        return Claim(self.user_id, self.key, digest.hexdigest())


def idempotent(handler: Handler) -> Handler:
    """Accept and document Idempotency-Key, and pass an `Attempt` as `attempt` (a decorator).

    It stands below `token_required`: keys belong to a user. Its documented status of success needs
    the header Idempotency-Replayed. Operations without this decorator ignore the header. Raises
    APIError (400) if the key is invalid.
    """

    @wraps(handler)
    async def guarded(call: Call, *, current_user: CurrentUser, **values: Any) -> Reply:
        attempt = Attempt(call, current_user.id, _key(call.scope["headers"]))
        return await handler(call, current_user=current_user, attempt=attempt, **values)

    documented = document_headers(IdempotencyHeaders)(guarded)
    return document_status(409, None, "Retry-After")(document_errors(409, 422)(documented))


def _key(headers: Any) -> str | None:
    keys = [value for name, value in headers if name == b"idempotency-key"]
    if not keys:
        return None
    if len(keys) > 1:
        raise APIError("Idempotency-Key is given more than once")
    if not KEY.fullmatch(keys[0]):
        raise APIError(f"Idempotency-Key must be 1 to {MAX_KEY_LENGTH} visible ASCII characters")
    key: str = keys[0].decode()
    return key
