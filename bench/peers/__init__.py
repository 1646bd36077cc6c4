"""The peers: the same service in other frameworks, as documented and as tuned by an expert.

`*_documented` follows the documentation of the framework, and of the packages that the framework or
its users recommend for rate limits and caches: an ORM, models for requests and responses, the rate
limiter of the package.

`*_tuned` is the same framework as an expert writes it: one call to Redis for rate limit and
response, responses cached as the bytes that are sent, no ORM, no model for responses, no access
log, and rare garbage collection. Totals are exact too: a cached page belongs to a generation, and
each new book starts a new generation.

All peers use Octavo's schema with its indexes and triggers. So a query that is fast in Octavo is
fast in a peer, and the peers use the total that the schema stores.
"""
