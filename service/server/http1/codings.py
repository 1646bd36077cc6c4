"""Transfer codings: whether the server supports the framing of a message body."""

import re

FRAMING = frozenset({b"content-length", b"transfer-encoding"})
CODING = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+(;.*)?")
MOST = 50  # codings of a body; the rest of the list is not split


def codings_of(raw: bytes) -> list[bytes]:
    """Return the transfer codings of a header section; none if it has a Content-Length as well."""
    lines = [line.partition(b":") for line in raw.lower().split(b"\r\n")]
    framing = [(name, value) for name, _, value in lines if name in FRAMING]
    if any(name == b"content-length" for name, _ in framing):
        return []
    return [x.strip(b" \t") for _, value in framing for x in value.split(b",", MOST)]


def are_unknown(codings: list[bytes]) -> bool:
    """Whether a body has a valid but unsupported transfer coding (RFC 9112, 6.1)."""
    return any(coding != b"chunked" and CODING.fullmatch(coding) for coding in codings)
