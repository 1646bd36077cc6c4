"""The front page: the version, and links to the API and its documentation."""

from base64 import b64encode
from hashlib import sha256
from html import escape
from urllib.parse import urlsplit

from quart import Blueprint, Quart, Response
from quart_rate_limiter import rate_exempt

from service import __version__
from service.config import Settings
from service.http.documentation import document_status
from service.http.responses import HTML
from service.http.urls import absolute

home_bp = Blueprint("home", __name__)

STYLE = """
  :root { color-scheme: light dark; }
  body { max-width: 38rem; margin: 12vh auto; padding: 0 1.25rem;
         font: 1.05rem/1.6 Georgia, "Times New Roman", serif; }
  h1 { font-size: 2.6rem; font-weight: normal; letter-spacing: .02em; margin: 0; }
  p.sub { margin-top: 0; opacity: .7; }
  dt { margin-top: .9rem; } dd { margin: 0; opacity: .8; }
  code, pre { font: .9rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
  pre { overflow-x: auto; padding: .8rem 1rem; border: 1px solid #8886; border-radius: 6px; }
"""
# The policy allows only this style and an empty icon.
STYLE_HASH = b64encode(sha256(STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{STYLE_HASH}'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Octavo</title>
<link rel="icon" href="data:,">
<style>{style}</style>
<h1>Octavo</h1>
<p class="sub">A book catalogue over HTTP, version {version}</p>
<dl>
  <dt><a href="{root}/api/books">/api/books</a></dt>
  <dd>the catalogue, newest first; <code>?page=2</code>, <code>?genre=Science</code>,
      <code>?q=time</code>, <code>?sort=title</code></dd>
  <dt><a href="{root}/api/books?limit=20">/api/books?limit=20</a></dt>
  <dd>the same by cursor, to walk through all of it</dd>
  <dt><a href="{root}/docs">/docs</a></dt>
  <dd>try all of it out; the document itself is <a href="{root}/openapi.json">/openapi.json</a></dd>
  <dt><a href="{root}/health">/health</a></dt>
  <dd>how the service and its dependencies are</dd>
</dl>
<pre>curl -s '{base}/api/books?per_page=1'</pre>
</html>
"""


@home_bp.get("/")
@document_status(200, media=HTML)
@rate_exempt
async def home() -> Response:
    """Show the front page."""
    base = absolute("")
    page = PAGE.format(
        style=STYLE, version=__version__, base=escape(base), root=escape(urlsplit(base).path)
    )
    return Response(page, headers={"Content-Security-Policy": POLICY}, content_type=HTML)


def init_app(app: Quart, settings: Settings) -> None:
    """Register the front page."""
    app.register_blueprint(home_bp)
