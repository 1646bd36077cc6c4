"""Decorators that declare the responses of a route for the OpenAPI document.

The OpenAPI document gets paths, schemas and security from the route's rule, models and decorators.
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

    headers: names. media: media type. links: possible next requests, as OpenAPI link objects
    (operation id -> parameter -> runtime expression).
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
    """Declare a response of a route: its status, the model of its body, and its header names."""

    def decorator(route: T) -> T:
        if model is not None:
            document_response(model, status)(route)
        declared = getattr(route, STATUSES, ())
        setattr(route, STATUSES, (*declared, DocumentedStatus(status, headers, links or {}, media)))
        return route

    return decorator


def document_errors(*statuses: int) -> Callable[[T], T]:
    """Declare error statuses of a route that the OpenAPI generator cannot derive.

    The generator adds the errors of a body, of `token_required` and of an id in the path.
    """

    def decorator(route: T) -> T:
        setattr(route, ERRORS, {*getattr(route, ERRORS, ()), *statuses})
        return route

    return decorator
