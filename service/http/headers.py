"""Parse the header fields of a request, once for each different header section.

Octavo's HTTP/1.1 parser gives requests with the same header bytes the same HeaderFields object,
which keeps the result.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from service.config import MAX_HOPS
from service.http.compression import Coding, negotiate
from service.server.http1 import HeaderFields

Pairs = Iterable[tuple[bytes, bytes]]

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
LABEL = rb"[A-Za-z0-9-]{1,63}"
HOST = re.compile(rb"(%b\.)*%b\.?(:[0-9]{1,5})?" % (LABEL, LABEL))
BODY = {b"content-length", b"transfer-encoding"}  # a request with a body has one of these
SPECIAL = {b"content-encoding", b"expect", b"upgrade"}  # only Quart handles these


class RequestHeaders(NamedTuple):
    """The parsed header fields of a request.

    host: the Host field; empty if it is invalid or repeated. is_special: only Quart can handle the
    request. content_types: lines of Content-Type. coding: the coding of the response that
    Accept-Encoding prefers; None: no coding. request_id: X-Request-ID, or empty if it is invalid;
    the client chooses it.
    """

    host: bytes
    is_special: bool
    has_body: bool
    has_origin: bool
    content_types: list[bytes]
    if_none_match: list[str]  # lines of If-None-Match
    if_match: list[str]  # lines of If-Match
    authorization: list[str]  # lines of Authorization
    forwarded: list[str]  # the last MAX_HOPS addresses of each X-Forwarded-For line
    coding: Coding | None
    request_id: str


def parse_headers(headers: Any) -> RequestHeaders:
    """Parse the headers of an ASGI scope, or return the kept result."""
    if not isinstance(headers, HeaderFields):
        return _read(headers)
    if headers.parsed is None:
        headers.parsed = _read(headers)
    parsed: RequestHeaders = headers.parsed
    return parsed


def _read(headers: Pairs) -> RequestHeaders:
    hosts: list[bytes] = []
    content_types: list[bytes] = []
    if_none_match: list[str] = []
    if_match: list[str] = []
    authorization: list[str] = []
    forwarded: list[str] = []
    accepted: list[bytes] = []  # lines of Accept-Encoding
    is_special = has_body = has_origin = False
    request_id = b""
    for key, value in headers:
        if key == b"host":
            hosts.append(value)
        elif key == b"if-none-match":
            if_none_match.append(value.decode("latin-1"))
        elif key == b"if-match":
            if_match.append(value.decode("latin-1"))
        elif key == b"accept-encoding":
            accepted.append(value)
        elif key == b"authorization":
            authorization.append(value.decode("latin-1"))
        elif key == b"x-forwarded-for":
            last = value.decode("latin-1").rsplit(",", MAX_HOPS)
            forwarded += [address.strip()[:64] for address in last]
        elif key == b"x-request-id":
            request_id = value
        elif key == b"origin":
            is_special |= has_origin  # a second Origin field
            has_origin = True
        elif key == b"content-type":
            content_types.append(value)
        elif key in BODY:
            has_body = True
        elif key in SPECIAL:
            is_special = True
    return RequestHeaders(
        hosts[0] if len(hosts) == 1 and HOST.fullmatch(hosts[0]) else b"",
        is_special,
        has_body,
        has_origin,
        content_types,
        if_none_match,
        if_match,
        authorization,
        forwarded,
        negotiate(accepted) if accepted else None,
        request_id.decode() if REQUEST_ID.fullmatch(request_id) else "",
    )
