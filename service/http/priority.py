"""Priorities: which routes are refused first when the server is overloaded, and which never."""

from collections.abc import Callable
from typing import Any, TypeVar

COSTLY, NEVER_SHED = "_octavo_costly", "_octavo_never_shed"  # of a view
CONSTANT = "_octavo_constant"

T = TypeVar("T", bound=Callable[..., Any])


def costly(view: T) -> T:
    """Refuse a route first when the server is overloaded."""
    setattr(view, COSTLY, True)
    return view


def constant(body: bytes) -> Callable[[T], T]:
    """Answer a route with these bytes of JSON always. Its path has no variables."""

    def decorator(view: T) -> T:
        setattr(view, CONSTANT, body)
        return view

    return decorator


def never_shed(view: T) -> T:
    """Never refuse a route, nor let it wait. Its path has no variables."""
    setattr(view, NEVER_SHED, True)
    return view
