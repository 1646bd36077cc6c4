"""The objectives in slo.toml, with strict validation."""

import tomllib
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

Milliseconds = Annotated[float, Field(gt=0, le=60_000)]


class ObjectivesError(Exception):
    """The file is invalid; the message has one line for each problem."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Objective(_Table):
    """The objective of one kind of request. failure_ratio: share of its requests that may fail."""

    p95_ms: Milliseconds
    p99_ms: Milliseconds
    failure_ratio: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.p99_ms < self.p95_ms:
            raise ValueError("p99_ms is less than p95_ms")
        return self


class Objectives(_Table):
    """The objectives of a run.

    allow_503: a 503 with a Retry-After is no failure. min_retry_after_honored: minimum number of
    429s after which a client waited for Retry-After within the run, and was admitted.
    """

    stale_reads: int = Field(0, ge=0)
    allow_503: bool = False
    min_retry_after_honored: int = Field(0, ge=0)
    requests: dict[str, Objective] = Field(min_length=1)


def read(path: Path, profile: str) -> Objectives:
    """Read the objectives of a profile. Raises ObjectivesError."""
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ObjectivesError(f"{path} cannot be read: {error}") from None
    try:
        profiles = TypeAdapter(dict[str, Objectives]).validate_python(tables)
    except ValidationError as error:
        problems = [
            f"  {'.'.join(map(str, each['loc']))}: {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors(include_url=False)
        ]
        raise ObjectivesError("\n".join([f"{path} is invalid:", *problems])) from None
    if profile not in profiles:
        known = ", ".join(profiles) or "nothing"
        raise ObjectivesError(f"{path} has no objectives for {profile}, only for {known}")
    return profiles[profile]
