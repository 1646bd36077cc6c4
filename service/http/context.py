"""The request context: one typed object that middleware and handlers of a request share.

The object is in the ASGI scope under KEY. Each attribute has a default value. The code that learns
a fact sets the attribute.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from werkzeug.routing import Rule

    from service.admission import Admission
    from service.http.auth import CurrentUser
    from service.http.responses import ListResponse
    from service.limits.identity import Credentials
    from service.limits.middleware import LookupResult
    from service.limits.types import Charge, Decision, QuotaStatus

KEY = "octavo"
UNKNOWN = "unknown"


class RequestContext:
    """The facts about one request.

    begun: `time.perf_counter` (seconds) when a lookup of the warm path began; 0: no lookup.
    matched: the URL rule that matches the path, and the values of its variables.
    route: the rule as text. credentials: caller and token, once read.
    user: the authenticated user. user_id: the user's id; the warm path sets only the id.
    cache_status: result of a read of the cache (`hit`, `miss`, `bypass`).
    quotas: the caller's quota under each policy, once decided; None: not limited.
    charged: the charges of the route's limits, and their decision; None: not limited.
    lookup_result: the results of the warm path, for the limit middleware.
    admission: the turn in the admission queue. listed: the list response, which the warm path may
    remember. unchanged: content type and size (bytes) of the body that a 304 replaces.
    error: refuses the request; Quart's request cycle raises it instead of calling a view.
    is_looked_up: the warm path has seen the request. is_shed: refused with 503 after its body.
    is_too_large: the body exceeds its maximum size. is_cut_short: disconnect before its end.
    is_negotiated: the response depends on the header Accept.
    """

    begun: float = 0.0
    matched: "tuple[Rule, Mapping[str, Any]] | None" = None
    route: str = UNKNOWN
    credentials: "Credentials | None" = None
    user: "CurrentUser | None" = None
    user_id: int | None = None
    cache_status: str | None = None
    quotas: "list[QuotaStatus] | None" = None
    charged: "tuple[Sequence[Charge], Decision] | None" = None
    lookup_result: "LookupResult | None" = None
    admission: "Admission | None" = None
    listed: "ListResponse | None" = None
    unchanged: "tuple[str, int] | None" = None
    error: Exception | None = None
    is_looked_up: bool = False
    is_shed: bool = False
    is_too_large: bool = False
    is_cut_short: bool = False
    is_negotiated: bool = False


def context_of(scope: Any) -> RequestContext:
    """Return the context in an ASGI scope. Creates the context if the scope has none."""
    context: RequestContext | None = scope.get(KEY)
    if context is None:
        context = scope[KEY] = RequestContext()
    return context
