"""Limits that hold: a log of admitted units for each caller and limit, asked in one step.

types          charges, quotas, decisions
memory_store   decides within a process
redis_store    decides in Redis, by decide.lua: the same algorithm
failover       Redis, or memory while Redis is away
identity       whose units a request spends: a user's, or an address's
policies       the limits of the settings, by tier
limiter        quart-rate-limiter's interface
middleware     limits and tokens before the framework
headers        RateLimit headers, and the sentence of a 429
routes         /api/rate-limit
"""

from collections.abc import AsyncGenerator

from quart import Quart
from redis.asyncio import BlockingConnectionPool

from service.cache import RedisStore
from service.config import Settings
from service.limits.failover import LimitStore
from service.limits.identity import Identities
from service.limits.limiter import Limiter
from service.limits.middleware import LimitMiddleware
from service.limits.policies import FAILURES, Policies, named
from service.limits.redis_store import RedisLimits
from service.limits.routes import limits_bp
from service.redis_client import RedisBatcher

MEMORY = "memory://"

__all__ = ["FAILURES", "Limiter", "init_app", "named"]


def init_app(app: Quart, settings: Settings) -> None:
    """Put the gate before the application."""
    batcher = _batcher(app, settings)
    ledger = LimitStore(
        None if batcher is None else RedisLimits(batcher), settings.total_workers, app.logger
    )
    callers = Identities(settings.trusted_proxy_hops, app.extensions["tokens"])
    limiter = app.extensions["limiter"] = Limiter(Policies(settings), callers, ledger)
    enabled = settings.ratelimit_enabled
    limiter.init_app(app, enabled)
    app.register_blueprint(limits_bp)
    gate = app.extensions["gate"] = LimitMiddleware(app, app.asgi_app, limiter, enabled)
    app.asgi_app = gate  # type: ignore[method-assign]  # Quart's way in

    @app.while_serving
    async def lifespan() -> AsyncGenerator[None, None]:
        if not enabled and settings.env == "production":
            app.logger.warning("RATELIMIT_ENABLED is false: nobody is limited, nor in guessing")
        await ledger.open()
        yield
        if batcher is not None:
            await batcher.close()  # the cache, should it be its own, connects anew for what is left


def _batcher(app: Quart, settings: Settings) -> RedisBatcher | None:
    """Give the way to the Redis of the limits: that of the cache, where it is the same one."""
    store = app.extensions["cache"].store
    url = settings.ratelimit_storage_url or settings.redis_url
    if url is None or url == MEMORY:
        return None
    if isinstance(store, RedisStore) and url == settings.redis_url:
        return store.batcher
    return RedisBatcher(BlockingConnectionPool.from_url(url), settings.ratelimit_redis_seconds)
