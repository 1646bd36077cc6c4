"""The error handler: what an exception is answered with, and what is logged of it."""

from logging import Logger

from quart import Quart, Response, current_app, redirect, request
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response as WerkzeugResponse

from service.config import Settings
from service.db_errors import is_unfit
from service.errors import MIMETYPE, APIError, as_api_error, problem
from service.logs import REFUSAL

API_PREFIXES = ("/api/", "/admin/", "/health/", "/metrics/", "/openapi.json/", "/docs/")


def render(error: Exception, method: str, path: str, logger: Logger) -> APIError:
    """Say what an exception means to a client, and log it: ours with its traceback."""
    rendered = as_api_error(error)
    about = f"{method} {path}: {rendered.error}"
    if rendered.status_code == 500 or is_unfit(error):
        logger.error("%s", about, exc_info=error)
        return rendered
    if rendered.status_code > 500:
        cause = getattr(error, "orig", None) or error
        logger.warning("%s (%s: %s)", about, type(cause).__name__, cause, extra=REFUSAL)
    _let_go(error)
    return rendered


def init_app(app: Quart, settings: Settings) -> None:
    """Answer every exception with the one shape; log ours with its traceback, others in a line."""
    app.debug = False  # else QUART_DEBUG in the environment shows tracebacks to clients
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


def _let_go(error: BaseException | None) -> None:
    """Drop the frames that an error came through: they hold the request, which holds the error.

    Such a ring would wait, with all that the client sent, until cycles are looked for.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


def _belongs_to_spa(settings: Settings) -> bool:
    """Whether an unknown page is one of the single-page application in front (guide)."""
    return (
        settings.spa_fallback_url is not None
        and request.method in {"GET", "HEAD"}
        and not f"{request.path}/".startswith(API_PREFIXES)
        and request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"
    )
