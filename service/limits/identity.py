"""The caller of a request: the user of a token with a valid signature, else the address."""

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
REVOKED_SECONDS = 5.0  # to remember a revoked token: its account may be restored
MOST_REVOKED = 4_096  # revoked tokens that are remembered


class Caller(NamedTuple):
    """The party that is charged: a user, with their tier, or an address."""

    key: str
    address: str
    tier: str


class Credentials(NamedTuple):
    """The caller of a request, and its token.

    claims: of the token, if its signature is valid. refuse: makes the error to respond with, if
    the token is not valid; then the caller is the address.
    """

    caller: Caller
    claims: Claims | None = None
    refuse: Callable[[], APIError] | None = None


class Identities:
    """Reads the credentials of requests, without a database.

    A revoked token has a valid signature, so its user is charged before the account shows the
    revocation. Such tokens are remembered for REVOKED_SECONDS. The first request with such a token
    charges its user one unit, which is given back; later requests charge only the address.
    """

    def __init__(self, trusted_hops: int, tokens: Tokens) -> None:
        self._hops = trusted_hops
        self._tokens = tokens
        self._revoked: OrderedDict[Any, tuple[float, str]] = OrderedDict()  # expiry time, and error

    def read(self, scope: Any) -> Credentials:
        """Return the credentials of an ASGI request."""
        context = context_of(scope)
        if context.credentials is None:
            context.credentials = self._read(scope)
        return context.credentials

    def revoke(self, scope: Any, error: InvalidTokenError) -> Credentials:
        """Remember that the token of a request is revoked. The caller becomes the address."""
        claims = self.read(scope).claims
        if claims is not None:
            self._revoked[_name(claims)] = (time.monotonic() + REVOKED_SECONDS, error.error)
            if len(self._revoked) > MOST_REVOKED:
                self._revoked.popitem(last=False)
        refuse = partial(InvalidTokenError, error.error)
        credentials = self._address(scope)._replace(refuse=refuse)
        context_of(scope).credentials = credentials
        return credentials

    def _address(self, scope: Any) -> Credentials:
        forwarded = parse_headers(scope["headers"]).forwarded
        client = scope.get("client") or ("",)
        # Each proxy appends its peer's address, so addresses that a client forges come first.
        hops = min(self._hops, len(forwarded))
        return _by_address(client[0], forwarded[-hops] if hops else "")

    def _read(self, scope: Any) -> Credentials:
        fallback, fields = self._address(scope), parse_headers(scope["headers"])
        if not fields.authorization or not bearer("".join(fields.authorization)):
            return fallback
        # An error is created only when it is raised: stored in the scope, it would form a cycle.
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
    """Return the claims that decide whether a token is valid."""
    return claims.user_id, claims.jti, claims.ver, claims.tier


@lru_cache(4_096)
def _by_address(client: str, seen: str) -> Credentials:
    """Return credentials for the address that our last proxy saw, else for the socket's peer."""
    key = f"address:{_network(seen) or _network(client) or 'unknown'}"
    return Credentials(Caller(key, key, FREE))


def _network(text: str) -> str | None:
    """Return the network that is charged: an IPv4 address, or an IPv6 /64. None if invalid."""
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
