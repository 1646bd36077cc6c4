"""Serving: one supervisor, and Hypercorn worker processes that share its sockets.

    octavo serve        binds the sockets, then supervises the workers (supervisor)
      octavo serve --workers 0 --bind fd://...
                        loads the application, and forks workers on request (fork_server)
        each worker     Hypercorn on uvloop, one process, until it is drained (worker)

So a failed worker is replaced within milliseconds, and the workers share the memory of the code.

A worker and its supervisor exchange messages and log records over two pipes (pipes). When the
supervisor ends, the worker ends. Hypercorn's own workers drop requests at SIGTERM, and stop the
service when a worker is killed. These workers handle the following signals:

    SIGTERM   The worker responds 503 at /health/ready and sends `Connection: close`. It listens for
              DRAIN_SECONDS more, and exits when the requests in flight have ended.
    SIGHUP    The supervisor replaces all workers, one after the other, with newer code, which a new
              fork server loads. The new worker listens before the old worker stops, unless the only
              worker has the cache in its memory.
    SIGUSR1   The worker stops listening, then exits. The supervisor sends it to a replaced worker.

`hypercorn_config` configures Hypercorn. Its HTTP/1.1 protocol is in `service.server.http1`.
"""
