"""The floor: sockets and Redis alone, and nothing that an answer is made of.

    python -m bench.peers.floor PORT

Whatever comes in one piece is taken for a request. A limit is decided and a key is read for it, as
Octavo does, over Octavo's own line to Redis; then the bytes that Octavo once sent are sent again.
No HTTP is read, no caller recognised, nothing is told of the limit or looked at: what Octavo costs
beyond this is its own, and what this costs nobody in Python saves.
"""

import asyncio
import os
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Any

import uvloop
from redis.asyncio import BlockingConnectionPool

from bench.peers.bare import kind_of, load
from bench.stage import RATE
from bench.work import CALLERS
from service.limits.redis_store import DECIDING
from service.limits.types import Charge, Policy
from service.redis_client import GET_MANY, RedisBatcher

KEYS = [(f"floor:{n}",) for n in range(100)]
CLAIMS = [(Charge(f"floor:caller:{n}", (Policy(RATE, 60),)),) for n in range(CALLERS)]


class Asker(asyncio.Protocol):
    """A connection."""

    number = 0  # of requests, over all connections

    def __init__(self, batcher: RedisBatcher, answers: dict[str, bytes]) -> None:
        self._batcher = batcher
        self._answers = answers

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Ask for a limit and a key."""
        number = Asker.number = Asker.number + 1
        method, target, _ = data.split(b" ", 2)
        path, _, query = target.partition(b"?")
        tag = [(b"if-none-match", b"")] if b"\r\nIf-None-Match: " in data else []
        self._kind = kind_of(method.decode(), path.decode(), query, tag)
        self._batcher.submit(DECIDING, CLAIMS[number % CALLERS], self._decided)
        self._batcher.submit(GET_MANY, KEYS[number % len(KEYS)], self._read)

    def _decided(self, decision: Any) -> None:
        self._is_admitted = decision.admitted

    def _read(self, found: Any) -> None:
        self._transport.write(self._answers[self._kind])


def written(start: dict[str, Any], body: dict[str, Any]) -> bytes:
    """Give an answer as it goes over the wire."""
    status = HTTPStatus(start["status"])
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
    lines += [b"%b: %b" % header for header in start["headers"]]
    return b"\r\n".join([*lines, b"", body["body"]])


async def main(port: int) -> None:
    """Serve until it is ended."""
    pool = BlockingConnectionPool.from_url(os.environ["REDIS_URL"])
    batcher = RedisBatcher(pool, deadline=1.0)
    known = load(Path(os.environ["ANSWERS"])) if os.environ.get("ANSWERS") else {}
    answers = {kind: written(*messages) for kind, messages in known.items()}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Asker(batcher, answers), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
