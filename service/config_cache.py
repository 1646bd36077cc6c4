"""The settings of the cache: how long each kind of data is kept."""

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings


class CacheSettings(BaseSettings):
    """What is kept, and for how long. Writes are seen at once, whatever stands here."""

    cache_item_seconds: int = Field(
        300, ge=0, le=86_400, description="life of a cached book or user; 0: none is kept"
    )
    cache_count_seconds: int = Field(
        30, ge=0, le=86_400, description="life of a cached total; 0: none is kept"
    )
    cache_pages: Literal["generation", "ttl", "none"] = Field(
        "generation",
        description="pages of lists: `generation` keeps them until the next write, `ttl` for "
        "their life, **stale or not**, `none` not at all",
    )
    cache_page_seconds: int = Field(30, ge=1, le=86_400, description="life of a cached page")
    cache_redis_seconds: float = Field(
        0.1,
        gt=0,
        le=2,
        description="wait of a read for Redis, in all; then it asks the database. A write waits "
        "half as long again, then turns the cache off",
    )
    cache_memory_entries: int = Field(
        20_000, ge=100, description="entries kept in memory where there is no Redis"
    )
