"""Who is asking: a user by their token's signature alone, else an address one can believe."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, NamedTuple

from service.errors import UnauthorizedError
from service.fields import told_by
from service.security import Tokens, bearer

FREE = "free"


class Caller(NamedTuple):
    """Whose units are spent: of a user, with their tier, or of an address."""

    key: str
    address: str
    tier: str


class Callers:
    """Recognises who asks, without a database."""

    def __init__(self, trusted_hops: int, tokens: Tokens) -> None:
        self._hops = trusted_hops
        self._tokens = tokens

    def of(self, scope: Any) -> Caller:
        """Give the caller of an ASGI request."""
        told = told_by(scope["headers"])
        client = scope.get("client") or ("",)
        anybody = _anybody(self._address(client[0], told.forwarded))
        if len(told.authorization) == 1:
            try:
                claims = self._tokens.read(bearer(told.authorization[0]))
            except UnauthorizedError:
                pass  # a token that does not verify counts for the address
            else:
                return Caller(f"user:{claims.user_id}", anybody.address, claims.tier)
        return anybody

    def _address(self, client: str, forwarded: list[str]) -> str:
        """Give the address that the last proxy of ours saw; with none of ours, the socket's.

        Each proxy adds to the right whom it saw, so what a client makes up stands to the left.
        """
        if self._hops and forwarded:
            seen = _network(forwarded[-min(self._hops, len(forwarded))].strip()[:64])
            if seen is not None:
                return seen
        return _network(client) or "unknown"


@lru_cache(4_096)
def _anybody(address: str) -> Caller:
    key = f"address:{address}"
    return Caller(key, key, FREE)


@lru_cache(4_096)
def _network(text: str) -> str | None:
    """Give an address as it is counted: IPv4 whole, IPv6 by its /64. None if it is none."""
    host, colon, port = text.rpartition(":")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif colon and port.isdigit() and ":" not in host:
        text = host  # an IPv4 address with a port
    try:
        address: IPv4Address | IPv6Address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((address, 64), strict=False))
