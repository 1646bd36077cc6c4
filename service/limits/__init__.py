"""Limits that hold: a log of admitted units for each caller and limit, asked in one step.

`claims` has the words. `decide.lua` and `memory` are the decision, the same twice: in Redis
(`shared`) and within a process. `ledger` chooses between them, `callers` says who asks, `table`
how much of what they have, `limiter` is quart-rate-limiter's surface over it, and `gate` stands
before the framework. `wording` tells the outcome, `routes` gives it at `/api/rate-limit`.
"""

from collections.abc import AsyncGenerator

from quart import Quart
from redis.asyncio import BlockingConnectionPool

from service.cache import RedisStore
from service.config import Settings
from service.limits.callers import Callers
from service.limits.gate import Gate
from service.limits.ledger import Ledger
from service.limits.limiter import Limiter
from service.limits.routes import limits_bp
from service.limits.shared import Shared
from service.limits.table import FAILURES, Table, named
from service.wire import Wire

MEMORY = "memory://"

__all__ = ["FAILURES", "Limiter", "init_app", "named"]


def init_app(app: Quart, settings: Settings) -> None:
    """Put the gate before the application."""
    wire = _wire(app, settings)
    ledger = Ledger(None if wire is None else Shared(wire), settings.total_workers, app.logger)
    callers = Callers(settings.trusted_proxy_hops, app.extensions["tokens"])
    limiter = app.extensions["limiter"] = Limiter(Table(settings), callers, ledger)
    enabled = settings.ratelimit_enabled
    limiter.init_app(app, enabled)
    app.register_blueprint(limits_bp)
    gate = app.extensions["gate"] = Gate(app, app.asgi_app, limiter, enabled)
    app.asgi_app = gate  # type: ignore[method-assign]  # Quart's way in

    @app.while_serving
    async def lifespan() -> AsyncGenerator[None, None]:
        if not enabled and settings.env == "production":
            app.logger.warning("RATELIMIT_ENABLED is false: nobody is limited, nor in guessing")
        await ledger.open()
        yield
        if wire is not None:
            await wire.close()  # the cache, should it be its own, connects anew for what is left


def _wire(app: Quart, settings: Settings) -> Wire | None:
    """Give the way to the Redis of the limits: that of the cache, where it is the same one."""
    store = app.extensions["cache"].store
    url = settings.ratelimit_storage_url or settings.redis_url
    if url is None or url == MEMORY:
        return None
    if isinstance(store, RedisStore) and url == settings.redis_url:
        return store.wire
    return Wire(BlockingConnectionPool.from_url(url), settings.ratelimit_redis_seconds)
