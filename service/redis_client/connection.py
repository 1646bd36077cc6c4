"""A pipelined connection to Redis: send several batches before the first reply."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hiredis import PushNotification, Reader, pack_command
from redis.exceptions import InvalidResponse, NoScriptError, RedisError, ResponseError

from service.redis_client.commands import CommandKind, ScriptLoad

if TYPE_CHECKING:
    from service.redis_client.batcher import RedisBatcher

MAX_UNANSWERED_BATCHES = 4  # Redis runs some of them while this process reads replies
NOTHING = object()  # stands for an incomplete reply

Callback = Callable[[Any], None]  # gets the result or an exception
# A request, its callback, and the timer tick of the batcher in which it arrived. A plain tuple is
# cheaper than an object, and each HTTP request makes two.
PendingRequest = tuple[Any, Callback, int]
PendingRequests = dict[CommandKind, list[PendingRequest]]  # by kind, in order of arrival


class Batch(NamedTuple):
    """The requests of one write.

    numbers: number of commands of each kind. number: of all commands. is_retry: the batch loads
    missing scripts, then repeats its requests.
    """

    requests: PendingRequests
    numbers: list[int]
    number: int
    is_retry: bool


class RedisConnection(asyncio.Protocol):
    """An asyncio.Protocol on a connection that redis-py opened: no task waits for replies."""

    is_proven = False  # whether Redis has replied on this connection
    _is_over = False

    def __init__(self, batcher: "RedisBatcher", connection: Any) -> None:
        self._batcher = batcher
        is_ended = connection._reader.at_eof()  # Redis has closed it already
        self._run_id = getattr(connection, "octavo_run_id", "")
        # Keep the StreamWriter: since Python 3.12, a deleted writer closes its transport.
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
        return len(self._batches) < MAX_UNANSWERED_BATCHES

    def unanswered(self) -> PendingRequests:
        """Return the requests that have been sent and have no reply."""
        return merge(*(batch.requests for batch in self._batches))

    @property
    def oldest(self) -> int | None:
        """The timer tick in which the oldest request without a reply arrived, or None."""
        return oldest(self._batches[0].requests) if self._batches else None

    def send(self, requests: PendingRequests, *, is_retry: bool = False) -> None:
        """Send requests as one batch. Raises an error if an argument cannot be encoded."""
        numbers, packed = [], []
        for kind, of_kind in requests.items():
            commands = kind.commands([request for request, _, _ in of_kind])
            numbers.append(len(commands))
            packed += [pack_command(command) for command in commands]
        self._batches.append(Batch(requests, numbers, len(packed), is_retry))
        self._transport.write(b"".join(packed))

    def data_received(self, data: bytes) -> None:
        """Parse replies, and call the callbacks of each complete batch."""
        if self._is_over:  # closed by the batcher, which has failed the requests
            return
        gets, replies = self._replier.gets, self._replies
        self._replier.feed(data)
        try:
            while (reply := gets()) is not NOTHING:
                if isinstance(reply, PushNotification):
                    continue  # RESP3 push data: no reply to a command
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
                # Redis was restarted, or its scripts were flushed: load them, and call again.
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
        """Report to the batcher that the connection is closed."""
        self._batcher.lost(self)

    def end(self) -> None:
        """Close the connection now."""
        self._is_over = True
        self._transport.abort()


def merge(*several: PendingRequests) -> PendingRequests:
    """Merge requests by kind, into new lists."""
    merged: PendingRequests = {}
    for requests in several:
        for kind, of_kind in requests.items():
            merged.setdefault(kind, []).extend(of_kind)
    return merged


def oldest(requests: PendingRequests) -> int:
    """Return the timer tick in which the oldest request arrived."""
    return min(of_kind[0][2] for of_kind in requests.values())


def deliver(request: PendingRequest, result: Any) -> None:
    """Call the callback of a request. Report its exception to the loop's exception handler."""
    try:
        request[1](result)
    except Exception as error:
        details = {"message": "A callback of the Redis client failed", "exception": error}
        asyncio.get_running_loop().call_exception_handler(details)


def _error_reply(message: str) -> RedisError:
    """Return the exception for an error reply of Redis."""
    return (NoScriptError if message.startswith("NOSCRIPT") else ResponseError)(message)


def _ignore(result: Any) -> None:
    """Ignore the result of SCRIPT LOAD: if it fails, the EVALSHA after it fails as well."""
