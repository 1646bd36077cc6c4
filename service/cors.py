"""CORS for `/api/*`: on every answer, errors included. A blueprint can have its own origins."""

from collections.abc import Awaitable, Callable
from typing import Any

from quart import Quart, Response, request
from quart_cors import cors

from service.config import Settings
from service.fields import parse_headers

PATHS = {
    "auth": ("/api/auth",),
    "books": ("/api/books",),
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
]

AfterRequest = Callable[[Response], Awaitable[Response]]


class _Hooks:
    """What quart-cors takes for an application: the hooks of one, for some paths alone.

    `cors(blueprint)` would change the blueprint for every application in the process, and leave
    out its 404 and 405, which belong to no blueprint.
    """

    def __init__(self, app: Quart, applies: Callable[[str], bool]) -> None:
        self._app = app
        self._applies = applies

    def after_request(self, function: AfterRequest) -> None:
        @self._app.after_request
        async def where_it_applies(response: Response) -> Response:
            # Who names no origin is told nothing but Vary, which every answer has.
            is_asked = parse_headers(request.scope["headers"]).has_origin and self._applies(
                request.path
            )
            return await function(response) if is_asked else response

    def before_websocket(self, function: Any) -> None:
        """There are no websockets here."""


def _below(*roots: str) -> Callable[[str], bool]:
    """Tell the paths at or below these."""
    prefixes = tuple(f"{root}/" for root in roots)
    return lambda path: f"{path}/".startswith(prefixes)


class Origins:
    """Which origins may read which paths."""

    def __init__(self, settings: Settings) -> None:
        own = [(_below(*PATHS[name]), o) for name, o in settings.cors_blueprint_origins.items()]
        everywhere = _below("/api")

        def elsewhere(path: str) -> bool:
            return everywhere(path) and not any(applies(path) for applies, _ in own)

        self.places = (*own, (elsewhere, settings.cors_origins))
        self._credentials = settings.cors_credentials

    def headers(self, scope: Any) -> dict[str, str]:
        """Give the headers of an answer that is made before quart-cors could."""
        origin = dict(scope["headers"]).get(b"origin", b"").decode("latin-1")
        allowed = next((o for applies, o in self.places if applies(scope["path"])), ())
        if not origin or not {origin, "*"}.intersection(allowed):
            return {}
        found = {
            "Access-Control-Allow-Origin": "*" if "*" in allowed else origin,
            "Access-Control-Expose-Headers": ", ".join(EXPOSED),
        }
        return found | ({"Access-Control-Allow-Credentials": "true"} if self._credentials else {})


def init_app(app: Quart, settings: Settings) -> None:
    """Let browsers of the configured origins in."""
    found = app.extensions["origins"] = Origins(settings)
    for applies, origins in found.places:
        cors(
            _Hooks(app, applies),  # type: ignore[type-var]  # all it needs
            allow_origin=list(origins),
            allow_credentials=settings.cors_credentials,
            allow_methods=METHODS,
            allow_headers=HEADERS,
            expose_headers=EXPOSED,
            max_age=600,
        )
