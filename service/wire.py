"""One line to a Redis: what a tick of the loop asks of it goes in one write.

A command of its own costs the most on the way, not in Redis. So whoever asks within one tick, and
whoever comes while an answer is on its way, is sent together, over one connection that is kept.
"""

import asyncio
from collections.abc import Sequence
from contextvars import Context
from hashlib import sha1
from typing import Any, Protocol

from hiredis import pack_command
from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from service.patience import Patience

AT_ONCE = 500  # keys of one command

Command = tuple[Any, ...]


class Kind(Protocol):
    """What can be asked: how several of it become commands, and their replies become answers.

    scripts: what these commands call by its digest.
    """

    @property
    def scripts(self) -> Sequence[str]:
        """Give them."""

    def commands(self, asked: Sequence[Any]) -> list[Command]:
        """Give the commands that ask all of it."""

    def answers(self, asked: Sequence[Any], replies: Sequence[Any], who: str) -> Sequence[Any]:
        """Give an answer to each. `who`: the run id of the Redis that replied, if it is known."""


class Read:
    """Reads what stands under keys, all of one asker's at one instant: (who replied, values)."""

    scripts = ()

    def commands(self, asked: Sequence[Sequence[str]]) -> list[Command]:
        """Ask for each key once, for so many keys at a time: Redis does nothing else meanwhile."""
        return [("MGET", *keys) for _, keys in _groups(asked)]

    def answers(
        self, asked: Sequence[Sequence[str]], replies: Sequence[Any], who: str
    ) -> list[tuple[str, list[bytes | None]]]:
        """Give each its values."""
        found = []
        for (askers, keys), reply in zip(_groups(asked), replies, strict=True):
            values = dict(zip(keys, reply, strict=True))
            found += [(who, [values[key] for key in own]) for own in askers]
        return found


def _groups(asked: Sequence[Sequence[str]]) -> list[tuple[list[Sequence[str]], dict[str, None]]]:
    """Put askers together, each whole, and the keys of all of them."""
    groups: list[tuple[list[Sequence[str]], dict[str, None]]] = [([], {})]
    for own in asked:
        if len(groups[-1][1]) >= AT_ONCE:
            groups.append(([], {}))
        groups[-1][0].append(own)
        groups[-1][1].update(dict.fromkeys(own))
    return groups


READ = Read()


class Script:
    """Calls a script, for each asker by itself: (keys, arguments) -> (who replied, its reply)."""

    def __init__(self, source: str) -> None:
        self.scripts = (source,)
        self._digest = digest_of(source)

    def commands(self, asked: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Command]:
        """Call it once for each."""
        return [("EVALSHA", self._digest, len(keys), *keys, *told) for keys, told in asked]

    def answers(
        self, asked: Sequence[Any], replies: Sequence[Any], who: str
    ) -> list[tuple[str, Any]]:
        """Give each its own."""
        return [(who, reply) for reply in replies]


def digest_of(script: str) -> str:
    """Give the digest that Redis knows a script by."""
    return sha1(script.encode()).hexdigest()  # noqa: S324  (Redis's own digest)


class Wire:
    """Asks one Redis.

    deadline: seconds; whoever has waited longer gets TimeoutError.
    """

    def __init__(self, pool: ConnectionPool, deadline: float) -> None:
        self._pool: Any = pool
        self._deadline = deadline
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked: list[tuple[Kind, Any, asyncio.Future[Any]]] = []
        self._sending: asyncio.Task[None] | None = None
        self._connection: Any = None

    def ask(self, kind: Kind, what: Any) -> asyncio.Future[Any]:
        """Ask in this tick. The answer, or RedisError, OSError, TimeoutError, is waited for."""
        loop = self._loop
        if loop is None:  # asked for once: in Python 3.11 it is a system call
            loop = self._loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._asked.append((kind, what, answer))
        if self._sending is None or self._sending.done():
            # In no request's context: it is for all of them.
            self._sending = loop.create_task(self._send(), context=Context())
        return answer

    async def load(self, kind: Kind) -> None:
        """Connect, and tell Redis the scripts of a kind. Raises as `ask`."""
        async with Patience(self._deadline):
            await self._load(kind)

    async def close(self) -> None:
        """End the connection, once what is under way has its answer."""
        if self._sending is not None:
            await asyncio.wait({self._sending})
        if self._connection is not None:
            await self._leave()
        self._loop = None

    async def _send(self) -> None:
        while self._asked:
            batch, self._asked = self._asked, []
            try:
                async with Patience(self._deadline):
                    await self._ask(batch)
            except Exception as error:
                batch += self._asked  # whoever queued behind has waited as well
                self._asked = []
                for _, _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                        answer.exception()  # seen, should its request have ended otherwise

    async def _ask(self, batch: Sequence[tuple[Kind, Any, asyncio.Future[Any]]]) -> None:
        kinds: dict[Kind, tuple[list[Any], list[asyncio.Future[Any]]]] = {}
        for kind, what, answer in batch:
            asked, waiting = kinds.setdefault(kind, ([], []))
            asked.append(what)
            waiting.append(answer)
        commands = {kind: kind.commands(asked) for kind, (asked, _) in kinds.items()}
        who, replies = await self._talk([one for some in commands.values() for one in some])
        begin = 0
        for kind, (asked, waiting) in kinds.items():
            end = begin + len(commands[kind])
            replied = replies[begin:end]
            if any(isinstance(reply, NoScriptError) for reply in replied):
                await self._load(kind)  # a new Redis, or one that was flushed
                _, replied = await self._talk(commands[kind])
            _tell(kind, asked, waiting, replied, who)
            begin = end

    async def _load(self, kind: Kind) -> None:
        _, replies = await self._talk([("SCRIPT", "LOAD", script) for script in kind.scripts])
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply

    async def _talk(self, commands: Sequence[Command]) -> tuple[str, list[Any]]:
        """Give who replied, and the replies: some may be errors."""
        is_kept = self._connection is not None
        try:
            return await self._talk_once(commands)
        except RedisConnectionError:
            if not is_kept:
                raise
        return await self._talk_once(commands)  # one that broke while it was idle is no outage

    async def _talk_once(self, commands: Sequence[Command]) -> tuple[str, list[Any]]:
        if self._connection is None:
            self._connection = self._pool.make_connection()  # of its own
            self._connection.socket_timeout = None  # there is one time-out for all of it
        connection = self._connection
        replies: list[Any] = []
        try:
            packed = [pack_command(command) for command in commands]
            await connection.send_packed_command(packed, check_health=False)
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except RedisConnectionError:
                    raise
                except RedisError as error:
                    replies.append(error)
        except BaseException:
            await self._leave()  # else a later answer is taken for another's
            raise
        return getattr(connection, "octavo_run_id", ""), replies

    async def _leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)


def _tell(
    kind: Kind, asked: Sequence[Any], waiting: Sequence[Any], replies: Sequence[Any], who: str
) -> None:
    failed = next((reply for reply in replies if isinstance(reply, Exception)), None)
    answers = [failed] * len(asked) if failed else kind.answers(asked, replies, who)
    for future, answer in zip(waiting, answers, strict=True):
        if future.done():
            continue  # nobody waits for it any more
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
