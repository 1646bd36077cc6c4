"""Operations: routes whose handlers do not depend on a framework.

A handler takes a `Call` and the arguments that its decorators add (path values, query, body,
user). It returns a `Reply`. Two callers run the same handler: the Quart view that `operation`
makes, and the fast path, which bypasses Quart's request cycle. Both run the same decorators in
the same order, and both send the same `RawResponse`.
"""

from service.operations.call import Call
from service.operations.operation import (
    Item,
    Operation,
    RawResponse,
    Reply,
    cached_item,
    operation,
    operation_of,
    validate_querystring,
    validate_request,
)

__all__ = [
    "Call",
    "Item",
    "Operation",
    "RawResponse",
    "Reply",
    "cached_item",
    "operation",
    "operation_of",
    "validate_querystring",
    "validate_request",
]
