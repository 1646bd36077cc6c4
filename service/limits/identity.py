"""The caller of a request: a user by the signature of their token, else a trusted address."""

import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, NamedTuple

from service.context import context_of
from service.errors import APIError
from service.fields import parse_headers
from service.guard import verify_token
from service.security import Claims, InvalidTokenError, Tokens, bearer

FREE = "free"
REVOKED_SECONDS = 5.0  # that a revoked token is remembered: its account may come back
MOST_REVOKED = 4_096  # tokens that are remembered


class Caller(NamedTuple):
    """Whose units are spent: of a user, with their tier, or of an address."""

    key: str
    address: str
    tier: str


class Credentials(NamedTuple):
    """What a request shows of its caller.

    claims: of its token, if the signature is good. refuse: makes the error that the request is
    answered with, if what it shows is not valid; then the address is the caller.
    """

    caller: Caller
    claims: Claims | None = None
    refuse: Callable[[], APIError] | None = None


class Identities:
    """Reads the credentials of requests, without a database.

    A token that was revoked has a good signature, so its user is charged before the account says
    that it was revoked. Such tokens are remembered for a while: each costs its user one unit, which
    is given back, and after that the address alone.
    """

    def __init__(self, trusted_hops: int, tokens: Tokens) -> None:
        self._hops = trusted_hops
        self._tokens = tokens
        self._revoked: OrderedDict[Any, tuple[float, str]] = OrderedDict()  # until when, and error

    def read(self, scope: Any) -> Credentials:
        """Give the credentials of an ASGI request."""
        context = context_of(scope)
        if context.credentials is None:
            context.credentials = self._read(scope)
        return context.credentials

    def revoke(self, scope: Any, error: InvalidTokenError) -> Credentials:
        """Remember that the token of a request was revoked: the address is its caller."""
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
        told = parse_headers(scope["headers"])
        client, forwarded = scope.get("client") or ("",), told.forwarded
        # Each proxy adds to the right whom it saw, so what a client makes up stands to the left.
        hops = min(self._hops, len(forwarded))
        return _anybody(client[0], forwarded[-hops] if hops else "")

    def _read(self, scope: Any) -> Credentials:
        anybody, fields = self._address(scope), parse_headers(scope["headers"])
        if not fields.authorization or not bearer("".join(fields.authorization)):
            return anybody
        # Errors are made when they are raised: kept in the scope, they would be rings with it.
        try:
            claims = verify_token(scope, self._tokens)
        except InvalidTokenError:
            return anybody._replace(refuse=InvalidTokenError)
        except APIError as error:
            return anybody._replace(refuse=partial(APIError, error.message))
        if self._revoked:
            until, error_name = self._revoked.get(_name(claims), (0.0, ""))
            if time.monotonic() < until:
                return anybody._replace(refuse=partial(InvalidTokenError, error_name))
        caller = Caller(f"user:{claims.user_id}", anybody.caller.address, claims.tier)
        return Credentials(caller, claims)


def _name(claims: Claims) -> Any:
    """Give all that says whether a token is valid."""
    return claims.user_id, claims.jti, claims.ver, claims.tier


@lru_cache(4_096)
def _anybody(client: str, seen: str) -> Credentials:
    """Give the credentials of the address that our last proxy saw; without one, the socket's."""
    key = f"address:{_network(seen) or _network(client) or 'unknown'}"
    return Credentials(Caller(key, key, FREE))


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
