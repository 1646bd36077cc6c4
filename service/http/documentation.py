"""Decorators that declare the responses of a route for the OpenAPI document.

The rest of the document follows from the route's rule, models and guard.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from quart_schema import document_response

T = TypeVar("T", bound=Callable[..., Any])

STATUSES = "_octavo_statuses"
ERRORS = "_octavo_errors"


@dataclass(frozen=True)
class DocumentedStatus:
    """A declared response of a route that is not an error.

    links: possible next requests (OpenAPI link objects: operation -> parameter -> expression).
    """

    status: int
    headers: tuple[str, ...] = ()
    links: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    media: str = "application/json"


def document_status(
    status: int,
    model: Any = None,
    *headers: str,
    links: Mapping[str, Mapping[str, str]] | None = None,
    media: str = "application/json",
) -> Callable[[T], T]:
    """Declare that a route responds with `status`, a `model` and `headers`."""

    def decorator(route: T) -> T:
        if model is not None:
            document_response(model, status)(route)
        declared = getattr(route, STATUSES, ())
        setattr(route, STATUSES, (*declared, DocumentedStatus(status, headers, links or {}, media)))
        return route

    return decorator


def document_errors(*statuses: int) -> Callable[[T], T]:
    """Declare the error statuses of a route that do not follow from its declaration.

    The errors of a body, a guard and an id in the path are added automatically.
    """

    def decorator(route: T) -> T:
        setattr(route, ERRORS, {*getattr(route, ERRORS, ()), *statuses})
        return route

    return decorator
