"""The application factory: it calls each `init_app` in order, then registers the blueprints."""

from quart import Quart

from service import export, fast_path, idempotency, limits, logs, openapi, report, security
from service.admin import admin_bp
from service.auth import auth_bp
from service.books import books_bp
from service.config import Settings, load
from service.db import database
from service.http import additions, cors, error_handler, pagination, requests
from service.http.quart_app import Application
from service.middleware import access_log, compression, load_shedding, loop_lag, request_edge
from service.search import search_bp
from service.system import health, home, metrics
from service.users import users_bp
from service.views import counter, views_bp

CONCERNS = (
    logs, additions, requests, error_handler, cors, security, pagination, database, idempotency,
    counter, loop_lag, health, home, export, report, openapi, limits, metrics, access_log,
    request_edge, compression, load_shedding, fast_path,
)  # fmt: skip
BLUEPRINTS = (auth_bp, books_bp, search_bp, views_bp, users_bp, admin_bp)


def create_app(config_name: str | Settings = "development") -> Quart:
    """Create an application.

    `config_name`: `development`, `production` or `testing`, to load these settings from the
    environment and `.env`; or a Settings object. Raises ConfigurationError for invalid or unsafe
    settings.
    """
    settings = (load(config_name) if isinstance(config_name, str) else config_name).check()
    app = Application("service", static_folder=None)
    for concern in CONCERNS:
        concern.init_app(app, settings)
    for blueprint in BLUEPRINTS:
        app.register_blueprint(blueprint)
    app.extensions["additions"].remember()
    return app
