"""Define `Call`, the request object that the handler of an operation receives."""

from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from werkzeug.sansio.utils import get_host

from service.cache import Cache
from service.config import Settings
from service.db.database import Database
from service.errors import APIError
from service.http.compression import Coding
from service.http.context import RequestContext, context_of
from service.http.headers import RequestHeaders, parse_headers
from service.http.pagination import Cursors
from service.http.parsing import ORDINARY, BodyLimits, parse_query
from service.http.requests import read_json
from service.http.urls import RequestUrl
from service.security import Passwords, Tokens

if TYPE_CHECKING:
    from service.limits import Limiter


class Call:
    """A request, and the application's services. scope: of ASGI. extensions: `app.extensions`."""

    def __init__(
        self,
        extensions: Mapping[str, Any],
        scope: Any,
        path: str,
        read_body: Callable[[], Awaitable[bytes]],
    ) -> None:
        self.extensions = extensions
        self.scope = scope
        self.path = path
        self.context: RequestContext = context_of(scope)
        self.headers: RequestHeaders = parse_headers(scope["headers"])
        self._read_body = read_body

    @property
    def settings(self) -> Settings:
        """The settings of the application."""
        settings: Settings = self.extensions["settings"]
        return settings

    @property
    def coding(self) -> Coding | None:
        """The coding for the response that the client prefers; None: no coding."""
        return self.headers.coding if self.settings.compression else None

    @property
    def cache(self) -> Cache:
        """The cache of rows and lists."""
        cache: Cache = self.extensions["cache"]
        return cache

    @property
    def database(self) -> Database:
        """Opens sessions for reads, and runs writes."""
        database: Database = self.extensions["database"]
        return database

    @property
    def cursors(self) -> Cursors:
        """Signs and verifies pagination cursors."""
        cursors: Cursors = self.extensions["cursors"]
        return cursors

    @property
    def tokens(self) -> Tokens:
        """Signs and verifies access tokens."""
        tokens: Tokens = self.extensions["tokens"]
        return tokens

    @property
    def passwords(self) -> Passwords:
        """Hashes and verifies passwords."""
        passwords: Passwords = self.extensions["passwords"]
        return passwords

    @property
    def limiter(self) -> "Limiter":
        """Decides rate limits."""
        limiter: Limiter = self.extensions["limiter"]
        return limiter

    @cached_property
    def args(self) -> list[tuple[str, str]]:
        """The query parameters. Raises APIError (400) if the query string is invalid."""
        query: bytes = self.scope["query_string"]
        try:
            return parse_query(query) if query else []
        except ValueError as error:
            raise APIError(str(error)) from None

    async def json(self, limits: BodyLimits = ORDINARY) -> dict[str, Any]:
        """Return the body, a JSON object. Raises as `read_json` does."""
        return await read_json(self.scope, self._read_body, limits)

    async def body(self) -> bytes:
        """Return the body as it was sent. Raises the error of `read_body` (408)."""
        return await self._read_body()

    @property
    def url(self) -> RequestUrl:
        """The URL of the request, from which links are made."""
        return RequestUrl(self.base, self.path, self.args)

    @property
    def base(self) -> str:
        """The base URL of links: PUBLIC_URL, else scheme and host of the request; may be empty."""
        public: str | None = self.settings.public_url
        if public is not None:
            return public
        scheme, headers = self.scope["scheme"], self.scope["headers"]
        host = next((value for name, value in headers if name == b"host"), b"")
        name = get_host(scheme, host.decode("latin-1"))
        return f"{scheme}://{name}" if name else ""
