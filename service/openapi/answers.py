"""What a route says that it answers: the part of the document that only the route knows.

The rest follows from what stands on it already: its rule, its models, its guard.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from quart_schema import document_response

T = TypeVar("T", bound=Callable[..., Any])

ANSWERS = "_octavo_answers"
ERRORS = "_octavo_errors"


@dataclass(frozen=True)
class Answer:
    """One answer of a route that is no error.

    links: what can be asked next (OpenAPI's link objects: operation -> parameter -> expression).
    """

    status: int
    headers: tuple[str, ...] = ()
    links: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    media: str = "application/json"


def answers(
    status: int,
    model: Any = None,
    *headers: str,
    links: Mapping[str, Mapping[str, str]] | None = None,
    media: str = "application/json",
) -> Callable[[T], T]:
    """Say that a route answers `status`, with a `model` and `headers`."""

    def decorator(route: T) -> T:
        if model is not None:
            document_response(model, status)(route)
        said = getattr(route, ANSWERS, ())
        setattr(route, ANSWERS, (*said, Answer(status, headers, links or {}, media)))
        return route

    return decorator


def fails(*statuses: int) -> Callable[[T], T]:
    """Say which errors a route answers, beside those that follow from it.

    A body, a guard, an id in the path need no word.
    """

    def decorator(route: T) -> T:
        setattr(route, ERRORS, {*getattr(route, ERRORS, ()), *statuses})
        return route

    return decorator
