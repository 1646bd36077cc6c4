"""A server in a process of its own, whose memory can be weighed. Prints its port."""

import asyncio
from typing import Any

import uvloop

from tests.http1.site import bare

PIECE = 65_536


async def demanding(scope: Any, receive: Any, send: Any) -> None:
    """Answer without end, never read, or just answer."""
    if scope["path"] == "/endless":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": bytes(PIECE), "more_body": True})
    elif scope["path"] == "/unread":
        await asyncio.sleep(3_600)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"abc", "more_body": False})


async def serve() -> None:
    """Serve until killed."""
    async with bare(demanding) as site:
        print(site.port, flush=True)
        await asyncio.sleep(3_600)


if __name__ == "__main__":
    uvloop.run(serve())
