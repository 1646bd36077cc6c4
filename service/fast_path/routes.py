"""Find the constant response or the cached item that a route declares, by request path."""

from functools import lru_cache
from typing import NamedTuple

from quart import Quart

from service.fast_path.lookup import Route
from service.http.compression import MIN_SIZE
from service.http.operations import Item, operation_of
from service.http.parsing import ID
from service.http.priority import CONSTANT
from service.http.responses import AUTHENTICATED_PREFIXES
from service.limits import Limiter

MAX_ID_DIGITS = 18
PATH_CACHE_SIZE = 2_048  # item paths in an LRU cache


class ItemRequest(NamedTuple):
    """A request for an item. key: in the store, without the prefix. own_key: within the entry."""

    route: Route
    item: Item
    id: int
    key: str
    own_key: str


class Routes:
    """Finds the constant responses and cached items of an application.

    It reads the URL map at the first request, when all routes are registered. route: by endpoint.
    item: the ItemRequest of a raw path, or None.
    """

    def __init__(self, app: Quart, limiter: Limiter, is_limited: bool) -> None:
        self._app = app
        self._limiter = limiter
        self._is_limited = is_limited
        self._constants: dict[bytes, bytes] | None = None  # by path
        self._items: dict[bytes, tuple[Route, Item]] = {}  # by the path before the id
        self.route = lru_cache(self._find_route)
        self.item = lru_cache(PATH_CACHE_SIZE)(self._find_item)

    def constant(self, raw_path: bytes) -> bytes | None:
        """Return the body of a constant response. None: the route is not constant."""
        if self._constants is None:
            self._constants = {}
            self._read()
        return self._constants.get(raw_path)

    def _read(self) -> None:
        for rule in self._app.url_map.iter_rules():
            path, endpoint = rule.rule, rule.endpoint
            body = getattr(self._app.view_functions[endpoint], CONSTANT, None)
            # The ordinary path compresses a longer body.
            if body is not None and len(body) <= MIN_SIZE and self._constants is not None:
                self._constants[path.encode()] = body
            operation = operation_of(self._app, endpoint)
            before, _, variable = path.partition("<")
            if operation is None or operation.item is None or "GET" not in (rule.methods or ()):
                continue
            if (
                before.startswith(AUTHENTICATED_PREFIXES)
                and variable.endswith(">")
                and "<" not in variable
            ):
                self._items[before.encode()] = self.route(endpoint), operation.item

    def _find_item(self, raw_path: bytes) -> ItemRequest | None:
        before, slash, digits = raw_path.rpartition(b"/")
        known, number = self._items.get(before + slash), digits.decode("latin-1")
        if known is None or not ID.fullmatch(number) or len(number) > MAX_ID_DIGITS:
            return None
        (route, item), row_id = known, int(number)
        kind = item.kind
        return ItemRequest(route, item, row_id, kind.key(row_id), kind.own_key(row_id))

    def _find_route(self, endpoint: str) -> Route:
        rule = next(self._app.url_map.iter_rules(endpoint)).rule
        plan = self._limiter.plan(self._app, endpoint)
        is_limited = self._is_limited and (plan.names or plan.written or plan.custom)
        return Route(endpoint, rule, plan if is_limited else None)
