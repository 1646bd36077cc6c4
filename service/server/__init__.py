"""Serving: one socket, one supervisor, and processes of Hypercorn that come and go.

    octavo serve        binds the sockets, then watches over its workers (supervisor)
      octavo serve --workers 0 --bind fd://...
                        each worker: Hypercorn on uvloop, one process, until it is drained (worker)

With Redis one more worker waits, loaded: it takes over in no time from one that has died.

A worker hears from its supervisor, and tells it what it has to say, log lines too, over two pipes
(channel); when that one ends, so does the worker. Hypercorn's own workers drop requests at
SIGTERM and end the service when one is killed; these

    SIGTERM   say 503 at /health/ready and `Connection: close` everywhere, listen for a little
              longer, and end when what is in flight has ended
    SIGHUP    (to the supervisor) are replaced one after the other: the new one listens before the
              old one stops, unless the cache is in the memory of the only one
    SIGUSR1   leave new connections to the others, then end: what a replaced one hears

`hypercorn` configures it; the HTTP/1.1 that it speaks here is in `service.http1`.
"""

from service.http1 import Http1, ServerConfig
from service.server.hypercorn import configured
from service.server.supervisor import Supervisor
from service.server.worker import serve

__all__ = ["Http1", "ServerConfig", "Supervisor", "configured", "serve"]
