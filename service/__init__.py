"""Octavo, a book catalogue API: the path of a request, and the order of the subpackages.

A request passes through these modules, from top to bottom:

    server/                     supervises worker processes: Hypercorn on uvloop
      server/http1/             parses HTTP/1.1 requests, and serialises responses
      fast_path/                sends cached responses without an asyncio task
      middleware/load_shedding  ASGI: queues the request, or refuses it with 503
      middleware/request_edge   ASGI: request id, cap on the body, security headers, errors
      limits/middleware         ASGI: checks the rate limits and the token
      fast_path/direct          runs the operation of a complete request without Quart's cycle
      http/quart_app            Quart: hooks, and the view of the operation
      */routes                  a handler takes a Call and returns a Reply (http/operations)
      cache/                    reads rows and lists: from the cache, else through the service
      */service                 business rules and SQL, with a session and typed values
      db/database               sessions for reads; transactions for one write or a group

One typed object in the ASGI scope holds the facts about a request (http/context). If other code
adds hooks, handlers or middleware to the application, every request goes through Quart
(http/additions).

A file imports only from its own subpackage and from those above it in this list, except for types:

    files, ids, timeouts, config, logs, errors
    server/http1, redis_client  libraries that do not depend on the rest of Octavo
    admission                   the queue of requests
    models, cache, db           tables, cached rows and lists, sessions and statements
    security                    passwords, tokens, user names
    http                        requests, responses, operations
    limits, middleware          rate limits; ASGI middleware around the application
    openapi                     the OpenAPI document, from the declarations of routes
    books, users, auth, admin   the resources: schemas, service (rules and SQL), routes
    system                      health, metrics, the front page
    fast_path                   operations without Quart's request cycle
    importer, sample_data       books from files; shipped and generated books
    app                         create_app
    server, cli                 processes, commands

`create_app` calls the `init_app(app, settings)` of each module that extends the application. "The
guide" in comments is the Flask guide whose API Octavo provides (docs/from-flask.md).
"""

from importlib.metadata import version

__version__ = version("octavo")
