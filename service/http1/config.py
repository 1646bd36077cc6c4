"""Hypercorn's configuration, and what HTTP/1.1 has to know beyond it."""

from typing import TYPE_CHECKING, Any, Literal

from hypercorn.config import Config

if TYPE_CHECKING:
    from service.overload import Overload


class ServerConfig(Config):
    """Hypercorn's, with what `service.http1` reads."""

    http1: Literal["httptools", "h11"] = "httptools"
    draining = False  # clients are told to close
    header_seconds = 5.0
    overload: "Overload | None" = None
    serving: Any = None  # once there is a connection: what all of them share
