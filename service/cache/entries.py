"""What stands under a key: a value, a reader's lease, or a writer's mark.

V <key> <stamp> <body>   a value: its own key, what it was true of, the bytes (none: there is
                         no such row). The stamp is a row's version, or a list's generation
L:<uuid>                 a reader is filling
W:<uuid>                 a write is under way
G:<uuid>, W              the generation of the lists of a kind, or: a write is under way
"""

from typing import NamedTuple

from service.unique import unique

LEASE, MARK, GENERATION = b"L:", b"W:", b"G:"
LINE = b"\n"


class Entry(NamedTuple):
    """A value and what it was true of. `body` is empty if there is no such row."""

    stamp: bytes
    body: bytes

    def write(self, key: str) -> bytes:
        """Give what is stored under `key`."""
        return LINE.join((b"V", key.encode(), self.stamp, self.body))


NONE = Entry(b"", b"")


def generation_key(kind: str) -> str:
    """Give the key of the generation of a kind's lists."""
    return f"gen:{kind}"


def writers_key(kind: str) -> str:
    """Give the key of the writes under way that change a kind's lists."""
    return f"writers:{kind}"


def read(found: bytes | None, key: str) -> Entry | None:
    """Give the value that was found, if it is one, and of this very key."""
    if found is None or not found.startswith(b"V\n"):
        return None
    _, own, stamp, body = found.split(LINE, 3)
    return Entry(stamp, body) if own == key.encode() else None


def new_lease() -> bytes:
    """Give the lease of one reader."""
    return LEASE + unique().encode()


def new_generation() -> bytes:
    """Give a generation that never was."""
    return GENERATION + unique().encode()
