"""Octavo, a book catalogue over HTTP: the path of a request, and the rooms of the package.

    server/                     supervises worker processes: Hypercorn on uvloop
      server/http1/             parses HTTP/1.1 requests, and serialises responses
      fast_path/                sends cached responses without a task
      middleware/load_shedding  ASGI: the request waits for its turn, or is refused
      middleware/request_edge   ASGI: request id, size of the body, security headers, errors
      limits/middleware         ASGI: the rate limits of the request, and its token
      fast_path/direct          runs the operation of a complete request without Quart's cycle
      http/quart_app            Quart: hooks, and the view of the operation
      */routes                  a handler takes a Call and returns a Reply (http/operations)
      cache/                    reads rows and lists: from the cache, else through the service
      */service                 rules and SQL, with a session and typed values
      db/database               sessions to read, and writes: alone or in groups

One typed object in the scope holds the facts about a request (http/context). If other code adds
hooks, handlers or middleware to the application, every request goes through Quart
(http/additions).

The rooms in the order of their imports. A file imports files of its own room and of rooms before
it, never of rooms behind it:

    files, ids, timeouts, config, logs, errors
    server/http1, redis_client  libraries that know nothing of Octavo
    admission                   the queue of requests
    models, cache, db           tables, cached rows and lists, sessions and statements
    security                    passwords, tokens, names
    http                        requests, responses, operations
    limits, middleware          rate limits; what surrounds the application
    openapi                     the OpenAPI document, from the declarations of routes
    books, users, auth, admin   the resources: schemas, service (rules and SQL), routes
    system                      health, metrics, the front page
    fast_path                   operations without Quart's request cycle
    importer, sample_data       books from files; shipped and made-up books
    app                         create_app
    server, cli                 processes, commands

Each concern of the application is installed by its `init_app(app, settings)`.
"""

from importlib.metadata import version

__version__ = version("octavo")
