"""Convert exceptions to error responses, and log them."""

from collections.abc import Mapping
from http import HTTPStatus
from logging import Logger

from quart import Quart, Response, current_app, redirect, request
from quart_schema import RequestSchemaValidationError
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.wrappers import Response as WerkzeugResponse

from service.config import Settings
from service.db.errors import is_unavailable, is_unstorable, lacks_tables
from service.errors import (
    MIMETYPE,
    APIError,
    InternalError,
    InvalidInputError,
    ServiceUnavailableError,
    problem,
)
from service.http.responses import VARY
from service.http.schemas import messages
from service.ids import random_id
from service.logs import REFUSAL, request_id

API_PREFIXES = ("/api/", "/admin/", "/health/", "/metrics/", "/openapi.json/", "/docs/")

FRAMEWORK_WORDS = {  # `error` and `message` for the HTTP errors of Quart and Werkzeug
    400: ("Bad Request", "The request could not be understood"),
    404: ("Not Found", "The requested resource was not found"),
    405: ("Method Not Allowed", "The method is not allowed for this resource"),
    500: ("Internal Server Error", "An unexpected error occurred"),
    413: ("Payload Too Large", "The body is larger than this service accepts"),
}


def http_error(status_code: int, headers: Mapping[str, str] | None = None) -> APIError:
    """Return the error for a status, with the default texts of this status."""
    phrase = HTTPStatus(status_code).phrase
    name, message = FRAMEWORK_WORDS.get(status_code, (phrase, phrase))
    return APIError(message, status_code, error=name, headers=headers)


def as_api_error(error: Exception) -> APIError:
    """Convert any exception to an APIError. An unknown exception becomes InternalError (500)."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, RequestSchemaValidationError):
        return InvalidInputError(messages(error.validation_error))
    if isinstance(error, HTTPException) and error.code is not None:
        headers = {key: value for key, value in error.get_headers() if key != "Content-Type"}
        return http_error(error.code, headers)
    if is_unavailable(error) or lacks_tables(error):
        return ServiceUnavailableError()
    if is_unstorable(error):
        return APIError("The request holds a value that cannot be stored")
    return InternalError()


def error_response(error: APIError) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the ASGI headers and the body of an error response that Quart does not build."""
    body = problem(error)
    headers = {
        "content-type": MIMETYPE,
        "content-length": str(len(body)),
        "cache-control": "no-store",
        "Vary": VARY,
        **error.headers,
    }
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()], body


def server_error(status_code: int) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Set a new request id. Return the headers and body of an error of the HTTP server itself."""
    request_id.set(random_id())
    body = problem(http_error(status_code))
    headers = {
        "content-type": MIMETYPE,
        "content-length": str(len(body)),
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "x-request-id": request_id.get(),
    }
    return [(name.encode(), value.encode()) for name, value in headers.items()], body


def render(error: Exception, method: str, path: str, logger: Logger) -> APIError:
    """Convert an exception to an APIError. Log 5xx errors and values that the database refused."""
    rendered = as_api_error(error)
    about = f"{method} {path}: {rendered.error}"
    if rendered.status_code == 500 or is_unstorable(error):
        logger.error("%s", about, exc_info=error)
        return rendered
    if rendered.status_code > 500:
        cause = getattr(error, "orig", None) or error
        logger.warning("%s (%s: %s)", about, type(cause).__name__, cause, extra=REFUSAL)
    _drop_frames(error)
    return rendered


def init_app(app: Quart, settings: Settings) -> None:
    """Install the handler of all exceptions. The body of each error response is a `problem`."""
    app.debug = False  # else QUART_DEBUG in the environment sends tracebacks to clients
    app.config["PROPAGATE_EXCEPTIONS"] = False

    @app.errorhandler(Exception)
    async def answer(error: Exception) -> Response | WerkzeugResponse:
        if isinstance(error, NotFound) and _belongs_to_spa(settings):
            return redirect(str(settings.spa_fallback_url))
        rendered = render(error, request.method, request.path, current_app.logger)
        return Response(
            problem(rendered),
            status=rendered.status_code,
            headers={"Cache-Control": "no-store", **rendered.headers},
            content_type=MIMETYPE,
        )


def _drop_frames(error: BaseException | None) -> None:
    """Drop the tracebacks of an error: frames refer to the request, and the request to the error.

    This reference cycle would keep the request's data in memory until the garbage collector runs.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


def _belongs_to_spa(settings: Settings) -> bool:
    """Whether an unknown page becomes a redirect to the guide's single-page application."""
    return (
        settings.spa_fallback_url is not None
        and request.method in {"GET", "HEAD"}
        and not f"{request.path}/".startswith(API_PREFIXES)
        and request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"
    )
