"""Octavo, a book catalogue over HTTP: the path that a request takes.

    Hypercorn            server/ keeps workers at work: each one process, on uvloop
      -> http1/          HTTP/1.1 under it: bytes into requests, answers into bytes
      -> shortway/       what is warm is answered here, and goes no further
      -> load_shedding.py  ASGI: the request waits for its turn, or is refused
      -> front.py        ASGI: request id, body cap, protection, the answer of last resort
      -> limits/gate.py  ASGI: may this request pass now?
      -> asgi.py         Quart, in the task that asks
      -> app.py          create_app: every concern, then every blueprint
      -> */routes.py     speaks HTTP: parse (web.py), guard (guard.py), respond (web.py)
      -> cache/          what is known already; what is not, the service loads
      -> */service.py    rules and SQL, given a session and typed values
      -> db.py           session() to read, write() to change, alone or with others

A room (`auth`, `books`, `users`, `admin`) always holds the same files: `__init__` (the
blueprint), `routes` (HTTP), `schemas` (the wire), `service` (rules and SQL). One file for
each concern that crosses rooms, one door in each: `init_app(app, settings)`. `openapi` makes the
document from what stands on the routes. Books from files come in through `importer`, made-up ones
from `plausible.py`; `cli` is the door of both.
"""

from importlib.metadata import version

__version__ = version("octavo")
