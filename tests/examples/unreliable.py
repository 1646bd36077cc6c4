"""A service that refuses every tenth request for books (`octavo serve --app`).

The refusal is that of an overloaded service: 503 with Retry-After.
"""

from itertools import count

from quart import Quart, request

from service import app as octavo
from service.config import Settings
from service.errors import ServiceUnavailableError

REFUSED = 10  # of so many requests, one


def create_app(settings: Settings) -> Quart:
    """Make the application, with the hook that refuses requests."""
    app = octavo.create_app(settings)
    numbers = count(1)

    @app.before_request
    async def refuse() -> None:
        if request.path.startswith("/api/books") and next(numbers) % REFUSED == 0:
            raise ServiceUnavailableError("Refused by the test")

    return app
