"""A connection to a Redis, on which several batches may be under way."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from itertools import repeat
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

from hiredis import PushNotification, Reader, pack_command
from redis.exceptions import InvalidResponse, NoScriptError, RedisError, ResponseError

from service.patience import SLEEP
from service.wire.kinds import Kind, Load

if TYPE_CHECKING:
    from service.wire.wire import Wire

UNDER_WAY = 4  # batches: Redis has some to answer while this process reads others
NOTHING = object()  # no whole reply

Tell = Callable[[Any], None]  # is told the answer, or the error that there is instead
Ask = tuple[Kind, Any, Tell]


class Part(NamedTuple):
    """What was asked of one kind, by so many commands."""

    kind: Kind
    asked: list[Any]
    tellers: list[Tell]
    number: int


class Batch(NamedTuple):
    """What went in one write. since: the tick of its line; is_again: its scripts were just told."""

    parts: list[Part]
    number: int
    since: int
    is_again: bool


class Line(asyncio.Protocol):
    """A connection that redis-py has made, greeted, and given away: no task waits for replies."""

    is_proven = False  # it has replied

    def __init__(self, wire: "Wire", connection: Any, deadline: float) -> None:
        self._wire = wire
        self._who = getattr(connection, "octavo_run_id", "")
        # Held, as it closes the transport when it goes (Python 3.12).
        self._writer, connection._writer = connection._writer, None
        self._transport = self._writer.transport
        self._replier = Reader(
            protocolError=InvalidResponse, replyError=_refused, notEnoughData=NOTHING
        )
        self._replies: list[Any] = []
        self._batches: deque[Batch] = deque()
        self._patience = ceil(deadline / SLEEP)
        self._ticks = 0
        self._clock: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._transport.set_protocol(self)

    @property
    def has_room(self) -> bool:
        """Whether another batch may go."""
        return len(self._batches) < UNDER_WAY

    def asked(self) -> list[Ask]:
        """Give what has no answer yet."""
        return [
            (part.kind, what, tell)
            for batch in self._batches
            for part in batch.parts
            for what, tell in zip(part.asked, part.tellers, strict=True)
        ]

    def send(self, asked: Sequence[Ask], *, is_again: bool = False) -> None:
        """Ask all of it in one write."""
        kinds: dict[Kind, tuple[list[Any], list[Tell]]] = {}
        for kind, what, tell in asked:
            if (of_kind := kinds.get(kind)) is None:
                of_kind = kinds[kind] = ([], [])
            of_kind[0].append(what)
            of_kind[1].append(tell)
        parts, packed = [], []
        for kind, (told, tellers) in kinds.items():
            commands = kind.commands(told)
            parts.append(Part(kind, told, tellers, len(commands)))
            packed += [pack_command(command) for command in commands]
        self._batches.append(Batch(parts, len(packed), self._ticks, is_again))
        self._transport.write(b"".join(packed))
        if self._clock is None:
            self._clock = self._loop.call_later(SLEEP, self._tick)

    def _tick(self) -> None:
        """Count as Patience does: while the loop is late, replies that are there are not read."""
        self._clock = None
        self._ticks += 1
        if self._batches and self._ticks - self._batches[0].since >= self._patience:
            self._wire.fail(TimeoutError())
        elif self._batches:
            self._clock = self._loop.call_later(SLEEP, self._tick)

    def data_received(self, data: bytes) -> None:
        """Read what Redis replies."""
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
            self._wire.fail(error)

    def _deliver(self, batch: Batch, replies: list[Any]) -> None:
        self.is_proven = True
        begin = 0
        for part in batch.parts:
            end = begin + part.number
            self._tell(part, replies[begin:end], is_again=batch.is_again)
            begin = end
        self._wire.send()

    def _tell(self, part: Part, replies: Sequence[Any], *, is_again: bool) -> None:
        kind, asked, tellers, _ = part
        answers: Sequence[Any]
        failed = next((reply for reply in replies if isinstance(reply, Exception)), None)
        if isinstance(failed, NoScriptError) and not is_again:
            # A new Redis, or one that was flushed.
            load = (Load(tuple(kind.scripts)), None, _ignore)
            return self.send([load, *zip(repeat(kind), asked, tellers)], is_again=True)
        try:
            answers = [failed] * len(asked) if failed else kind.answers(asked, replies, self._who)
        except Exception as error:
            answers = [error] * len(asked)
        for answer, tell in zip(answers, tellers, strict=True):
            try:
                tell(answer)
            except Exception as error:  # of one, and the others have their answers
                self._loop.call_exception_handler({"message": "Redis's answer", "exception": error})
        return None

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the wire."""
        self._wire.lost(self)

    def end(self) -> None:
        """Close it now."""
        if self._clock is not None:
            self._clock.cancel()
        self._transport.abort()


def _refused(told: str) -> RedisError:
    """Make the error that Redis replies with."""
    return (NoScriptError if told.startswith("NOSCRIPT") else ResponseError)(told)


def _ignore(answer: Any) -> None:
    """Be told of what comes before something else, and fails with it."""
