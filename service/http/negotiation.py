"""Choose the media type of a response by Accept (RFC 9110, 12.5.1)."""

from collections.abc import Sequence
from typing import Any

from werkzeug.http import parse_accept_header

MAX_FIELD_SIZE = 1_024  # characters of Accept that are parsed; Python code parses each member


def best_media_type(scope: Any, offers: Sequence[str]) -> str:
    """Return the offer that the client prefers; the first one if it accepts none.

    At equal quality, an offer that the client names precedes one that `*` accepts. Parameters have
    no effect, where Werkzeug's `best_match` would refuse `text/csv; charset=utf-8`.
    """
    lines = (value.decode("latin-1") for name, value in scope["headers"] if name == b"accept")
    value = ",".join(lines)
    members = parse_accept_header(value) if len(value) <= MAX_FIELD_SIZE else ()
    qualities = {member.partition(";")[0].strip().lower(): quality for member, quality in members}

    def rank(offer: str) -> tuple[float, int]:
        ranges = ("*/*", f"{offer.partition('/')[0]}/*", offer)
        matches = [(qualities[name], n) for n, name in enumerate(ranges) if name in qualities]
        return matches[-1] if matches and matches[-1][0] else (0.0, 0)

    return max(offers, key=rank)
