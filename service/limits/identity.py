"""Find the caller of a request: the user of a valid token, else the client's address."""

import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, NamedTuple

from service.errors import APIError
from service.http.auth import verify_token
from service.http.context import context_of
from service.http.headers import parse_headers
from service.security import Claims, InvalidTokenError, Tokens, bearer

FREE = "free"
REVOKED_SECONDS = 5.0  # a revoked token is remembered so long; its account may be restored
REVOKED_CACHE_SIZE = 4_096  # revoked tokens that are remembered


class Caller(NamedTuple):
    """The party whose limits a request uses. key: `user:<id>`, or the same as `address`.

    address: `address:<network>` of the client.
    """

    key: str
    address: str
    tier: str


class Credentials(NamedTuple):
    """The caller of a request, and its token.

    claims: of the token, if it verifies. refuse: makes the error for a token that does not verify
    or is revoked; then the caller is the address.
    """

    caller: Caller
    claims: Claims | None = None
    refuse: Callable[[], APIError] | None = None


class Identities:
    """Reads the credentials of requests, without the database.

    A revoked token still has a valid signature. So its first request is charged to the user. When
    the account shows the revocation, this unit is refunded, and the address is charged. Revoked
    tokens are remembered for REVOKED_SECONDS: their later requests charge only the address.
    """

    def __init__(self, trusted_hops: int, tokens: Tokens) -> None:
        self._hops = trusted_hops
        self._tokens = tokens
        self._revoked: OrderedDict[Any, tuple[float, str]] = OrderedDict()  # expiry and `error`

    def read(self, scope: Any) -> Credentials:
        """Return the credentials of an ASGI scope. The context keeps the result."""
        context = context_of(scope)
        if context.credentials is None:
            context.credentials = self._read(scope)
        return context.credentials

    def revoke(self, scope: Any, error: InvalidTokenError) -> Credentials:
        """Remember that the token of a request is revoked. The caller becomes the address."""
        claims = self.read(scope).claims
        if claims is not None:
            self._revoked[_name(claims)] = (time.monotonic() + REVOKED_SECONDS, error.error)
            if len(self._revoked) > REVOKED_CACHE_SIZE:
                self._revoked.popitem(last=False)
        refuse = partial(InvalidTokenError, error.error)
        credentials = self._address(scope)._replace(refuse=refuse)
        context_of(scope).credentials = credentials
        return credentials

    def _address(self, scope: Any) -> Credentials:
        forwarded = parse_headers(scope["headers"]).forwarded
        client = scope.get("client") or ("",)
        # Each proxy appends the address of its peer, so forged addresses come first.
        hops = min(self._hops, len(forwarded))
        return _by_address(client[0], forwarded[-hops] if hops else "")

    def _read(self, scope: Any) -> Credentials:
        fallback, fields = self._address(scope), parse_headers(scope["headers"])
        if not fields.authorization or not bearer("".join(fields.authorization)):
            return fallback
        # Store a factory, not the error: an error in the scope would form a reference cycle.
        try:
            claims = verify_token(scope, self._tokens)
        except InvalidTokenError:
            return fallback._replace(refuse=InvalidTokenError)
        except APIError as error:
            return fallback._replace(refuse=partial(APIError, error.message))
        if self._revoked:
            until, error_name = self._revoked.get(_name(claims), (0.0, ""))
            if time.monotonic() < until:
                return fallback._replace(refuse=partial(InvalidTokenError, error_name))
        caller = Caller(f"user:{claims.user_id}", fallback.caller.address, claims.tier)
        return Credentials(caller, claims)


def _name(claims: Claims) -> Any:
    """Return the key of a token among the revoked tokens: the claims that are checked."""
    return claims.user_id, claims.jti, claims.ver, claims.tier


@lru_cache(4_096)
def _by_address(client: str, seen: str) -> Credentials:
    """Return credentials of an address. seen: from X-Forwarded-For; else the socket's `client`."""
    key = f"address:{_network(seen) or _network(client) or 'unknown'}"
    return Credentials(Caller(key, key, FREE))


def _network(text: str) -> str | None:
    """Return the IPv4 address or the IPv6 /64 in a text, which may have a port. None: invalid."""
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
