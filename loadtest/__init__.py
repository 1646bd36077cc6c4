"""The load test: load of many clients, and the check of the objectives: `make loadtest`.

    __main__     the command line; run: starts all processes, runs locust, stops all processes
    services     PostgreSQL, Redis and Octavo for one run; processes: starts and stops a process
    delay        a proxy between locust and the server that delays responses
    locustfile   the file that locust loads: options, progress output, figures
    readers      clients that read; editor: a client that writes, and then checks for stale reads
    curator      a client whose changes meet others; supplier: a client that writes in bulk
    mirror       a client that copies the catalogue
    client       the base class of clients; shared_state: the state that they share
    demand       the distribution of requested books; the filters of lists
    profiles     the tier of the clients, and their pause between requests
    retry_after  the check of Retry-After in a 429 or a 503
    objectives   the objectives in slo.toml; verdict: whether they are met

Modules that do not need locust do not import it, so that the tests can run without locust.
"""
