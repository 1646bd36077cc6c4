"""Octavo, a book catalogue over HTTP: the path that a request takes.

    Hypercorn            server/ keeps workers at work: each one process, on uvloop
      -> http1/          HTTP/1.1 under it: bytes into requests, answers into bytes
      -> fast_path/      cached answers go out from here, without a task
      -> load_shedding.py  ASGI: the request waits for its turn, or is refused
      -> front.py        ASGI: request id, body cap, protection, the answer of last resort
      -> limits/middleware.py  ASGI: the limits of the request, and its token
      -> fast_path/direct.py   an operation whose request is complete, without Quart's cycle
      -> asgi.py         Quart, in the task that asks: hooks, and the view of the operation
      -> */routes.py     operations/: a handler takes a Call and gives a Reply
      -> cache/          what is known already; what is not, the service loads
      -> */service.py    rules and SQL, given a session and typed values
      -> db.py           session() to read, write() to change, alone or with others

The facts about a request are one typed object in its scope (context.py). Hooks, handlers and
middleware that are added to the application send every request through Quart (additions.py).

A room (`auth`, `books`, `users`, `admin`) always holds the same files: `__init__` (the
blueprint), `routes` (HTTP), `schemas` (the wire), `service` (rules and SQL). One file for
each concern that crosses rooms, one door in each: `init_app(app, settings)`. `openapi` makes the
document from what stands on the routes. Books from files come in through `importer`, made-up ones
from `plausible.py`; `cli` is the door of both.
"""

from importlib.metadata import version

__version__ = version("octavo")
