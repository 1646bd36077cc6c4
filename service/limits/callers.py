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
    user_id: int | None = None


class Callers:
    """Recognises who asks, without a database."""

    def __init__(self, trusted_hops: int, tokens: Tokens) -> None:
        self._hops = trusted_hops
        self._tokens = tokens

    def of(self, scope: Any) -> Caller:
        """Give the caller of an ASGI request."""
        told = told_by(scope["headers"])
        client, forwarded = scope.get("client") or ("",), told.forwarded
        # Each proxy adds to the right whom it saw, so what a client makes up stands to the left.
        hops = min(self._hops, len(forwarded))
        anybody = _anybody(client[0], forwarded[-hops] if hops else "")
        if len(told.authorization) == 1:
            try:
                claims = self._tokens.read(bearer(told.authorization[0]))
            except UnauthorizedError:
                pass  # a token that does not verify counts for the address
            else:
                key = f"user:{claims.user_id}"
                return Caller(key, anybody.address, claims.tier, claims.user_id)
        return anybody


@lru_cache(4_096)
def _anybody(client: str, seen: str) -> Caller:
    """Give who has the address that the last proxy of ours saw; without one, the socket's."""
    key = f"address:{_network(seen) or _network(client) or 'unknown'}"
    return Caller(key, key, FREE)


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
