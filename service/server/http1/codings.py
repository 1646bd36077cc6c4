"""Check whether the server supports the transfer codings of a request body (RFC 9112, 6.1)."""

import re

FRAMING = frozenset({b"content-length", b"transfer-encoding"})
CODING = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+(;.*)?")
MAX_CODINGS = 50  # maximum number of codings that are split


def codings_of(raw: bytes) -> list[bytes]:
    """Return the transfer codings of a header section; empty if it has Content-Length too."""
    lines = [line.partition(b":") for line in raw.lower().split(b"\r\n")]
    framing = [(name, value) for name, _, value in lines if name in FRAMING]
    if any(name == b"content-length" for name, _ in framing):
        return []
    return [x.strip(b" \t") for _, value in framing for x in value.split(b",", MAX_CODINGS)]


def are_unknown(codings: list[bytes]) -> bool:
    """Whether a valid coding is unsupported: then the status is 501 (RFC 9112, 6.1)."""
    return any(coding != b"chunked" and CODING.fullmatch(coding) for coding in codings)
