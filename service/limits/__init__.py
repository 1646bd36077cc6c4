"""Limits that hold: a log of admitted units for each caller and limit, asked in one step.

`claims` has the words. `decide.lua` and `memory` are the decision, the same twice: in Redis
(`shared`) and within a process. `ledger` chooses between them, `callers` says who asks, `table`
how much of what they have, `limiter` is quart-rate-limiter's surface over it, and `gate` stands
before the framework. `wording` tells the outcome, `routes` gives it at `/api/rate-limit`.
"""

from collections.abc import AsyncGenerator

from quart import Quart
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from service.config import Settings
from service.limits.callers import Callers
from service.limits.gate import Gate
from service.limits.ledger import Ledger
from service.limits.limiter import Limiter, of_app
from service.limits.routes import limits_bp
from service.limits.shared import Shared
from service.limits.table import FAILURES, Table, named

MEMORY = "memory://"

__all__ = ["FAILURES", "Limiter", "init_app", "named", "of_app"]


def init_app(app: Quart, settings: Settings) -> None:
    """Put the gate before the application."""
    redis = shared = None
    url = settings.ratelimit_storage_url or settings.redis_url
    if url is not None and url != MEMORY:
        # One connection that broke while it was idle is no outage.
        redis = Redis.from_url(url, retry=Retry(NoBackoff(), 1))
        shared = Shared(redis, settings.ratelimit_redis_seconds)
    ledger = Ledger(shared, settings.total_workers, app.logger)
    callers = Callers(settings.trusted_proxy_hops, app.extensions["tokens"])
    limiter = app.extensions["limiter"] = Limiter(Table(settings), callers, ledger)
    enabled = settings.ratelimit_enabled
    limiter.init_app(app, enabled)
    app.register_blueprint(limits_bp)
    app.asgi_app = Gate(app, app.asgi_app, limiter, enabled)  # type: ignore[method-assign]

    @app.while_serving
    async def lifespan() -> AsyncGenerator[None, None]:
        if not enabled and settings.env == "production":
            app.logger.warning("RATELIMIT_ENABLED is false: nobody is limited, nor in guessing")
        await ledger.open()
        yield
        if redis is not None:
            await redis.aclose()
