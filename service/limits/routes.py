"""The route `/api/rate-limit`: the caller's quotas. The request itself is not charged."""

from pydantic import BaseModel, Field
from quart import Blueprint
from quart_rate_limiter import rate_exempt

from service.http.call import Call
from service.http.documentation import document_status
from service.http.operations import Reply, operation
from service.http.schemas import Int64
from service.limits.headers import ceil_seconds, policy_name

limits_bp = Blueprint("limits", __name__)


class Allowance(BaseModel):
    """A caller's quota under one policy of a limit."""

    limit: str = Field(
        description="the routes that share it, such as `books.list`; `default`: all others"
    )
    policy: str = Field(description="its name in the RateLimit headers, such as `minute`")
    quota: Int64 = Field(description="requests within any window")
    window: Int64 = Field(description="seconds")
    remaining: Int64 = Field(description="requests that can be made now")
    reset: Int64 = Field(description="seconds until one more request is available")


class RateLimits(BaseModel):
    """All policies that apply to a caller."""

    caller: str = Field(
        description="whose requests are counted: `user:<id>` or `address:<address>`"
    )
    tier: str
    policies: list[Allowance]


@limits_bp.get("/api/rate-limit")
@rate_exempt
@operation
@document_status(200, RateLimits)
async def rate_limits(call: Call) -> Reply:
    """Return the caller's quota under every limit. The request is not charged."""
    limiter = call.limiter
    caller = limiter.identities.read(call.scope).caller
    names = limiter.policies.names
    decision = await limiter.quotas_of([limiter.charge(each, caller, cost=0) for each in names])
    quotas = iter(decision.quotas)
    policies = [
        Allowance(
            limit=each,
            policy=policy_name(policy),
            quota=policy.amount,
            window=policy.seconds,
            remaining=(quota := next(quotas)).remaining,
            reset=ceil_seconds(quota.reset),
        )
        for each in names
        for policy in limiter.policies.of(each, caller.tier)
    ]
    return Reply(RateLimits(caller=caller.key, tier=caller.tier, policies=policies))
