"""Names that nobody else gives, in any process. They are no secrets."""

import random


def unique() -> str:
    """Give 32 hex digits: 128 random bits, from a generator that the system has seeded.

    To ask the system for each would be a system call. A process that is forked seeds its own.
    """
    return random.getrandbits(128).to_bytes(16).hex()
