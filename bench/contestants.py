"""The servers that are measured, and the command that starts each. Add an entry to add a server."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.work import BASIC_KINDS, KINDS

HOST = "127.0.0.1"
BIN = Path(sys.executable).parent
UVICORN = (
    "uvicorn", "--host", HOST, "--port", "{port}", "--http", "httptools", "--loop", "uvloop",
    "--no-access-log", "--log-level", "warning",
)  # fmt: skip
BEHIND_PROXY = ("--proxy-headers", "--forwarded-allow-ips", "*")
GRANIAN = (
    "granian", "--host", HOST, "--port", "{port}", "--interface", "asgi", "--loop", "uvloop",
    "--no-ws", "--log-level", "warning",
)  # fmt: skip
GUNICORN = (
    "gunicorn", "--bind", HOST + ":{port}", "--workers", "1", "--worker-class", "gthread",
    "--keep-alive", "75", "--log-level", "warning", "--threads",
)  # fmt: skip
HYPERCORN = ("hypercorn", "--bind", HOST + ":{port}", "--worker-class", "uvloop", "--workers", "0")
OCTAVO, DOCUMENTED, TUNED, CEILING = "Octavo", "as documented", "tuned", "ceiling"


@dataclass(frozen=True)
class Contestant:
    """A server: its name, its group, its command, and its settings that differ from the default.

    `{port}` in the command is replaced by the port.
    """

    name: str
    group: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def does_work(self) -> bool:
        """False for a ceiling: it repeats recorded responses."""
        return self.group != CEILING

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of work that it does. Ceilings and documented peers do the basic kinds."""
        return tuple(KINDS if self.group in {OCTAVO, TUNED} else BASIC_KINDS)

    def command_on(self, port: int) -> list[str]:
        """Return the command that listens on a port."""
        program, *others = (word.format(port=port) for word in self.command)
        return [str(BIN / program), *others]


SERVE = ("octavo", "serve", "--workers", "0", "--bind", HOST + ":{port}")
ALL = [
    Contestant("Octavo", OCTAVO, SERVE),
    Contestant("Octavo, no access log", OCTAVO, SERVE, {"ACCESS_LOG_SAMPLE": "0"}),
    Contestant(
        "Octavo on uvicorn",
        OCTAVO,
        (*UVICORN, "--no-proxy-headers", "--factory", "bench.peers.octavo:create_app"),
    ),
    Contestant(
        "Octavo on Granian", OCTAVO, (*GRANIAN, "--factory", "bench.peers.octavo:create_app")
    ),
    Contestant(
        "Flask, as documented",
        DOCUMENTED,
        (*GUNICORN, "8", "bench.peers.flask_documented:create_app()"),
    ),
    Contestant("Flask, tuned", TUNED, (*GUNICORN, "16", "bench.peers.flask_tuned:create_app()")),
    Contestant(
        "FastAPI, as documented",
        DOCUMENTED,
        (*UVICORN, *BEHIND_PROXY, "bench.peers.fastapi_documented:app"),
    ),
    Contestant(
        "FastAPI, tuned",
        TUNED,
        (*UVICORN, "--no-proxy-headers", "bench.peers.fastapi_tuned:app"),
    ),
    Contestant(
        "Litestar, as documented",
        DOCUMENTED,
        (*UVICORN, *BEHIND_PROXY, "bench.peers.litestar_documented:app"),
    ),
    Contestant(
        "Litestar, tuned",
        TUNED,
        (*UVICORN, "--no-proxy-headers", "bench.peers.litestar_tuned:app"),
    ),
    Contestant("bare ASGI on Hypercorn", CEILING, (*HYPERCORN, "bench.peers.bare:app")),
    Contestant(
        "bare ASGI on uvicorn", CEILING, (*UVICORN, "--no-proxy-headers", "bench.peers.bare:app")
    ),
    Contestant("bare ASGI on Granian", CEILING, (*GRANIAN, "bench.peers.bare:app")),
    Contestant("sockets and Redis alone", CEILING, ("python", "-m", "bench.peers.floor", "{port}")),
]
