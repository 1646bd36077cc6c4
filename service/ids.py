"""Create random 128-bit identifiers. They are predictable: do not use them as secrets."""

import random


def random_id() -> str:
    """Return 128 random bits as 32 hex digits.

    The generator is Python's `random`: unlike `uuid4`, it makes no system call for each
    identifier. Python seeds it from the system, and again in a forked process.
    """
    return random.getrandbits(128).to_bytes(16).hex()
