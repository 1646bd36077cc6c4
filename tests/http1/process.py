"""A server in its own process, whose memory can be measured. Prints its port."""

import asyncio
from typing import Any

import uvloop

from tests.http1.site import bare

PIECE = 65_536


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Respond without end, never read and never respond, or respond at once."""
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
    async with bare(app) as site:
        print(site.port, flush=True)
        await asyncio.sleep(3_600)


if __name__ == "__main__":
    uvloop.run(serve())
