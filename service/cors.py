"""CORS for `/api/*`: on every answer, errors included. A blueprint can have its own origins."""

from collections.abc import Awaitable, Callable
from typing import Any

from quart import Quart, Response, request
from quart_cors import cors

from service.config import Settings

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
    """What quart-cors takes for an application: the hooks of one, for `/api/*` alone.

    `cors(blueprint)` would change the blueprint for every application in the process.
    """

    def __init__(self, app: Quart, blueprint: str | None) -> None:
        self._after = app.after_request_funcs[blueprint]

    def after_request(self, function: AfterRequest) -> None:
        async def for_the_api(response: Response) -> Response:
            return await function(response) if request.path.startswith("/api/") else response

        self._after.append(for_the_api)

    def before_websocket(self, function: Any) -> None:
        """There are no websockets here."""


def init_app(app: Quart, settings: Settings) -> None:
    """Let browsers of the configured origins in."""
    for blueprint, origins in (
        *settings.cors_blueprint_origins.items(),
        (None, settings.cors_origins),
    ):
        cors(
            _Hooks(app, blueprint),  # type: ignore[type-var]
            allow_origin=list(origins),
            allow_credentials=settings.cors_credentials,
            allow_methods=METHODS,
            allow_headers=HEADERS,
            expose_headers=EXPOSED,
            max_age=600,
        )
