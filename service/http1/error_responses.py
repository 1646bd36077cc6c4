"""Error responses of the server itself, and absolute-form request targets."""

import re
from collections.abc import Sequence

from service.errors import MIMETYPE, http_error, problem
from service.http1.parser import HOST_BYTES, RefusedError
from service.logs import request_id
from service.unique import unique

ABSOLUTE = re.compile(rb"https?://([^/?#]+)(.*)", re.IGNORECASE | re.DOTALL)
Headers = list[tuple[bytes, bytes]]


def refusal(status_code: int) -> tuple[Headers, bytes]:
    """Return the headers and body of an error response that closes its connection."""
    request_id.set(unique())
    body = problem(http_error(status_code))
    headers = {
        "content-type": MIMETYPE,
        "content-length": str(len(body)),
        "connection": "close",
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "x-request-id": request_id.get(),
    }
    return [(name.encode(), value.encode()) for name, value in headers.items()], body


def as_origin(
    target: bytes, headers: Sequence[tuple[bytes, bytes]]
) -> tuple[bytes, Sequence[tuple[bytes, bytes]]]:
    """Take the host from an absolute-form target: it replaces the Host field (RFC 9112, 3.2.2).

    Raises RefusedError if the host is longer than any valid name.
    """
    absolute = ABSOLUTE.fullmatch(target)
    if absolute is not None:
        target = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
        headers = [(b"host", absolute[1]), *(item for item in headers if item[0] != b"host")]
    if any(name == b"host" and len(value) > HOST_BYTES for name, value in headers):
        raise RefusedError(400)
    return target, headers
