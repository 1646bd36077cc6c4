"""`/openapi.json`, and `/docs`: a page to try it out, with everything it needs from here."""

from importlib.resources import files
from urllib.parse import urlsplit

import flask_swagger_ui
from quart import Blueprint, Quart, Response, current_app
from quart_rate_limiter import rate_exempt
from quart_schema import Info, QuartSchema, Server, Tag
from quart_schema.openapi import HttpSecurityScheme

from service import __version__
from service.config import Settings
from service.openapi.answers import answers
from service.openapi.document import Document
from service.web import HTML, respond_public

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
are refused, nothing is coerced, and what is wrong is said by field: of many fields the first 20,
with names of at most 64 characters; `message` counts the rest. No error is larger than 8 KiB.

To sign in, make an account (`register`), exchange e-mail and password for a token (`login`),
and send it as `Authorization: Bearer ...`; here, **Authorize** does.

Every answer carries an `X-Request-ID`; send one of your own, and it is kept.

How much one may ask is said in the `RateLimit` headers, and at `/api/rate-limit`; beyond it, 429
with `Retry-After`.

Public answers carry an `ETag`: ask again with `If-None-Match`, and get 304 without a body if
nothing changed. Lists come in pages, or with `limit` and `cursor` for walking through all of them.
Every other method is 405, with `Allow`; `OPTIONS` answers CORS preflights. What is no HTTP is
refused by the server, in the same shape: 400, 431 (headers over 64 KiB, or more than 100), 501,
505.
"""
TAGS = [
    Tag("books", "The catalogue"),
    Tag("auth", "Accounts and tokens"),
    Tag("users", "Who is who"),
    Tag("admin", "For administrators"),
    Tag("limits", "How much one may ask"),
    Tag("health", "For monitors and load balancers"),
    Tag("metrics", "For Prometheus"),
    Tag("openapi", "This document"),
    Tag("home", "The front page"),
]


@openapi_bp.get("/openapi.json")
@answers(200, dict[str, object], "ETag")
@rate_exempt
async def openapi() -> Response:
    """Give this document."""
    return respond_public(document(current_app).as_bytes)


@openapi_bp.get("/docs")
@answers(200, None, "ETag", media=HTML)
@rate_exempt
async def docs() -> Response:
    """Give a page to try it out."""
    body, content_type = current_app.extensions["docs_assets"]["docs.html"]
    response = respond_public(body, content_type=content_type)
    # On 304, too: it replaces the headers of the page that a browser has kept.
    response.headers["Content-Security-Policy"] = current_app.extensions["docs_policy"]
    return response


@openapi_bp.get(f"/docs/<any({','.join(map(repr, ASSETS))}):name>")
@answers(200, None, "ETag", media="text/*")
@rate_exempt
async def docs_asset(name: str) -> Response:
    """Give what that page is made of."""
    body, content_type = current_app.extensions["docs_assets"][name]
    return respond_public(body, content_type=content_type)


def document(app: Quart) -> Document:
    """Give the document of an application."""
    provider: Document = app.extensions["QUART_SCHEMA"].openapi_provider
    return provider


def init_app(app: Quart, settings: Settings) -> None:
    """Register the document and the page to try it out."""
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
        document(app).as_bytes  # noqa: B018  (kept: no request waits for it)
