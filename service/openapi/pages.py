"""Serve `/openapi.json`, and `/docs`: an interactive page that loads nothing from other hosts."""

from importlib.resources import files
from urllib.parse import urlsplit

import flask_swagger_ui
from quart import Blueprint, Quart, Response, current_app
from quart_rate_limiter import rate_exempt
from quart_schema import Info, QuartSchema, Server, Tag
from quart_schema.openapi import HttpSecurityScheme

from service import __version__
from service.config import Settings
from service.http.documentation import document_status
from service.http.responses import HTML, respond_public
from service.openapi.document import Document

openapi_bp = Blueprint("openapi", __name__)

OWN = files("service.openapi") / "static"
SWAGGER_UI = files(flask_swagger_ui) / "dist"
JAVASCRIPT, CSS = "text/javascript; charset=utf-8", "text/css; charset=utf-8"
ASSETS = {
    "docs.css": (OWN, CSS),
    "docs.js": (OWN, JAVASCRIPT),
    "swagger-ui.css": (SWAGGER_UI, CSS),
    "swagger-ui-bundle.js": (SWAGGER_UI, JAVASCRIPT),
}
ABOUT = """
Every error is `application/problem+json` (RFC 9457) of one shape. Unknown fields and parameters
are refused, and values are not coerced. Messages are listed by field: at most 20 fields, with
names of at most 64 characters; `message` counts the rest. No error is larger than 8 KiB.

To sign in, create an account (`register`), exchange e-mail and password for a token (`login`),
and send it as `Authorization: Bearer ...`. On this page, **Authorize** sends it.

Every response carries an `X-Request-ID`. A valid `X-Request-ID` of the request is kept.

The `RateLimit` headers and `/api/rate-limit` show the limits of the caller. Requests beyond them
get 429 with `Retry-After`. A request for many books counts as one request for each 100 items.

Public responses carry an `ETag`. A request with `If-None-Match` gets 304 without a body if nothing
changed. Lists come in pages, or with `limit` and `cursor` to read all of a list.
Responses of more than 1 KiB are compressed with `zstd` or `gzip`, as `Accept-Encoding` prefers.
Each form has its own `ETag`, and `If-None-Match` accepts all of them.
Every other method gets 405, with `Allow`; `OPTIONS` is for CORS preflights. The server refuses
invalid HTTP in the same shape: 400, 431 (headers over 64 KiB, or more than 100), 501, 505.
"""
TAGS = [
    Tag("books", "The catalogue"),
    Tag("views", "The most viewed books"),
    Tag("export", "The whole catalogue, for copies of it"),
    Tag("report", "Totals of the catalogue"),
    Tag("search", "Ranked full text over titles and authors"),
    Tag("auth", "Accounts and tokens"),
    Tag("users", "Profiles and public data"),
    Tag("admin", "For administrators"),
    Tag("limits", "Rate limits of the caller"),
    Tag("health", "For monitors and load balancers"),
    Tag("metrics", "For Prometheus"),
    Tag("openapi", "This document"),
    Tag("home", "The front page"),
]


@openapi_bp.get("/openapi.json")
@document_status(200, dict[str, object], "ETag")
@rate_exempt
async def openapi() -> Response:
    """Return this document."""
    return respond_public(document(current_app).as_bytes)


@openapi_bp.get("/docs")
@document_status(200, None, "ETag", media=HTML)
@rate_exempt
async def docs() -> Response:
    """Return an interactive page of this document."""
    body, content_type = current_app.extensions["docs_assets"]["docs.html"]
    response = respond_public(body, content_type=content_type)
    # Sent with 304 too: the browser then replaces the header of its cached page.
    response.headers["Content-Security-Policy"] = current_app.extensions["docs_policy"]
    return response


@openapi_bp.get(f"/docs/<any({','.join(map(repr, ASSETS))}):name>")
@document_status(200, None, "ETag", media="text/*")
@rate_exempt
async def docs_asset(name: str) -> Response:
    """Return a script or stylesheet of that page."""
    body, content_type = current_app.extensions["docs_assets"][name]
    return respond_public(body, content_type=content_type)


def document(app: Quart) -> Document:
    """Return the document of an application."""
    provider: Document = app.extensions["QUART_SCHEMA"].openapi_provider
    return provider


def init_app(app: Quart, settings: Settings) -> None:
    """Register the document and its interactive page."""
    public = settings.public_url
    QuartSchema(
        app,
        openapi_path=None,
        redoc_ui_path=None,
        scalar_ui_path=None,
        swagger_ui_path=None,
        info=Info("Octavo", __version__, description=ABOUT.strip(), summary="A book catalogue"),
        tags=list(TAGS),
        servers=[Server(public or "/")],
        security_schemes={"bearer": HttpSecurityScheme("bearer", bearer_format="JWT")},
        openapi_provider_class=Document,
    )
    app.extensions["docs_assets"] = {
        name: ((folder / name).read_bytes(), content_type)
        for name, (folder, content_type) in {**ASSETS, "docs.html": (OWN, HTML)}.items()
    }
    parts = urlsplit(public or "")
    here = f"'self' {parts.scheme}://{parts.netloc}" if public else "'self'"
    app.extensions["docs_policy"] = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        f"connect-src {here}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    app.register_blueprint(openapi_bp)

    @app.before_serving
    async def build() -> None:
        document(app).as_bytes  # noqa: B018  (cached, so that no request waits for it)
