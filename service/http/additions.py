"""Find additions: hooks, handlers and middleware that other code adds to the application.

The fast path would bypass additions. So every request runs through Quart's request cycle while the
application has an addition. The search runs when the application starts, and then at most once a
second when a request arrives: signals and middleware can be added at any time.
"""

import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import quart
import quart_schema
from quart import Quart, signals

import service
from service.config import Settings

HOOKS = {
    "before_request": "before_request_funcs",
    "after_request": "after_request_funcs",
    "teardown_request": "teardown_request_funcs",
    "teardown_appcontext": "teardown_appcontext_funcs",
    "url_value_preprocessor": "url_value_preprocessors",
    "errorhandler": "error_handler_spec",
}
# Attributes of the application that other code may replace.
REPLACED = (
    "asgi_app", "asgi_http_class", "request_class", "response_class", "session_interface",
)  # fmt: skip
SIGNALS = {
    "request_started": signals.request_started,
    "request_finished": signals.request_finished,
    "request_tearing_down": signals.request_tearing_down,
    "got_request_exception": signals.got_request_exception,
    "appcontext_pushed": signals.appcontext_pushed,
    "appcontext_popped": signals.appcontext_popped,
    "appcontext_tearing_down": signals.appcontext_tearing_down,
}
# Methods of Quart's class that some libraries replace.
METHODS = (
    "__call__", "asgi_app", "handle_request", "full_dispatch_request", "preprocess_request",
    "dispatch_request", "finalize_request", "process_response", "make_response",
    "handle_http_exception", "handle_user_exception", "handle_exception", "do_teardown_request",
)  # fmt: skip
OWN_FOLDERS = [Path(module.__file__ or "").parent for module in (quart, quart_schema, service)]
SEARCH_INTERVAL_SECONDS = 1.0  # minimum time between two searches

Part = tuple[str, Any]  # a kind (HOOKS, REPLACED, METHODS, SIGNALS), and the hook or class


class Additions:
    """Finds the additions of an application. names: the additions of the last search, as text."""

    def __init__(self, app: Quart) -> None:
        self._app = app
        self._logger: logging.Logger = app.logger
        self._own: dict[str, list[Any]] = {}
        self._asgi_app: Any = None  # at the last search
        self._views: dict[str, Any] = {}
        self._search_at = 0.0
        self.names: list[str] = []

    def remember(self) -> None:
        """Record Octavo's own hooks, which are no additions. Call this at the end of create_app."""
        self._remember(lambda kind, part: kind not in HOOKS or _is_own(part))

    def accept(self) -> None:
        """Allow the fast path to bypass all current hooks. They must not change a response."""
        self._remember(lambda kind, part: True)

    def _remember(self, is_own: Callable[[str, Any], bool]) -> None:
        for kind, part in self._parts():
            if is_own(kind, part):
                self._own.setdefault(kind, []).append(part)
        self._views = dict(self._app.view_functions)

    @property
    def exist(self) -> bool:
        """Whether there is an addition. Searches at intervals, and at once if asgi_app changed."""
        if time.monotonic() >= self._search_at or self._app.asgi_app is not self._asgi_app:
            self.search()
        return bool(self.names)

    def search(self) -> None:
        """Search for additions. Log a warning when they change."""
        self._search_at = time.monotonic() + SEARCH_INTERVAL_SECONDS
        self._asgi_app = self._app.asgi_app
        names = sorted({f"{kind}: {name_of(part)}" for kind, part in self._added()})
        if names and names != self.names:
            self._logger.warning(
                "Every request takes Quart's way because the application has additions (%s): "
                "a cached response costs about ten times as much",
                ", ".join(names),
            )
        elif self.names and not names:
            self._logger.warning("The fast path is on again: the application has no additions")
        self.names = names

    def _added(self) -> Iterator[Part]:
        for kind, part in self._parts():
            if not any(part is own for own in self._own.get(kind, ())):
                yield kind, part
        for kind, signal in SIGNALS.items():
            for receiver in signal.receivers_for(self._app):
                yield kind, receiver
        for endpoint, view in self._views.items():
            if (now := self._app.view_functions.get(endpoint)) is not view:
                yield f"view of {endpoint}", now
        for name in METHODS:
            method = getattr(type(self._app), name)
            if not _is_own(method):
                yield f"Quart.{name}", method

    def _parts(self) -> Iterator[Part]:
        """Yield each hook and each replaceable attribute of the application, with its kind."""
        for kind, attribute in HOOKS.items():
            for hook in _hooks(getattr(self._app, attribute)):
                yield kind, hook
        for attribute in REPLACED:
            yield attribute, getattr(self._app, attribute)
        for name in METHODS:
            if (method := vars(self._app).get(name)) is not None and name != "asgi_app":
                yield name, method


def _hooks(value: Any) -> Iterator[Any]:
    """Yield the functions in a nested table of Quart (by blueprint, status and exception)."""
    if isinstance(value, Mapping):
        for inner in list(value.values()):
            yield from _hooks(inner)
    elif isinstance(value, Iterable) and not callable(value):
        yield from value
    else:
        yield value


def _is_own(function: Any) -> bool:
    file = Path(function.__code__.co_filename) if hasattr(function, "__code__") else Path()
    return any(file.is_relative_to(folder) for folder in OWN_FOLDERS)


def name_of(part: Any) -> str:
    """Return the qualified name of a function or class. For another object, that of its class."""
    named = part if hasattr(part, "__qualname__") else type(part)
    return f"{named.__module__}.{named.__qualname__}"


def init_app(app: Quart, settings: Settings) -> None:
    """Install `Additions`, which searches when the application starts."""
    additions = app.extensions["additions"] = Additions(app)

    @app.while_serving
    async def lifespan() -> AsyncGenerator[None, None]:
        additions.search()
        yield
