"""What is allowed: slo.toml, read strictly."""

import tomllib
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

Milliseconds = Annotated[float, Field(gt=0, le=60_000)]


class ObjectivesError(Exception):
    """The file cannot be used: a sentence for each reason."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Objective(_Table):
    """What is allowed of one kind of request. failure_ratio: of its requests."""

    p95_ms: Milliseconds
    p99_ms: Milliseconds
    failure_ratio: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.p99_ms < self.p95_ms:
            raise ValueError("p99_ms is less than p95_ms")
        return self


class Objectives(_Table):
    """What is allowed of a run.

    allow_503: a 503 that says when to come back is no failure. kept_promises: so many 429s at
    least must have come due within the run, and held.
    """

    stale_reads: int = Field(0, ge=0)
    allow_503: bool = False
    kept_promises: int = Field(0, ge=0)
    requests: dict[str, Objective] = Field(min_length=1)


def read(path: Path, profile: str) -> Objectives:
    """Read what is allowed of a profile. Raises ObjectivesError."""
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
        raise ObjectivesError("\n".join([f"{path} is wrong:", *problems])) from None
    if profile not in profiles:
        known = ", ".join(profiles) or "nothing"
        raise ObjectivesError(f"{path} says nothing about {profile}, only about {known}")
    return profiles[profile]
