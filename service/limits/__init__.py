"""Exact sliding-window rate limits: one log of admitted units for each caller and limit.

A unit is in most cases one request. All charges of a request are decided atomically.

types               charges, quotas, decisions
memory_store        decides in the memory of one process
redis_store         decides in Redis with acquire.lua, by the same algorithm
failover            decides in Redis, or in memory while Redis is unreachable
identity            the caller that a request is charged to: a user or an address
policies            the configured limits, by tier
limiter             the limits that routes declare by quart-rate-limiter's decorators
costs               the cost of routes whose requests hold many items
middleware          ASGI: checks limits and tokens before Quart
headers             RateLimit headers, and the error of a 429
password_attempts   the limit of wrong passwords
routes              /api/rate-limit
"""

from collections.abc import AsyncGenerator

from quart import Quart
from redis.asyncio import BlockingConnectionPool

from service.cache import RedisStore
from service.config import Settings
from service.limits.costs import cost, units_of
from service.limits.failover import LimitStore
from service.limits.identity import Identities
from service.limits.limiter import Limiter
from service.limits.middleware import LimitMiddleware
from service.limits.policies import FAILURES, Policies, named
from service.limits.redis_store import RedisLimits
from service.limits.routes import limits_bp
from service.redis_client import RedisBatcher

MEMORY = "memory://"

__all__ = ["FAILURES", "Limiter", "cost", "init_app", "named", "units_of"]


def init_app(app: Quart, settings: Settings) -> None:
    """Install the limiter, and wrap the application in the limit middleware."""
    batcher = _batcher(app, settings)
    store = LimitStore(
        None if batcher is None else RedisLimits(batcher), settings.total_workers, app.logger
    )
    identities = Identities(settings.trusted_proxy_hops, app.extensions["tokens"])
    limiter = app.extensions["limiter"] = Limiter(Policies(settings), identities, store)
    enabled = settings.ratelimit_enabled
    limiter.init_app(app, enabled)
    app.register_blueprint(limits_bp)
    middleware = app.extensions["limits"] = LimitMiddleware(app, app.asgi_app, limiter, enabled)
    app.asgi_app = middleware  # type: ignore[method-assign]  # Quart's extension point

    @app.while_serving
    async def lifespan() -> AsyncGenerator[None, None]:
        if not enabled and settings.env == "production":
            app.logger.warning(
                "RATELIMIT_ENABLED is false: requests and login failures are not limited"
            )
        await store.open()
        yield
        if batcher is not None:
            await batcher.close()  # if the cache shares this batcher, its later commands reconnect


def _batcher(app: Quart, settings: Settings) -> RedisBatcher | None:
    """Return the batcher for Redis: the cache's, if the URLs are equal. None: use memory."""
    store = app.extensions["cache"].store
    url = settings.ratelimit_storage_url or settings.redis_url
    if url is None or url == MEMORY:
        return None
    if isinstance(store, RedisStore) and url == settings.redis_url:
        return store.batcher
    return RedisBatcher(BlockingConnectionPool.from_url(url), settings.ratelimit_redis_seconds)
