"""Progress of long work, on standard error."""

import sys
import time
from typing import Self

from tqdm import tqdm

LOG_SECONDS = 10  # between two lines where nobody watches


class Progress:
    """A bar with rate and time left; without `total` (bytes, or records) a count and a rate."""

    def __init__(self, total: int | None) -> None:
        left = "{percentage:3.0f}% |{bar}| {desc}, {remaining} left" if total else "{desc}"
        watched = sys.stderr.isatty()
        self._bar = tqdm(
            total=total or None,
            bar_format=f"{left} [{{elapsed}}]",
            mininterval=0.2 if watched else LOG_SECONDS,
            dynamic_ncols=watched,
        )
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        """Begin to show."""
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the last state on the screen."""
        self._bar.refresh()
        self._bar.close()

    @property
    def seconds(self) -> float:
        """How long it took so far."""
        return time.monotonic() - self._began

    def show(self, position: int, records: int, refused: int = 0) -> None:
        """Say how far it is: at which part of `total`, and after how many records."""
        words = f"{records:,} records, {records / max(self.seconds, 0.001):,.0f}/s"
        if refused:
            words += f", {refused:,} refused"
        self._bar.set_description_str(words, refresh=False)
        self._bar.update(position - self._bar.n)
