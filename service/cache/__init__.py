"""The cache: never older than the last answer.

    a read that begins                                  a write
    ------------------                                  -------
    lease on the epoch? (lease) ---no---> SQL           BEGIN, change: the rows are locked
      | yes; breaker closed?                            read the epoch's row (state)
    get the key                                           off: commit as it is
      V of this key -----------> answer: hit              young (2.2 s): undo, wait, again
      L, W, an error, late ----> SQL, no fill             on: mark every key W, each gen W
      nothing: add L (lease)                                 in doubt: undo, turn it off
    SQL, answer: miss                                   COMMIT
    set V, if L still stands there                      clear: no own mark, no V, no L; new gen
                                                          not confirmed: turn it off
                                                        answer

A reader fills only under its own lease, which a write's mark takes from it: so what was read
before a commit is never stored after it. A mark stands from before the commit until after, so no
reader takes an old value for the new one in between; its life of 30 s is longer than any write
(10 s), should the writer die.

Each kind of list has a generation (`gen:book`). A list (ids, totals) carries the generation of its
kind that it was read in. A write ends the generations of the kinds whose lists it changes, and no
other, in one step; while such a write is under way (`writers:book`) the kind has no generation. So
one write turns every list of its kind into a miss, without a list of lists.

A model registers itself (`service/cached_models.py`); the session of a write tracks what it changes
of such models. The foreign keys of the metadata say what the database changes when it deletes a
row: before a DELETE the session locks the row and selects its cached descendants. The write marks
them as its own changes. It ends the lists of their kinds also if it deletes no row of theirs: an
empty list of a row that is gone must go as well.

Redis may lose any key at any moment. Clearing deletes what a reader has filled in since a mark was
lost, and begins a new generation whether or not the mark is found. So a write answers only when
its clearing is confirmed, or the cache is off (`docs/cache.md`: keys that vanish).

Redis may also be another one. So the last word has the database, in one row: the
epoch, whether the cache is on, and in which store (`run_id`: every connection asks who answers). A
process uses the cache for 2.0 s after it began to read that row (the lease of the fence), and a
write that cannot make its marks first turns the cache off for all and waits for 2.2 s, when no
such lease is left. It comes back by itself: off for 15 s, longer than any write that saw it on,
and 5 s of a store that answers.

    entries           the values under keys
    store             a store in memory, and its interface; redis_store: the same in Redis
    state             the row of the epoch, and SQL about it
    lease             the lease on the epoch, turning the cache off, recovery
    change_tracking   the rows that a write changes; cascades: those that change with them
    invalidation      marks, and their clearing
    items, lists      one row by its id; ids and totals of one generation
    reader            what every read needs: state, SQL, counters
    single_flight     one load at a time for a key
    circuit_breaker   leaves a Redis alone that does not reply
    counters          what is counted

Keys: `octavo:cache:<run id>:<token of the epoch>:` and `book:7`, `user:3`, `list:<digest>`,
`gen:book`, `writers:book`.
"""

from service.cache.cache import Cache
from service.cache.change_tracking import WriteSession, delete_row, touch_rows, write_rows
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
    "shape_of",
    "touch_rows",
    "write_rows",
]
