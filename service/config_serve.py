"""The settings of serving: workers, connections, how they end, and what is told of them."""

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings


class ServeSettings(BaseSettings):
    """How `octavo serve` serves."""

    workers: int = Field(
        1,
        ge=0,
        le=256,
        description="processes that serve here, watched over; 0: this very process, by nobody",
    )
    backlog: int = Field(2_048, ge=1, description="connections that may wait to be accepted")
    keep_alive_seconds: float = Field(
        75.0, gt=0, description="life of an idle connection: longer than a load balancer's"
    )
    header_seconds: float = Field(
        5.0, gt=0, description="from the first byte of a request to the end of its headers"
    )
    http1_parser: Literal["httptools", "h11"] = Field(
        "httptools",
        validation_alias=AliasChoices("http1_parser", "http1"),
        description="the parser of HTTP/1.1: `httptools` is fast, `h11` is Hypercorn's own",
    )
    max_requests: int = Field(
        0, ge=0, description="requests after which a worker is replaced by a new one; 0: never"
    )
    max_requests_jitter: int = Field(
        0, ge=0, description="up to so many more, by chance: not all at once"
    )
    drain_seconds: float = Field(
        1.0,
        ge=0,
        le=300,
        description="for how long, before it ends, `/health/ready` says 503 and clients are told "
        "to close: as long as a load balancer takes to see it",
    )
    grace_seconds: float = Field(
        30.0, gt=0, description="what requests in flight are given to end after that"
    )
    tls_certfile: Path | None = Field(None, description="certificate chain, PEM: serve HTTPS")
    tls_keyfile: Path | None = Field(None, description="its key, PEM")
    http2: bool = Field(False, description="offer HTTP/2 over TLS, too")
    max_wait_seconds: float = Field(
        2.0,
        gt=0,
        le=600,
        description="the longest wait of a request: for its turn, for a database connection and "
        "for a thread that hashes passwords, together; then 503",
    )
    fast_path: bool = Field(
        True,
        validation_alias=AliasChoices("fast_path", "short_way"),
        description="`false`: every request takes Quart's way. Hooks, handlers and middleware that "
        "are added to the application have the same effect",
    )
    access_log_sample: float = Field(
        1.0,
        ge=0,
        le=1,
        description="part of the requests that went well (below 400) that get a line in the log",
    )
    metrics_token: SecretStr | None = Field(
        None, description="who has it may read `/metrics`; without it nobody in production"
    )
    revision: str | None = Field(
        None, description="the deployed revision, for `/health`; a git checkout knows its own"
    )
