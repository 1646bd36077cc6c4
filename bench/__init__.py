"""Benchmarks.

run.py        Octavo and its peers: each server runs every kind of work, one server at a time
  stage.py    what all servers share: PostgreSQL, Redis, the same books and users
  contestants.py, peers/
              the servers, and the command that starts each of them
  work.py     the requests of each kind of work
  same.py     checks that all servers do the same work, before the measurement
  wrk.py, load.lua, server.py
              the load, and the CPU and memory that a server uses for it
  report.py, plot.py
              the tables, where Octavo loses, the chart
turns.py      two checkouts of Octavo, measured in turns
sizes.py      Octavo alone, at 10,000 books and at 1,000,000 books
limits.py, cache.py, plans.py
              parts: the cost of a rate limit, the cost of a cached read, the query plans of lists
"""
