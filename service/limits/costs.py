"""Declare the cost of a route: the units that a request is charged, from its body."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from service.http.operations import Handler, Reply

UNIT_SIZE = 100  # items of a request that cost one unit


def cost(units: Callable[[Any], int]) -> Callable[[Handler], Handler]:
    """Charge the limits of a route `units` of the validated body `data`, not one.

    The decorator stands below `validate_request`. Raises as `Limiter.charge_cost` does, before the
    handler runs.
    """

    def decorator(handler: Handler) -> Handler:
        @wraps(handler)
        async def charged(call: Any, **values: Any) -> Reply:
            await call.limiter.charge_cost(call.scope, units(values["data"]))
            return await handler(call, **values)

        return charged

    return decorator


def units_of(number: int) -> int:
    """Return the cost of a request with `number` items: one unit for each UNIT_SIZE."""
    return -(-number // UNIT_SIZE)
