"""The report on the whole catalogue: at most one computation in REPORT_SECONDS, for all processes.

schemas   the response
sql       the aggregate, and the statements of the stored report
service   shares the report among processes
routes    /api/report
"""

from quart import Quart

from service.config import Settings
from service.report.routes import report_bp
from service.report.service import Reports

__all__ = ["init_app", "report_bp"]


def init_app(app: Quart, settings: Settings) -> None:
    """Install `Reports` as an extension of the application, and register the route."""
    app.extensions["reports"] = Reports(app.extensions["database"], settings.report_seconds)
    app.register_blueprint(report_bp)
