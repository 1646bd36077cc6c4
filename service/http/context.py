"""The context of a request: the facts that the service knows about it, as one typed object.

The object is in the ASGI scope under one key. Each attribute has a default value. The code that
learns a fact sets its attribute.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from werkzeug.routing import Rule

    from service.admission import Admission
    from service.http.auth import CurrentUser
    from service.http.responses import ListResponse
    from service.limits.identity import Credentials
    from service.limits.middleware import LookupResult
    from service.limits.types import QuotaStatus

KEY = "octavo"
UNKNOWN = "unknown"


class RequestContext:
    """The facts about one request.

    begun: when the service received it, in seconds of `time.perf_counter`; 0: not known yet.
    matched: the rule of its path, and the values in it. route: the rule as text.
    credentials: of its caller, once they were read.
    user: of its token, once it was checked. user_id: the same, where only that is known.
    cache_status: how the cache answered a read (`hit`, `miss`, `bypass`).
    quotas: how the caller stands with each limit, once these were decided.
    lookup_result: the results of the fast path, for the limit middleware.
    admission: its turn in the queue.
    listed: the list that it was answered with, which may be kept.
    error: what the request is refused with; Quart's cycle raises it in the place of the view.
    is_looked_up: the fast path was asked. is_shed: it waited too long for its turn.
    is_too_large: the body went over the cap. is_cut_short: the client left before its end.
    """

    begun: float = 0.0
    matched: "tuple[Rule, Mapping[str, Any]] | None" = None
    route: str = UNKNOWN
    credentials: "Credentials | None" = None
    user: "CurrentUser | None" = None
    user_id: int | None = None
    cache_status: str | None = None
    quotas: "list[QuotaStatus] | None" = None
    lookup_result: "LookupResult | None" = None
    admission: "Admission | None" = None
    listed: "ListResponse | None" = None
    error: Exception | None = None
    is_looked_up: bool = False
    is_shed: bool = False
    is_too_large: bool = False
    is_cut_short: bool = False


def context_of(scope: Any) -> RequestContext:
    """Give the context of a request, by its ASGI scope."""
    context: RequestContext | None = scope.get(KEY)
    if context is None:
        context = scope[KEY] = RequestContext()
    return context
