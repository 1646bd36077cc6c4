"""Convert requests of each kind to Redis commands, and the replies to results."""

from collections.abc import Sequence
from hashlib import sha1
from itertools import chain
from typing import Any, NamedTuple, Protocol

MAX_MGET_KEYS = 500  # keys of one MGET

Command = tuple[Any, ...]  # the name of a command and its arguments


class CommandKind(Protocol):
    """A kind of request: makes its commands, and its results from the replies.

    scripts: sources of the Lua scripts that the commands call by digest (EVALSHA).
    """

    @property
    def scripts(self) -> Sequence[str]:
        """The sources of the Lua scripts."""

    def commands(self, requests: Sequence[Any]) -> list[Command]:
        """Return the commands for all requests of a batch."""

    def answers(
        self, requests: Sequence[Any], replies: Sequence[Any], run_id: str
    ) -> Sequence[Any]:
        """Return a result for each request. run_id: of the Redis server; empty if unknown."""


class GetMany:
    """Reads keys. A request is a sequence of keys, read atomically; result: (run id, values)."""

    scripts = ()

    def commands(self, requests: Sequence[Sequence[str]]) -> list[Command]:
        """Return MGETs of bounded size, because each blocks Redis. A group reads a key once."""
        return [("MGET", *dict.fromkeys(chain.from_iterable(group))) for group in _groups(requests)]

    def answers(
        self, requests: Sequence[Sequence[str]], replies: Sequence[Any], run_id: str
    ) -> list[tuple[str, list[bytes | None]]]:
        """Return the run id and the values of each request."""
        results = []
        for group, reply in zip(_groups(requests), replies, strict=True):
            keys = dict.fromkeys(chain.from_iterable(group))
            values = dict(zip(keys, reply, strict=True))
            results += [(run_id, [values[key] for key in request]) for request in group]
        return results


def _groups(requests: Sequence[Sequence[str]]) -> Sequence[Sequence[Sequence[str]]]:
    """Split requests into groups, one for each MGET. A group of MAX_MGET_KEYS or more is full."""
    if sum(map(len, requests)) <= MAX_MGET_KEYS:
        return [requests]
    groups: list[list[Sequence[str]]] = [[]]
    number = 0
    for request in requests:
        if number >= MAX_MGET_KEYS:
            groups.append([])
            number = 0
        groups[-1].append(request)
        number += len(request)
    return groups


GET_MANY = GetMany()


class Script:
    """Calls a Lua script once for each request (keys, arguments). Result: (run id, reply)."""

    def __init__(self, source: str) -> None:
        self.scripts = (source,)
        self._digest = digest_of(source)

    def commands(self, requests: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Command]:
        """Return one EVALSHA for each request."""
        return [
            ("EVALSHA", self._digest, len(keys), *keys, *arguments) for keys, arguments in requests
        ]

    def answers(
        self, requests: Sequence[Any], replies: Sequence[Any], run_id: str
    ) -> list[tuple[str, Any]]:
        """Return the run id and the reply to each request."""
        return [(run_id, reply) for reply in replies]


class ScriptLoad(NamedTuple):
    """Loads the scripts `sources` into Redis."""

    sources: tuple[str, ...]
    scripts: tuple[str, ...] = ()

    def commands(self, requests: Sequence[None]) -> list[Command]:
        """Return a SCRIPT LOAD for each script."""
        return [("SCRIPT", "LOAD", script) for script in self.sources]

    def answers(
        self, requests: Sequence[None], replies: Sequence[Any], run_id: str
    ) -> Sequence[None]:
        """Return None for each request."""
        return requests


def digest_of(script: str) -> str:
    """Return the SHA-1 digest by which EVALSHA names a script."""
    return sha1(script.encode()).hexdigest()  # noqa: S324  (Redis's own digest)
