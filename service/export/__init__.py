"""Export of the whole catalogue: in pages of JSON, or as one stream of JSON Lines or CSV.

schemas   query and response
service   reads the catalogue in order of id, and makes the stream
formats   rows of books as JSON Lines and as CSV
routes    /api/data
"""

from quart import Quart

from service.config import Settings
from service.export.routes import export_bp
from service.export.service import Exports

__all__ = ["export_bp", "init_app"]


def init_app(app: Quart, settings: Settings) -> None:
    """Install `Exports` as an extension of the application, and register the route."""
    app.extensions["exports"] = Exports(app.extensions["database"])
    app.register_blueprint(export_bp)
