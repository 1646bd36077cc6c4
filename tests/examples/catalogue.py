"""The catalogue with reviews: `octavo serve --app tests.examples.catalogue:create_app`."""

from quart import Quart

from service import app as octavo
from service.config import Settings
from tests.examples.reviews import reviews_bp


def create_app(settings: Settings) -> Quart:
    """Make the application, with the routes of the example."""
    app = octavo.create_app(settings)
    app.register_blueprint(reviews_bp)
    return app
