"""Make the server's own error responses, and convert request targets in absolute form."""

import re
from collections.abc import Sequence

from service.server.http1.config import Headers, ServerConfig
from service.server.http1.parser import HOST_BYTES, RefusedError

ABSOLUTE = re.compile(rb"https?://([^/?#]+)(.*)", re.IGNORECASE | re.DOTALL)


def error_response(config: ServerConfig, status_code: int) -> tuple[Headers, bytes]:
    """Return the headers and body of an error response, with `Connection: close`."""
    headers, body = config.error_response(status_code)
    return [*headers, (b"connection", b"close")], body


def as_origin(
    target: bytes, headers: Sequence[tuple[bytes, bytes]]
) -> tuple[bytes, Sequence[tuple[bytes, bytes]]]:
    """Convert a target in absolute form to origin form; its host replaces Host (RFC 9112, 3.2.2).

    Raises RefusedError (400) if a host is longer than HOST_BYTES.
    """
    absolute = ABSOLUTE.fullmatch(target)
    if absolute is not None:
        target = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
        headers = [(b"host", absolute[1]), *(item for item in headers if item[0] != b"host")]
    if any(name == b"host" and len(value) > HOST_BYTES for name, value in headers):
        raise RefusedError(400)
    return target, headers
