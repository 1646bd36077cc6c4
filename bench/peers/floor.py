"""The floor: sockets and Redis alone, without HTTP.

    python -m bench.peers.floor PORT

Each chunk that arrives counts as one request. For each request the server decides a rate limit and
reads a key, as Octavo does, over Octavo's Redis client. Then it sends a recorded response. The
server parses no HTTP, identifies no client, and neither sends nor checks the result of the limit.
The cost of Octavo above this floor is Octavo's own. No Python server can avoid the floor.
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
CHARGES = [(Charge(f"floor:caller:{n}", (Policy(RATE, 60),)),) for n in range(CALLERS)]


class FloorProtocol(asyncio.Protocol):
    """A connection."""

    number = 0  # of requests, over all connections

    def __init__(self, batcher: RedisBatcher, responses: dict[str, bytes]) -> None:
        self._batcher = batcher
        self._responses = responses

    def connection_made(self, transport: Any) -> None:
        """Store the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Decide a limit and read a key."""
        number = FloorProtocol.number = FloorProtocol.number + 1
        method, target, _ = data.split(b" ", 2)
        path, _, query = target.partition(b"?")
        tag = [(b"if-none-match", b"")] if b"\r\nIf-None-Match: " in data else []
        self._kind = kind_of(method.decode(), path.decode(), query, tag)
        self._batcher.submit(DECIDING, CHARGES[number % CALLERS], self._decided)
        self._batcher.submit(GET_MANY, KEYS[number % len(KEYS)], self._read)

    def _decided(self, decision: Any) -> None:
        self._is_admitted = decision.admitted

    def _read(self, values: Any) -> None:
        self._transport.write(self._responses[self._kind])


def written(start: dict[str, Any], body: dict[str, Any]) -> bytes:
    """Return the bytes of a response."""
    status = HTTPStatus(start["status"])
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
    lines += [b"%b: %b" % header for header in start["headers"]]
    return b"\r\n".join([*lines, b"", body["body"]])


async def main(port: int) -> None:
    """Serve until the process ends."""
    pool = BlockingConnectionPool.from_url(os.environ["REDIS_URL"])
    batcher = RedisBatcher(pool, deadline=1.0)
    known = load(Path(os.environ["RESPONSES"])) if os.environ.get("RESPONSES") else {}
    responses = {kind: written(*messages) for kind, messages in known.items()}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: FloorProtocol(batcher, responses), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
