"""Measurements: what is fast, and why.

run.py        beside the peers: every contestant does every kind of work, one at a time
  stage.py    what all of them stand on: PostgreSQL, Redis, the same books and users
  contestants.py, peers/
              who they are, and how each is started
  work.py     what they are asked for
  same.py     that all do the same, before anybody is measured
  wrk.py, load.lua, server.py
              the load, and what a server has spent on it
  report.py, plot.py
              the table, where Octavo loses, the picture
sizes.py      Octavo alone, at ten thousand books and at a million
limits.py, cache.py, plans.py
              parts: a limit, a cached read, the plans of lists
"""
