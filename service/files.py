"""Files and folders for their owner alone, from their first moment and whatever the umask is.

Files and folders that exist keep the mode that they have.
"""

import os
from contextlib import suppress
from pathlib import Path

FILE, FOLDER = 0o600, 0o700


def private(path: str, flags: int) -> int:
    """Open a file, as `opener` of `open` does."""
    return os.open(path, flags, FILE)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing. Raises OSError."""
    for folder in (*reversed(path.parents), path):
        with suppress(FileExistsError):
            if not folder.is_dir():
                folder.mkdir(FOLDER)
    if not path.is_dir():
        raise NotADirectoryError(path)


def make_database(path: str | None) -> None:
    """Make the file of an SQLite database, if it is missing: what SQLite adds gets its mode.

    A file that exists is not opened: closing it again would release SQLite's locks on it.
    """
    if path and path != ":memory:" and not path.startswith("file:"):
        with suppress(OSError):  # SQLite says what is wrong
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, FILE))
