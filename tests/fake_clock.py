"""A clock in place of the module `time`, for tests whose subject is time."""


class Clock:
    """A clock that the test sets."""

    now = 1_000.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now
