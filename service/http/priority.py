"""Declare routes that are refused first under overload, never refused, or constant."""

from collections.abc import Callable
from typing import Any, TypeVar

COSTLY, NEVER_SHED = "_octavo_costly", "_octavo_never_shed"  # attributes of a view
CONSTANT = "_octavo_constant"  # of a view: the bytes of its body

T = TypeVar("T", bound=Callable[..., Any])


def costly(view: T) -> T:
    """Declare that requests for a route are refused first while the server is overloaded."""
    setattr(view, COSTLY, True)
    return view


def constant(body: bytes) -> Callable[[T], T]:
    """Declare that a route always returns this JSON body. Its path must have no variables."""

    def decorator(view: T) -> T:
        setattr(view, CONSTANT, body)
        return view

    return decorator


def never_shed(view: T) -> T:
    """Declare that requests for a route never wait and get no 503. No variables in its path."""
    setattr(view, NEVER_SHED, True)
    return view
