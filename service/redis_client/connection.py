"""A connection to Redis. Several batches may be under way on it."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hiredis import PushNotification, Reader, pack_command
from redis.exceptions import InvalidResponse, NoScriptError, RedisError, ResponseError

from service.redis_client.commands import CommandKind, ScriptLoad

if TYPE_CHECKING:
    from service.redis_client.batcher import RedisBatcher

UNDER_WAY = 4  # batches: Redis works on some while this process reads the replies to others
NOTHING = object()  # an incomplete reply

Callback = Callable[[Any], None]  # gets the result, or an error
# A request, its callback, and the batcher's tick in which it arrived. A plain tuple is cheaper than
# an object, and each HTTP request makes two.
PendingRequest = tuple[Any, Callback, int]
PendingRequests = dict[CommandKind, list[PendingRequest]]  # by kind, in order of arrival


class Batch(NamedTuple):
    """The requests of one write.

    numbers: of commands, for each kind. number: of commands in all. is_retry: the write loads the
    scripts first.
    """

    requests: PendingRequests
    numbers: list[int]
    number: int
    is_retry: bool


class RedisConnection(asyncio.Protocol):
    """A connection that redis-py opened and handed over: no task waits for replies."""

    is_proven = False  # Redis has replied on it
    _is_over = False

    def __init__(self, batcher: "RedisBatcher", connection: Any) -> None:
        self._batcher = batcher
        is_ended = connection._reader.at_eof()  # Redis has closed it already
        self._run_id = getattr(connection, "octavo_run_id", "")
        # Kept, as a deleted writer closes its transport (Python 3.12).
        self._writer, connection._writer = connection._writer, None
        self._transport = self._writer.transport
        self._replier = Reader(
            protocolError=InvalidResponse, replyError=_error_reply, notEnoughData=NOTHING
        )
        self._replies: list[Any] = []
        self._batches: deque[Batch] = deque()
        self._transport.set_protocol(self)
        if is_ended:
            self._transport.abort()

    @property
    def has_room(self) -> bool:
        """Whether another batch may be sent."""
        return len(self._batches) < UNDER_WAY

    def unanswered(self) -> PendingRequests:
        """Return the requests without a reply."""
        return merge(*(batch.requests for batch in self._batches))

    @property
    def oldest(self) -> int | None:
        """The tick in which the oldest unanswered request arrived."""
        return oldest(self._batches[0].requests) if self._batches else None

    def send(self, requests: PendingRequests, *, is_retry: bool = False) -> None:
        """Send requests in one write."""
        numbers, packed = [], []
        for kind, of_kind in requests.items():
            commands = kind.commands([request for request, _, _ in of_kind])
            numbers.append(len(commands))
            packed += [pack_command(command) for command in commands]
        self._batches.append(Batch(requests, numbers, len(packed), is_retry))
        self._transport.write(b"".join(packed))

    def data_received(self, data: bytes) -> None:
        """Read the replies of Redis."""
        if self._is_over:  # its requests have failed, and the batcher has a new connection
            return
        gets, replies = self._replier.gets, self._replies
        self._replier.feed(data)
        try:
            while (reply := gets()) is not NOTHING:
                if isinstance(reply, PushNotification):
                    continue  # not a reply to a command
                if not self._batches:
                    raise InvalidResponse("Redis sent a reply without a request")
                replies.append(reply)
                if len(replies) == self._batches[0].number:
                    self._deliver(self._batches.popleft(), replies)
                    replies = self._replies = []
        except InvalidResponse as error:
            self._batcher.fail(error)

    def _deliver(self, batch: Batch, replies: list[Any]) -> None:
        self.is_proven = True
        begin = 0
        for (kind, requests), number in zip(batch.requests.items(), batch.numbers, strict=True):
            end = begin + number
            self._deliver_kind(kind, requests, replies[begin:end], is_retry=batch.is_retry)
            begin = end
        self._batcher.send()

    def _deliver_kind(
        self,
        kind: CommandKind,
        requests: list[PendingRequest],
        replies: Sequence[Any],
        *,
        is_retry: bool,
    ) -> None:
        results: Sequence[Any]
        error = next((reply for reply in replies if isinstance(reply, Exception)), None)
        try:
            if isinstance(error, NoScriptError) and not is_retry:
                # A new Redis, or its scripts were flushed.
                load: PendingRequest = (None, _ignore, requests[0][2])
                return self.send(
                    {ScriptLoad(tuple(kind.scripts)): [load], kind: requests}, is_retry=True
                )
            if error:
                results = [error] * len(requests)
            else:
                arguments = [request for request, _, _ in requests]
                results = kind.answers(arguments, replies, self._run_id)
        except Exception as failure:
            results = [failure] * len(requests)
        for request, result in zip(requests, results, strict=True):
            deliver(request, result)
        return None

    def connection_lost(self, error: Exception | None) -> None:
        """Report the loss to the batcher."""
        self._batcher.lost(self)

    def end(self) -> None:
        """Close the connection now."""
        self._is_over = True
        self._transport.abort()


def merge(*several: PendingRequests) -> PendingRequests:
    """Merge requests into new lists."""
    merged: PendingRequests = {}
    for requests in several:
        for kind, of_kind in requests.items():
            merged.setdefault(kind, []).extend(of_kind)
    return merged


def oldest(requests: PendingRequests) -> int:
    """Return the tick in which the oldest request arrived."""
    return min(of_kind[0][2] for of_kind in requests.values())


def deliver(request: PendingRequest, result: Any) -> None:
    """Call the callback of a request. Its error must not affect other requests."""
    try:
        request[1](result)
    except Exception as error:
        details = {"message": "A callback of the Redis client failed", "exception": error}
        asyncio.get_running_loop().call_exception_handler(details)


def _error_reply(message: str) -> RedisError:
    """Make the exception for an error reply."""
    return (NoScriptError if message.startswith("NOSCRIPT") else ResponseError)(message)


def _ignore(result: Any) -> None:
    """Ignore the result of a script load: if it fails, the call after it fails as well."""
