"""Load as a crowd makes it, and whether the service is fast enough under it: `make loadtest`.

    __main__     the command; run: everything starts, locust runs, everything ends
    stand        PostgreSQL, Redis and Octavo, for one run; processes: how they start and end
    delay        a network between locust and the server that takes its time
    locustfile   what locust loads: its options, its progress, its figures
    people       who reads; editor: who writes, and looks at once whether anything is stale
    client       how one of them asks; crowd: what all of them have in common
    demand       which books are asked for, and how often; what lists are filtered by
    profiles     what tier they have, and how fast they are
    promises     what a 429 or a 503 promised, and whether it held
    objectives   what slo.toml allows; verdict: whether that was kept

What needs no locust does not import it: the judging is tested like everything else.
"""
