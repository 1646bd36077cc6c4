"""Cache rows and lists: a read that begins after the response to a write shows that write.

    (V: value, L: lease of a reader, W: mark of a write, gen: generation of a kind's lists)
    a read                                              a write
    ------                                              -------
    lease on the epoch? (lease) ---no---> SQL           BEGIN, change: the rows are locked
      | yes; breaker closed?                            read the epoch's row (state)
    get the key                                           off: commit without marks
      V of this key -----------> response: hit            young (2.2 s): roll back, wait, retry
      L, W, error, time-out ---> SQL, no fill             on: mark every key W, each gen W
      nothing: add L (lease)                                 error: roll back, turn it off
    SQL, response: miss                                 COMMIT
    set V, if L is still there                          clear: delete own marks, V, L; new gen
                                                          not confirmed: turn it off
                                                        response

A reader fills only under its own lease. The mark of a write replaces that lease, so a value that
was read before a commit is never stored after it. The mark exists from before the commit until
after it, so no reader uses the old value in between. A mark that is not cleared expires after 30 s,
which is longer than any write (10 s).

Each kind of list has a generation (`gen:book`). A list (ids, totals) carries the generation of its
kind in which it was read. A write ends the generations of exactly those kinds whose lists it
changes, in one step. While such a write is under way (`writers:book`) the kind has no generation.
So one write turns every list of its kind into a miss, without a registry of cached lists.

A model registers itself (`service/models/cached.py`). The session of a write tracks the changes of
such models. The foreign keys of the metadata define what the database changes when it deletes a
row: before a DELETE the session locks the row and selects its cached descendants. The write marks
them like its own changes. It also ends the lists of their kinds, even if no descendant exists: a
cached empty list of the deleted row must become invalid as well.

Redis may lose any key at any moment. Clearing deletes every value that a reader stored after a
mark was lost, and begins a new generation even if the mark was lost. So the response to a write
waits until its clearing is confirmed, or until the cache is off (`docs/caching.md`: keys that
vanish).

The Redis server may be replaced by another one. So one row of the database decides: it holds the
epoch, whether the cache is on, and the store (`run_id`; every connection reads the run id of its
server). A process uses the cache for 2.0 s after it began to read that row (`EpochLease`). A write
that cannot set its marks turns the cache off for all processes, and waits 2.2 s, until every such
lease has expired. The cache turns on again when it has been off for 15 s (longer than any write
that read the state `on`) and the store has replied for 5 s.

    entries           the values under keys
    store             the interface of a store, and a store in memory; redis_store: one in Redis
    state             the row of the epoch, and its SQL
    lease             the lease on the epoch, turning the cache off, recovery
    change_tracking   the rows that a write changes
    cascades          the rows that the database changes with a deleted row
    invalidation      setting and clearing marks
    items, lists      one row by its id; ids and totals of one generation
    dated             values that no write invalidates: as old as their lifetime
    reader            common steps of all reads: the lease, SQL, counters
    batch_loader      the rows requested in one tick, in one statement
    single_flight     one load at a time for a key
    circuit_breaker   stops using a Redis that does not reply
    counters          counts of hits, misses and other events

Keys: the prefix `octavo:cache:<run id>:<token of the epoch>:`, then `book:7`, `user:3`,
`list:<digest>`, `gen:book`, `writers:book` or `dated:<name>`.
"""

from service.cache.cache import Cache
from service.cache.change_tracking import (
    WriteSession,
    delete_row,
    delete_rows,
    touch_rows,
    write_rows,
)
from service.cache.circuit_breaker import FAILURES
from service.cache.counters import Counters
from service.cache.entries import NONE, Entry
from service.cache.invalidation import Invalidation, Mark, RetryWrite
from service.cache.items import Items, Kind, Prefetch, Status, shape_of
from service.cache.lease import SharedCacheError
from service.cache.lists import ListIds, ListQuery, ListResult, Lists
from service.cache.redis_store import RedisStore
from service.cache.state import Epochs, State
from service.cache.store import Replied

__all__ = [
    "FAILURES",
    "NONE",
    "Cache",
    "Counters",
    "Entry",
    "Epochs",
    "Invalidation",
    "Items",
    "Kind",
    "ListIds",
    "ListQuery",
    "ListResult",
    "Lists",
    "Mark",
    "Prefetch",
    "RedisStore",
    "Replied",
    "RetryWrite",
    "SharedCacheError",
    "State",
    "Status",
    "WriteSession",
    "delete_row",
    "delete_rows",
    "shape_of",
    "touch_rows",
    "write_rows",
]
