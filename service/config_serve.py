"""Settings of serving: workers, connections, shutdown, logs and metrics."""

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings


class ServeSettings(BaseSettings):
    """Settings of `octavo serve`."""

    workers: int = Field(
        1,
        ge=0,
        le=256,
        description="number of supervised worker processes; 0 serves in this process, unsupervised",
    )
    backlog: int = Field(
        2_048, ge=1, description="maximum number of connections that wait to be accepted"
    )
    keep_alive_seconds: float = Field(
        75.0,
        gt=0,
        description="lifetime of an idle connection; must exceed that of a load balancer",
    )
    header_seconds: float = Field(
        5.0,
        gt=0,
        description="maximum time from the first byte of a request to the end of its headers",
    )
    http1_parser: Literal["httptools", "h11"] = Field(
        "httptools",
        validation_alias=AliasChoices("http1_parser", "http1"),
        description="HTTP/1.1 parser: `httptools` is fast, `h11` is Hypercorn's own",
    )
    max_requests: int = Field(
        0, ge=0, description="number of requests after which a worker is replaced; 0 replaces none"
    )
    max_requests_jitter: int = Field(
        0,
        ge=0,
        description="maximum random addition to `MAX_REQUESTS`, so that workers are not replaced "
        "all at once",
    )
    drain_seconds: float = Field(
        1.0,
        ge=0,
        le=300,
        description="time before shutdown in which `/health/ready` returns 503 and clients are "
        "asked to close connections; a load balancer must notice within it",
    )
    grace_seconds: float = Field(
        30.0, gt=0, description="maximum time for requests in flight to end after that"
    )
    tls_certfile: Path | None = Field(
        None, description="certificate chain (PEM file); enables HTTPS"
    )
    tls_keyfile: Path | None = Field(None, description="private key of the certificate (PEM file)")
    http2: bool = Field(False, description="also offer HTTP/2 over TLS")
    max_wait_seconds: float = Field(
        2.0,
        gt=0,
        le=600,
        description="maximum total wait of a request in the queue, for a database connection and "
        "for a thread that hashes passwords; then 503",
    )
    fast_path: bool = Field(
        True,
        validation_alias=AliasChoices("fast_path", "short_way"),
        description="`false` sends every request through Quart's request cycle. Hooks, handlers "
        "and middleware that are added to the application have the same effect",
    )
    access_log_sample: float = Field(
        1.0,
        ge=0,
        le=1,
        description="fraction of successful requests (status below 400) that are logged",
    )
    metrics_token: SecretStr | None = Field(
        None,
        description="bearer token for `/metrics`; without it, production does not serve metrics",
    )
    revision: str | None = Field(
        None,
        description="deployed revision, shown at `/health`; default: the revision of the git "
        "checkout",
    )
