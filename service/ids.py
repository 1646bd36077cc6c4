"""Random 128-bit identifiers. Not for secrets."""

import random


def random_id() -> str:
    """Return 128 random bits as 32 hex digits, from a generator that the system has seeded.

    This saves a system call for each identifier. A forked process seeds its own generator.
    """
    return random.getrandbits(128).to_bytes(16).hex()
