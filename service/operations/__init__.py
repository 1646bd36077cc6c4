"""Operations: routes whose handlers know no framework.

A handler takes a `Call` and what its decorators add (the values in the path, the query, the body,
the user), and gives a `Reply`. It is written once. Two callers run it: Quart, whose view
`operation` makes, and the fast path, which calls it without Quart's cycle. Both run the same
decorators in the same order, and both answer with the same `RawResponse`.
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
