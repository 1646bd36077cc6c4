"""The peers: the same service as its framework's documentation writes it, and as its fans tune it.

`*_documented` holds to the documentation of the framework and of the packages that it or its
users name for limits and caches: an ORM, models in and out, the package's own limiter.

`*_tuned` is what an expert makes of the same framework: one call to Redis for limit and answer,
answers cached as the bytes that are sent, no ORM, no model on the way out, no access log, and
garbage collected seldom. Totals are exact all the same: cached pages belong to a generation, which
ends with each new book.

All of them use Octavo's schema with its indexes and triggers, so that a query that is fast there is
fast here, and the total that is kept there.
"""
