"""`/api/rate-limit`: how a caller stands, for nothing."""

from pydantic import BaseModel, Field
from quart import Blueprint, Response
from quart_rate_limiter import rate_exempt

from service.limits.limiter import of_app
from service.limits.wording import name, seconds
from service.openapi.answers import answers
from service.validation import Int64
from service.web import respond, to_bytes

limits_bp = Blueprint("limits", __name__)


class Allowance(BaseModel):
    """How a caller stands with one policy of a limit."""

    limit: str = Field(description="which routes share it, as `books.list`; `default`: all others")
    policy: str = Field(description="its name in the RateLimit headers, as `minute`")
    quota: Int64 = Field(description="requests within any window")
    window: Int64 = Field(description="seconds")
    remaining: Int64 = Field(description="requests that may be made now")
    reset: Int64 = Field(description="seconds until one more may be")


class RateLimits(BaseModel):
    """Every policy that a caller is under."""

    caller: str = Field(
        description="whose requests are counted: `user:<id>` or `address:<address>`"
    )
    tier: str
    policies: list[Allowance]


@limits_bp.get("/api/rate-limit")
@answers(200, RateLimits)
@rate_exempt
async def rate_limits() -> Response:
    """Give how the caller stands with every limit. It costs nothing."""
    limiter = of_app()
    caller = limiter.caller()
    names = limiter.table.names
    decision = await limiter.look([limiter.claim(each, caller, cost=0) for each in names])
    standings = iter(decision.standings)
    policies = [
        Allowance(
            limit=each,
            policy=name(policy),
            quota=policy.amount,
            window=policy.seconds,
            remaining=(standing := next(standings)).remaining,
            reset=seconds(standing.reset),
        )
        for each in names
        for policy in limiter.table.policies(each, caller.tier)
    ]
    answer = RateLimits(caller=caller.key, tier=caller.tier, policies=policies)
    return respond(to_bytes(answer))
