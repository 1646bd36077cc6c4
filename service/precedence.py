"""Priorities: which routes are refused first when the server is overloaded, and which never."""

from collections.abc import Callable
from typing import Any, TypeVar

COSTLY, NEVER_SHED = "_octavo_costly", "_octavo_never_shed"  # of a view

T = TypeVar("T", bound=Callable[..., Any])


def costly(view: T) -> T:
    """Refuse a route first when the server is overloaded."""
    setattr(view, COSTLY, True)
    return view


def never_shed(view: T) -> T:
    """Never refuse a route, nor let it wait. Its path has no variables."""
    setattr(view, NEVER_SHED, True)
    return view
