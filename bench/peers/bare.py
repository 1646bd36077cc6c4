"""The ceilings: an ASGI application that repeats Octavo's answers, byte for byte.

`ANSWERS` names the file in which bench.same has kept them.
"""

import json
import os
from pathlib import Path
from typing import Any


def kind_of(method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]]) -> str:
    """Tell which answer is asked for."""
    if method == "POST":
        return "create"
    if path != "/api/books":
        return "304" if any(name == b"if-none-match" for name, _ in headers) else "item"
    if b"cursor=" in query:
        return "cursor"
    return "filtered" if b"price_min=" in query else "page"


def load(path: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Read the answers, as the messages that are sent."""
    found = {}
    for kind, (status, headers, body) in json.loads(path.read_text(encoding="utf-8")).items():
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        found[kind] = (
            {"type": "http.response.start", "status": status, "headers": pairs},
            {"type": "http.response.body", "body": body.encode()},
        )
    return found


answers = load(Path(os.environ["ANSWERS"])) if "ANSWERS" in os.environ else {}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer."""
    if scope["type"] == "lifespan":
        for done in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{done}.complete"})
        return
    kind = kind_of(scope["method"], scope["path"], scope["query_string"], scope["headers"])
    if kind == "create":
        while (await receive()).get("more_body"):
            pass
    start, body = answers[kind]
    await send({**start})  # servers may add to it
    await send({**body})
