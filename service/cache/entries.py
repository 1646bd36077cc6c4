"""Encode and decode the content of a key: a value, a reader's lease, or a writer's mark.

V <key> <stamp> <body>   a value: its own key, its stamp and its bytes, separated by LF. The stamp
                         is the version of a row, or the generation of a list. An empty body: the
                         row does not exist
L:<uuid>                 a lease: a reader is filling the entry
W:<uuid>                 a mark: a write is under way
G:<uuid>                 (key `gen:`) the generation of a kind's lists
W                        (key `gen:`) a write that changes these lists is under way
"""

from typing import NamedTuple

from service.ids import random_id

LEASE, MARK, GENERATION = b"L:", b"W:", b"G:"
LINE = b"\n"


class Entry(NamedTuple):
    """A value and its stamp. `body` is empty if the row does not exist."""

    stamp: bytes
    body: bytes

    def write(self, key: str) -> bytes:
        """Return the bytes to store under `key`."""
        return LINE.join((b"V", key.encode(), self.stamp, self.body))


NONE = Entry(b"", b"")


def generation_key(kind: str) -> str:
    """Return the key of the generation of a kind's lists."""
    return f"gen:{kind}"


def writers_key(kind: str) -> str:
    """Return the key of the writes under way that change a kind's lists."""
    return f"writers:{kind}"


def read(value: bytes | None, key: str) -> Entry | None:
    """Decode a stored value. None: the content is not a value, or belongs to another key."""
    if value is None or not value.startswith(b"V\n"):
        return None
    _, own_key, stamp, body = value.split(LINE, 3)
    return Entry(stamp, body) if own_key == key.encode() else None


def new_lease() -> bytes:
    """Make the lease of one reader."""
    return LEASE + random_id().encode()


def new_generation() -> bytes:
    """Make a generation that was never used."""
    return GENERATION + random_id().encode()
