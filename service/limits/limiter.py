"""Implement quart-rate-limiter's RateLimiter: its decorators declare the limits of routes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Any

from quart import Quart, current_app, request
from quart_rate_limiter import QUART_RATE_LIMITER_EXEMPT_ATTRIBUTE as EXEMPT
from quart_rate_limiter import RateLimit, RateLimiter

from service.errors import InvalidInputError
from service.http.context import context_of
from service.limits.failover import LimitStore
from service.limits.headers import describe_policy, refusal
from service.limits.identity import Caller, Identities
from service.limits.policies import BY_ADDRESS, DEFAULT, NamedLimit, Policies
from service.limits.types import Charge, Charges, Decision, Policy

PREFIX = "octavo:limit"
CALLER_CACHE_SIZE = 4_096  # size of the LRU cache of charges


@dataclass(frozen=True, eq=False)
class Plan:
    """The limits of a route.

    names: limits whose numbers are in the settings. written: policies with numbers in the code.
    custom: limits with a `key_function` or `skip_function`. These functions need Quart's request
    context, so all limits of such a route are decided in `before_request`.
    """

    names: tuple[str, ...] = ()
    written: tuple[Policy, ...] = ()
    custom: tuple[RateLimit, ...] = ()

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return bool(self.names or self.written or self.custom)


UNKNOWN = Plan((DEFAULT,))  # for paths without a route


class Limiter(RateLimiter):
    """A RateLimiter that decides all limits of a request in one step, exactly.

    The limits of a route and of its blueprint replace the default limit. A `key_function` returns
    the key to charge; without it, the caller is charged.
    """

    def __init__(self, policies: Policies, identities: Identities, limit_store: LimitStore) -> None:
        super().__init__()
        self.identities = identities
        self.policies = policies
        self.limit_store = limit_store
        self.admitted = self.refused = 0  # requests
        self._plans: dict[str, Plan] = {}
        # Returns the charges of a caller under a plan without custom limits.
        self.charges = lru_cache(CALLER_CACHE_SIZE)(self._make_charges)

    def init_app(self, app: Quart, enabled: bool = True) -> None:
        """Register the hook that decides custom limits."""
        self._enabled = enabled
        if enabled:
            app.before_request(self._decide_custom)

    def plan(self, app: Quart, endpoint: str) -> Plan:
        """Return the limits of the route `endpoint`."""
        if endpoint not in self._plans:
            self._plans[endpoint] = self._make_plan(app, endpoint)
        return self._plans[endpoint]

    def _make_plan(self, app: Quart, endpoint: str) -> Plan:
        view = app.view_functions[endpoint]
        if getattr(view, EXEMPT, False):
            return Plan()
        blueprint = app.blueprints.get(endpoint.rpartition(".")[0])
        limits: list[RateLimit] = self._get_limits_for_view_function(view, blueprint)
        if not limits:
            return UNKNOWN
        names = tuple(dict.fromkeys(x.name for x in limits if isinstance(x, NamedLimit)))
        written = tuple(limit for limit in limits if not isinstance(limit, NamedLimit))
        if any(limit.key_function or limit.skip_function for limit in written):
            return Plan(names, custom=written)
        return Plan(names, tuple(map(_policy, written)))

    def _make_charges(self, endpoint: str | None, plan: Plan, caller: Caller) -> Charges:
        charges = [self.charge(name, caller) for name in plan.names]
        if plan.written:
            charges.append(Charge(f"{PREFIX}:{endpoint}:{caller.key}", plan.written))
        return Charges(charges)

    def charge(self, name: str, caller: Caller, cost: int = 1, account: str = "") -> Charge:
        """Return a charge for the limit `name` of the settings. account: part of the log's key."""
        payer = caller.address if name in BY_ADDRESS else caller.key
        key = f"{PREFIX}:{name}:{payer}{account and ':'}{account}"
        return Charge(key, self.policies.of(name, caller.tier), cost)

    async def acquire(self, scope: Any, charges: Sequence[Charge]) -> Decision:
        """Admit all charges of a request, or none. Raises RateLimitedError."""
        if not self._enabled:
            return Decision(True, 0, (), ())
        return self.apply(scope, await self.limit_store.acquire(charges))

    def apply(self, scope: Any, decision: Decision) -> Decision:
        """Record a decision for the response headers. Raises RateLimitedError if not admitted."""
        context = context_of(scope)
        context.quotas = [*(context.quotas or ()), *decision.quotas]
        if not decision.admitted:
            self.refused += 1
            raise refusal(decision)
        self.admitted += 1
        return decision

    async def charge_cost(self, scope: Any, cost: int) -> None:
        """Charge a request `cost` units in total: one was charged before its body was read.

        Raises RateLimitedError, and then refunds the first unit. Raises InvalidInputError if no
        window ever admits so many units.
        """
        context = context_of(scope)
        if context.charged is None or cost == 1:
            return
        charges, first = context.charged
        policies = (policy for charge in charges for policy in charge.policies)
        if (smallest := min(policies, key=lambda policy: policy.amount)).amount < cost:
            reason = (
                f"Costs {cost} requests, and the limit is {describe_policy(smallest)}: send less."
            )
            raise InvalidInputError({"_schema": [reason]})
        rest = [charge._replace(cost=cost - 1) for charge in charges]
        decision = await self.limit_store.acquire(rest)
        context.quotas = [*decision.quotas]
        if not decision.admitted:
            await self.refund(charges, first)
            unspent = await self.quotas_of([charge._replace(cost=0) for charge in charges])
            context.quotas = [*unspent.quotas]
            self.refused += 1
            raise refusal(decision)

    async def quotas_of(self, charges: Sequence[Charge]) -> Decision:
        """Read quotas without a charge: the cost of every charge must be 0."""
        return await self.limit_store.acquire(charges)

    async def refund(self, charges: Sequence[Charge], decision: Decision) -> None:
        """Remove the units of an admitted decision. No effect on limits above 4,096 units."""
        if decision.admitted:
            for charge, stamp in zip(charges, decision.stamps, strict=False):  # no stamps if off
                for _ in range(charge.cost):
                    await self.limit_store.refund(charge.key, stamp)

    def caller(self) -> Caller:
        """Return the caller of Quart's current request."""
        return self.identities.read(request.scope).caller

    async def _decide_custom(self) -> None:
        app = current_app._get_current_object()  # type: ignore[attr-defined]  # current_app is a proxy
        plan = UNKNOWN if request.endpoint is None else self.plan(app, request.endpoint)
        if not plan.custom or request.method == "OPTIONS":
            return
        caller = self.caller()
        charges = [self.charge(name, caller) for name in plan.names]
        by_key: dict[str, list[Policy]] = {}
        for limit in plan.custom:
            if not await self._should_skip(limit):
                key = await limit.key_function() if limit.key_function else caller.key
                by_key.setdefault(key, []).append(_policy(limit))
        for key, policies in by_key.items():
            charges.append(Charge(f"{PREFIX}:{request.endpoint}:{key}", tuple(policies)))
        if charges:
            decision = await self.acquire(request.scope, charges)
            context_of(request.scope).charged = charges, decision
        if (refuse := self.identities.read(request.scope).refuse) is not None:
            raise refuse()


def _policy(limit: RateLimit) -> Policy:
    return Policy(limit.count, ceil(limit.period.total_seconds()))  # windows are whole seconds
