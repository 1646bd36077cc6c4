"""The ceilings: an ASGI application that repeats Octavo's responses, byte for byte.

`RESPONSES` is the path of the file that bench.same.save has written.
"""

import json
import os
from pathlib import Path
from typing import Any


def kind_of(method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]]) -> str:
    """Return the kind of the requested response."""
    if method == "POST":
        return "create"
    if path != "/api/books":
        return "304" if any(name == b"if-none-match" for name, _ in headers) else "item"
    if b"cursor=" in query:
        return "cursor"
    return "filtered" if b"price_min=" in query else "page"


def load(path: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Read the responses, as the ASGI messages to send."""
    messages = {}
    for kind, (status, headers, body) in json.loads(path.read_text(encoding="utf-8")).items():
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        messages[kind] = (
            {"type": "http.response.start", "status": status, "headers": pairs},
            {"type": "http.response.body", "body": body.encode()},
        )
    return messages


responses = load(Path(os.environ["RESPONSES"])) if "RESPONSES" in os.environ else {}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Handle a request."""
    if scope["type"] == "lifespan":
        for done in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{done}.complete"})
        return
    kind = kind_of(scope["method"], scope["path"], scope["query_string"], scope["headers"])
    if kind == "create":
        while (await receive()).get("more_body"):
            pass
    start, body = responses[kind]
    await send({**start})  # a copy, because servers may add headers
    await send({**body})
