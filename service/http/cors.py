"""CORS headers for `/api/*`, also on error responses. A blueprint can have its own origins."""

from collections.abc import Awaitable, Callable
from typing import Any

from quart import Quart, Response, request
from quart_cors import cors

from service.config import Settings
from service.http.headers import parse_headers

PATHS = {
    "auth": ("/api/auth",),
    "books": ("/api/books", "/api/popular-books"),
    "users": ("/api/users", "/api/profile"),
}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
HEADERS = ["Content-Type", "Authorization", "If-Match", "If-None-Match", "Idempotency-Key"]
EXPOSED = [
    "ETag",
    "Link",
    "Location",
    "Retry-After",
    "RateLimit",
    "RateLimit-Policy",
    "X-Request-ID",
    "Idempotency-Replayed",
]

AfterRequest = Callable[[Response], Awaitable[Response]]


class _Hooks:
    """A stand-in for the application that quart-cors gets: applies its hook only to some paths.

    quart-cors on a blueprint would change the blueprint for every application in the process. It
    would also omit 404 and 405 responses, which belong to no blueprint.
    """

    def __init__(self, app: Quart, applies: Callable[[str], bool]) -> None:
        self._app = app
        self._applies = applies

    def after_request(self, function: AfterRequest) -> None:
        @self._app.after_request
        async def where_it_applies(response: Response) -> Response:
            # A request without Origin needs no CORS header; `Vary: Origin` is on every response.
            headers = parse_headers(request.scope["headers"])
            is_cors = headers.has_origin and self._applies(request.path)
            return await function(response) if is_cors else response

    def before_websocket(self, function: Any) -> None:
        """Ignore the hook: websockets are not supported."""


def _below(*roots: str) -> Callable[[str], bool]:
    """Return a predicate for the paths at or below `roots`."""
    prefixes = tuple(f"{root}/" for root in roots)
    return lambda path: f"{path}/".startswith(prefixes)


class Origins:
    """The allowed origins of each path. places: pairs of a path predicate and its origins."""

    def __init__(self, settings: Settings) -> None:
        own = [(_below(*PATHS[name]), o) for name, o in settings.cors_blueprint_origins.items()]
        everywhere = _below("/api")

        def elsewhere(path: str) -> bool:
            return everywhere(path) and not any(applies(path) for applies, _ in own)

        self.places = (*own, (elsewhere, settings.cors_origins))
        self._credentials = settings.cors_credentials

    def headers(self, scope: Any) -> dict[str, str]:
        """Return the CORS headers of a response that is sent without Quart's hooks."""
        origin = dict(scope["headers"]).get(b"origin", b"").decode("latin-1")
        allowed = next((o for applies, o in self.places if applies(scope["path"])), ())
        if not origin or not {origin, "*"}.intersection(allowed):
            return {}
        headers = {
            "Access-Control-Allow-Origin": "*" if "*" in allowed else origin,
            "Access-Control-Expose-Headers": ", ".join(EXPOSED),
        }
        return headers | ({"Access-Control-Allow-Credentials": "true"} if self._credentials else {})


def init_app(app: Quart, settings: Settings) -> None:
    """Install quart-cors for the configured origins, and `Origins` for other responses."""
    allowed = app.extensions["origins"] = Origins(settings)
    for applies, origins in allowed.places:
        cors(
            _Hooks(app, applies),  # type: ignore[type-var]  # the part that cors uses
            allow_origin=list(origins),
            allow_credentials=settings.cors_credentials,
            allow_methods=METHODS,
            allow_headers=HEADERS,
            expose_headers=EXPOSED,
            max_age=600,
        )
