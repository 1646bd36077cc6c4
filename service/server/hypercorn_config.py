"""The configuration of Hypercorn."""

import socket
import sys
from collections.abc import Sequence

from quart import Quart

from service.config import Settings
from service.http.error_handler import server_error
from service.server.http1 import ServerConfig, install
from service.server.http1.transport import STALL_SECONDS

KEEP_ALIVE_REQUESTS = 100_000  # for each connection; a new connection may reach another worker


def configured(app: Quart, sockets: Sequence[socket.socket], settings: Settings) -> ServerConfig:
    """Return the configuration of Hypercorn for an application and its listening sockets."""
    install()
    for sock in sockets:
        if sys.platform == "linux" and sock.family != socket.AF_UNIX:
            # Connections inherit this option. The system then closes a connection whose client does
            # not read. Hypercorn's own protocols, HTTP/2 and h11, have no such timeout.
            milliseconds = int(STALL_SECONDS * 1_000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    config = ServerConfig()
    config.bind = [f"fd://{sock.detach()}" for sock in sockets]
    config.errorlog = app.logger
    config.include_server_header = False
    config.backlog = settings.backlog
    config.http1 = settings.http1_parser
    config.keep_alive_timeout = settings.keep_alive_seconds
    config.keep_alive_max_requests = KEEP_ALIVE_REQUESTS
    config.graceful_timeout = settings.grace_seconds
    config.error_response = server_error
    config.header_seconds = settings.header_seconds
    config.admission = app.extensions["load_shedding"]
    config.shortcut = app.extensions.get("fast_path")
    if settings.tls_certfile is not None:
        config.certfile, config.keyfile = str(settings.tls_certfile), str(settings.tls_keyfile)
        config.alpn_protocols = ["h2", "http/1.1"] if settings.http2 else ["http/1.1"]
    return config
