"""Kinds of commands: how requests become commands, and replies become results."""

from collections.abc import Sequence
from hashlib import sha1
from itertools import chain
from typing import Any, NamedTuple, Protocol

AT_ONCE = 500  # keys of one command

Command = tuple[Any, ...]


class CommandKind(Protocol):
    """A kind of request: its commands, and the results from their replies.

    scripts: the scripts that the commands call by digest.
    """

    @property
    def scripts(self) -> Sequence[str]:
        """The sources of the scripts."""

    def commands(self, requests: Sequence[Any]) -> list[Command]:
        """Return the commands for all requests."""

    def answers(
        self, requests: Sequence[Any], replies: Sequence[Any], run_id: str
    ) -> Sequence[Any]:
        """Return a result for each request. `run_id`: of the Redis that replied, if known."""


class GetMany:
    """Reads the values of keys: (run id, values). The keys of a request are read atomically."""

    scripts = ()

    def commands(self, requests: Sequence[Sequence[str]]) -> list[Command]:
        """Read each key once. The keys of a command are limited: it blocks Redis meanwhile."""
        return [("MGET", *dict.fromkeys(chain.from_iterable(group))) for group in _groups(requests)]

    def answers(
        self, requests: Sequence[Sequence[str]], replies: Sequence[Any], run_id: str
    ) -> list[tuple[str, list[bytes | None]]]:
        """Return the values of each request."""
        results = []
        for group, reply in zip(_groups(requests), replies, strict=True):
            keys = dict.fromkeys(chain.from_iterable(group))
            values = dict(zip(keys, reply, strict=True))
            results += [(run_id, [values[key] for key in request]) for request in group]
        return results


def _groups(requests: Sequence[Sequence[str]]) -> Sequence[Sequence[Sequence[str]]]:
    """Group requests, each as a whole. A group with AT_ONCE keys is full."""
    if sum(map(len, requests)) <= AT_ONCE:
        return [requests]
    groups: list[list[Sequence[str]]] = [[]]
    number = 0
    for request in requests:
        if number >= AT_ONCE:
            groups.append([])
            number = 0
        groups[-1].append(request)
        number += len(request)
    return groups


GET_MANY = GetMany()


class Script:
    """Calls a script once for each request: (keys, arguments) -> (run id, reply)."""

    def __init__(self, source: str) -> None:
        self.scripts = (source,)
        self._digest = digest_of(source)

    def commands(self, requests: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Command]:
        """Return one call for each request."""
        return [
            ("EVALSHA", self._digest, len(keys), *keys, *arguments) for keys, arguments in requests
        ]

    def answers(
        self, requests: Sequence[Any], replies: Sequence[Any], run_id: str
    ) -> list[tuple[str, Any]]:
        """Return the reply to each request."""
        return [(run_id, reply) for reply in replies]


class ScriptLoad(NamedTuple):
    """Loads scripts into Redis."""

    sources: tuple[str, ...]
    scripts: tuple[str, ...] = ()

    def commands(self, requests: Sequence[None]) -> list[Command]:
        """Return a SCRIPT LOAD for each script."""
        return [("SCRIPT", "LOAD", script) for script in self.sources]

    def answers(
        self, requests: Sequence[None], replies: Sequence[Any], run_id: str
    ) -> Sequence[None]:
        """Return no result."""
        return requests


def digest_of(script: str) -> str:
    """Return the digest by which Redis identifies a script."""
    return sha1(script.encode()).hexdigest()  # noqa: S324  (Redis's own digest)
