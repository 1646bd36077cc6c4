"""Settings of the cache: lifetimes by kind of data."""

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings


class CacheSettings(BaseSettings):
    """Lifetimes and limits of the cache. Reads see a write at once, with any value here."""

    cache_item_seconds: int = Field(
        300, ge=0, le=86_400, description="lifetime of a cached book or user; 0 caches none"
    )
    cache_count_seconds: int = Field(
        30, ge=0, le=86_400, description="lifetime of a cached total; 0 caches none"
    )
    cache_pages: Literal["generation", "ttl", "none"] = Field(
        "generation",
        description="pages of lists: `generation` keeps them until the next write, `ttl` for "
        "their lifetime, **even if stale**, `none` caches no pages",
    )
    cache_page_seconds: int = Field(30, ge=1, le=86_400, description="lifetime of a cached page")
    cache_redis_seconds: float = Field(
        0.1,
        gt=0,
        le=2,
        description="maximum total wait of a read for Redis; then it reads the database. A write "
        "waits 1.5 times as long, then turns the cache off",
    )
    cache_memory_entries: int = Field(
        20_000, ge=100, description="maximum number of entries in memory, without Redis"
    )
