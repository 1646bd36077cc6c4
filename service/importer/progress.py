"""Show the progress of a long command on standard error."""

import sys
import time
from typing import Self

from tqdm import tqdm

LOG_SECONDS = 10  # minimum time between two lines if standard error is not a terminal


class Progress:
    """A bar with rate and time left. Without `total` (bytes or records): count and rate only."""

    def __init__(self, total: int | None) -> None:
        left = "{percentage:3.0f}% |{bar}| {desc}, {remaining} left" if total else "{desc}"
        is_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total or None,
            bar_format=f"{left} [{{elapsed}}]",
            mininterval=0.2 if is_terminal else LOG_SECONDS,
            dynamic_ncols=is_terminal,
        )
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        """Return the bar, which is shown already."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the bar; its last state stays on the screen."""
        self._bar.refresh()
        self._bar.close()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def show(self, position: int, records: int, refused: int = 0) -> None:
        """Show the position (in the unit of `total`), and the numbers of records so far."""
        words = f"{records:,} records, {records / max(self.seconds, 0.001):,.0f}/s"
        if refused:
            words += f", {refused:,} refused"
        self._bar.set_description_str(words, refresh=False)
        self._bar.update(position - self._bar.n)
