"""Which routes are turned away first, and which never, when there is too much to do."""

from collections.abc import Callable
from typing import Any, TypeVar

COSTLY, NEVER_SHED = "_octavo_costly", "_octavo_never_shed"  # of a view
LET_IN = "octavo.let_in"  # in the scope: the server has looked whether it should be

T = TypeVar("T", bound=Callable[..., Any])


def costly(view: T) -> T:
    """Let a route be turned away first."""
    setattr(view, COSTLY, True)
    return view


def never_shed(view: T) -> T:
    """Let a route never be turned away. Its path has no variables."""
    setattr(view, NEVER_SHED, True)
    return view
