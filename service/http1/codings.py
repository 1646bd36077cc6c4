"""Transfer codings: whether a head frames its body in a way that is known here."""

import re

FRAMING = frozenset({b"content-length", b"transfer-encoding"})
CODING = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+(;.*)?")
MOST = 50  # codings of a body: what follows is not taken apart


def codings_of(raw: bytes) -> list[bytes]:
    """Give the codings that a head says its body has; none if it gives a length as well."""
    lines = [line.partition(b":") for line in raw.lower().split(b"\r\n")]
    framing = [(name, value) for name, _, value in lines if name in FRAMING]
    if any(name == b"content-length" for name, _ in framing):
        return []
    return [x.strip(b" \t") for _, value in framing for x in value.split(b",", MOST)]


def are_unknown(codings: list[bytes]) -> bool:
    """Whether a body has a coding that is not known here (RFC 9112, 6.1), which is no mistake."""
    return any(coding != b"chunked" and CODING.fullmatch(coding) for coding in codings)
