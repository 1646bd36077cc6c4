"""A connection to a Redis, on which several batches may be under way."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hiredis import PushNotification, Reader, pack_command
from redis.exceptions import InvalidResponse, NoScriptError, RedisError, ResponseError

from service.redis_client.commands import CommandKind, ScriptLoad

if TYPE_CHECKING:
    from service.redis_client.batcher import RedisBatcher

UNDER_WAY = 4  # batches: Redis has some to answer while this process reads others
NOTHING = object()  # no whole reply

Callback = Callable[[Any], None]  # is told the answer, or the error that there is instead
# A question: what is asked, who is told, and the tick of the wire in which it came. A plain tuple:
# there are two for each request.
PendingRequest = tuple[Any, Callback, int]
PendingRequests = dict[
    CommandKind, list[PendingRequest]
]  # by kind, in the order in which each came


class Batch(NamedTuple):
    """What went in one write. numbers: of the commands of each kind. is_again: its scripts were
    just told.
    """

    asks: PendingRequests
    numbers: list[int]
    number: int
    is_again: bool


class RedisConnection(asyncio.Protocol):
    """A connection that redis-py has made, greeted, and given away: no task waits for replies."""

    is_proven = False  # it has replied
    _is_over = False

    def __init__(self, batcher: "RedisBatcher", connection: Any) -> None:
        self._batcher = batcher
        is_ended = connection._reader.at_eof()  # by Redis, before anybody was told
        self._who = getattr(connection, "octavo_run_id", "")
        # Held, as it closes the transport when it goes (Python 3.12).
        self._writer, connection._writer = connection._writer, None
        self._transport = self._writer.transport
        self._replier = Reader(
            protocolError=InvalidResponse, replyError=_refused, notEnoughData=NOTHING
        )
        self._replies: list[Any] = []
        self._batches: deque[Batch] = deque()
        self._transport.set_protocol(self)
        if is_ended:
            self._transport.abort()

    @property
    def has_room(self) -> bool:
        """Whether another batch may go."""
        return len(self._batches) < UNDER_WAY

    def asked(self) -> PendingRequests:
        """Give what has no answer yet."""
        return together(*(batch.asks for batch in self._batches))

    @property
    def oldest(self) -> int | None:
        """When the oldest of that came."""
        return oldest(self._batches[0].asks) if self._batches else None

    def send(self, asked: PendingRequests, *, is_again: bool = False) -> None:
        """Ask all of it in one write."""
        numbers, packed = [], []
        for kind, asks in asked.items():
            commands = kind.commands([what for what, _, _ in asks])
            numbers.append(len(commands))
            packed += [pack_command(command) for command in commands]
        self._batches.append(Batch(asked, numbers, len(packed), is_again))
        self._transport.write(b"".join(packed))

    def data_received(self, data: bytes) -> None:
        """Read what Redis replies."""
        if self._is_over:  # who waited has been told, and the wire has another line
            return
        gets, replies = self._replier.gets, self._replies
        self._replier.feed(data)
        try:
            while (reply := gets()) is not NOTHING:
                if isinstance(reply, PushNotification):
                    continue  # nobody asked for it
                if not self._batches:
                    raise InvalidResponse("Redis replies, and was not asked")
                replies.append(reply)
                if len(replies) == self._batches[0].number:
                    self._deliver(self._batches.popleft(), replies)
                    replies = self._replies = []
        except InvalidResponse as error:
            self._batcher.fail(error)

    def _deliver(self, batch: Batch, replies: list[Any]) -> None:
        self.is_proven = True
        begin = 0
        for (kind, asks), number in zip(batch.asks.items(), batch.numbers, strict=True):
            end = begin + number
            self._tell(kind, asks, replies[begin:end], is_again=batch.is_again)
            begin = end
        self._batcher.send()

    def _tell(
        self,
        kind: CommandKind,
        asks: list[PendingRequest],
        replies: Sequence[Any],
        *,
        is_again: bool,
    ) -> None:
        answers: Sequence[Any]
        failed = next((reply for reply in replies if isinstance(reply, Exception)), None)
        try:
            if isinstance(failed, NoScriptError) and not is_again:
                # A new Redis, or one that was flushed.
                load: PendingRequest = (None, _ignore, asks[0][2])
                return self.send(
                    {ScriptLoad(tuple(kind.scripts)): [load], kind: asks}, is_again=True
                )
            whats = [what for what, _, _ in asks]
            answers = [failed] * len(asks) if failed else kind.answers(whats, replies, self._who)
        except Exception as error:
            answers = [error] * len(asks)
        for ask, answer in zip(asks, answers, strict=True):
            tell(ask, answer)
        return None

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the wire."""
        self._batcher.lost(self)

    def end(self) -> None:
        """Close it now."""
        self._is_over = True
        self._transport.abort()


def together(*several: PendingRequests) -> PendingRequests:
    """Put questions together, in lists of their own."""
    found: PendingRequests = {}
    for asked in several:
        for kind, asks in asked.items():
            found.setdefault(kind, []).extend(asks)
    return found


def oldest(asks: PendingRequests) -> int:
    """Give when the oldest of some questions came."""
    return min(of_kind[0][2] for of_kind in asks.values())


def tell(ask: PendingRequest, answer: Any) -> None:
    """Tell one: what goes wrong there is not for the others to bear."""
    try:
        ask[1](answer)
    except Exception as error:
        told = {"message": "Who had asked Redis", "exception": error}
        asyncio.get_running_loop().call_exception_handler(told)


def _refused(told: str) -> RedisError:
    """Make the error that Redis replies with."""
    return (NoScriptError if told.startswith("NOSCRIPT") else ResponseError)(told)


def _ignore(answer: Any) -> None:
    """Be told of what comes before something else, and fails with it."""
