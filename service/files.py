"""Create files and folders that only their owner can access, independently of the umask.

The mode is set at creation, so there is no moment with a wider mode. Existing files and folders
keep their mode.
"""

import os
from contextlib import suppress
from pathlib import Path

FILE, FOLDER = 0o600, 0o700


def private(path: str, flags: int) -> int:
    """Open a file, and create it with mode 0600. For the parameter `opener` of `open`."""
    return os.open(path, flags, FILE)


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, with mode 0700. Raises OSError."""
    for folder in (*reversed(path.parents), path):
        with suppress(FileExistsError):
            if not folder.is_dir():
                folder.mkdir(FOLDER)
    if not path.is_dir():
        raise NotADirectoryError(path)


def make_database(path: str | None) -> None:
    """Create the file of an SQLite database, if it is missing, with mode 0600.

    SQLite gives its journal and WAL files the same mode. An existing file is not opened: to close
    it would release the POSIX locks that SQLite holds on it in this process.
    """
    if path and path != ":memory:" and not path.startswith("file:"):
        with suppress(OSError):  # SQLite reports the error when it opens the file
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, FILE))
