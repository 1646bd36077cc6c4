"""Where the figures of several workers are: files in a folder that all of them read.

Each has them by a number that a new worker takes over from one that has ended: nothing that was
counted is lost, and the files stay few.

Serving must not depend on that folder. The Prometheus client maps files without having space for
them, and a process ends by SIGBUS when it writes where the disk has none. So space is reserved
first. A process that gets none has its figures in its own memory, until it is replaced.
"""

import errno
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO

from prometheus_client import multiprocess, values
from prometheus_client.mmap_dict import MmapedDict

from service.files import private

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # the Prometheus client's own name for it
SIZE = 65_536  # bytes of a new file; it doubles when it is full
ENTRY = 32  # bytes of an entry beside its name, at most

failures: list[OSError] = []  # why this process has its figures to itself; empty: all have them


class ReservedDict(MmapedDict):
    """A file of figures whose space is reserved; memory of this process where there is none."""

    _is_shared = True

    def __init__(self, filename: str) -> None:
        try:
            _make(filename)
            super().__init__(filename)  # type: ignore[no-untyped-call]  # it has no types
        except OSError as error:
            self._stay_alone(error)
            self._positions = {}
            self._capacity, self._used = SIZE, 8  # the header: how much is used
            self._m = mmap.mmap(-1, SIZE)

    def _init_value(self, key: str) -> None:
        while self._used + len(key.encode()) + ENTRY > self._capacity:
            self._grow(2 * self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]  # it has no types

    def _grow(self, size: int) -> None:
        grown = None
        if self._is_shared:
            try:
                _reserve(self._f.fileno(), size)
                grown = mmap.mmap(self._f.fileno(), size)
            except OSError as error:
                with suppress(OSError):  # nobody may map what is not reserved
                    self._f.truncate(self._capacity)
                self._f.close()
                self._stay_alone(error)
        if grown is None:
            grown = mmap.mmap(-1, size)
            grown[: self._used] = self._m[: self._used]
        self._m, self._capacity = grown, size

    def _stay_alone(self, error: OSError) -> None:
        failures.append(error)
        self._is_shared, self._f = False, BytesIO()  # to be closed, as a file is


def _make(path: str) -> None:
    """Make a file with its space, or reserve what one from before has. Raises OSError."""
    if os.path.exists(path):
        with open(path, "r+b") as file:
            return _reserve(file.fileno(), max(SIZE, os.fstat(file.fileno()).st_size))
    new = f"{path}.new"  # others read whatever is called .db, and find it whole
    try:
        with open(new, "wb", opener=private) as file:
            _reserve(file.fileno(), SIZE)
        os.rename(new, path)
    except OSError:
        with suppress(OSError):
            os.unlink(new)
        raise
    return None


def _reserve(file: int, size: int) -> None:
    """Make a file at least so large, and have space for all of it. Raises OSError."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        there = os.fstat(file).st_size
        os.pwrite(file, bytes(size - there), there)


@contextmanager
def folder() -> Iterator[str | None]:
    """Make the folder of all workers, for as long as they serve. None: it cannot be made."""
    try:
        made = tempfile.TemporaryDirectory(prefix="octavo-metrics-", ignore_cleanup_errors=True)
    except OSError:
        yield None
    else:
        with made as path:
            yield path


def share(number: int) -> None:
    """Keep this process's figures in the folder of all workers, as `number`. Before any is made.

    The one place where two applications of a process would share something: the Prometheus
    client chooses for all.
    """
    if FOLDER not in os.environ:
        failures.append(OSError(errno.ENOENT, "no temporary folder"))
        return
    values.MmapedDict = ReservedDict  # type: ignore[assignment, attr-defined]  # its seam
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]  # it has no types


def forget(folder: str | None, number: int) -> None:
    """Drop what was true of a worker only while it lived."""
    if folder is not None:
        with suppress(OSError):
            multiprocess.mark_process_dead(number, folder)  # type: ignore[no-untyped-call]  # it has no types


def drop() -> None:
    """Remove the folder of all workers: the service is over."""
    if folder := os.environ.get(FOLDER):
        shutil.rmtree(folder, ignore_errors=True)
