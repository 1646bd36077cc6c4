"""What can be asked of a Redis: how it becomes commands, and their replies become answers."""

from collections.abc import Sequence
from hashlib import sha1
from itertools import chain
from typing import Any, NamedTuple, Protocol

AT_ONCE = 500  # keys of one command

Command = tuple[Any, ...]


class CommandKind(Protocol):
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


class GetMany:
    """Reads what stands under keys, all of one asker's at one instant: (who replied, values)."""

    scripts = ()

    def commands(self, asked: Sequence[Sequence[str]]) -> list[Command]:
        """Ask for each key once, for so many keys at a time: Redis does nothing else meanwhile."""
        return [("MGET", *dict.fromkeys(chain.from_iterable(own))) for own in _groups(asked)]

    def answers(
        self, asked: Sequence[Sequence[str]], replies: Sequence[Any], who: str
    ) -> list[tuple[str, list[bytes | None]]]:
        """Give each its values."""
        found = []
        for askers, reply in zip(_groups(asked), replies, strict=True):
            keys = dict.fromkeys(chain.from_iterable(askers))
            values = dict(zip(keys, reply, strict=True))
            found += [(who, [values[key] for key in own]) for own in askers]
        return found


def _groups(asked: Sequence[Sequence[str]]) -> Sequence[Sequence[Sequence[str]]]:
    """Put askers together, each whole, as long as they have not too many keys."""
    if sum(map(len, asked)) <= AT_ONCE:
        return [asked]
    groups: list[list[Sequence[str]]] = [[]]
    number = 0
    for own in asked:
        if number >= AT_ONCE:
            groups.append([])
            number = 0
        groups[-1].append(own)
        number += len(own)
    return groups


GET_MANY = GetMany()


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


class ScriptLoad(NamedTuple):
    """Tells Redis scripts."""

    told: tuple[str, ...]
    scripts: tuple[str, ...] = ()

    def commands(self, asked: Sequence[None]) -> list[Command]:
        """Tell each once."""
        return [("SCRIPT", "LOAD", script) for script in self.told]

    def answers(self, asked: Sequence[None], replies: Sequence[Any], who: str) -> Sequence[None]:
        """It is done."""
        return asked


def digest_of(script: str) -> str:
    """Give the digest that Redis knows a script by."""
    return sha1(script.encode()).hexdigest()  # noqa: S324  (Redis's own digest)
