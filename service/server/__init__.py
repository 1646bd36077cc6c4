"""Serving: one socket, one supervisor, and processes of Hypercorn that come and go.

    octavo serve        binds the sockets, then watches over its workers (supervisor)
      octavo serve --workers 0 --bind fd://...
                        loads what serves, and forks when it is asked to (fork_server)
        each worker     Hypercorn on uvloop, one process, until it is drained (worker)

So a worker that has died is replaced in a few milliseconds, and what was loaded is in memory once.

A worker and its supervisor exchange messages and log lines over two pipes (pipes). When the
supervisor ends, the worker ends. Hypercorn's own workers drop requests at
SIGTERM and end the service when one is killed; these

    SIGTERM   say 503 at /health/ready and `Connection: close` everywhere, listen for a little
              longer, and end when what is in flight has ended
    SIGHUP    (to the supervisor) are replaced one after the other, by newer code, which another
              fork server loads: the new one listens before the old one stops, unless the
              cache is in the memory of the only one
    SIGUSR1   leave new connections to the others, then end: what a replaced one hears

`hypercorn_config` configures it; the HTTP/1.1 that it speaks here is in `service.http1`.
"""
