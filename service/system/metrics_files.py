"""Share metrics among workers, in files in a folder that all of them read.

The name of a file contains the number of its worker. A new worker takes over the number and the
files of a worker that has ended: counts are not lost, and the number of files stays small.

Serving must not depend on that folder. The Prometheus client maps files without reserving disk
space, and SIGBUS ends a process that writes to such a file on a full disk. Therefore this module
reserves the space first. Without space, a process keeps its metrics in its own memory until it is
replaced.
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

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # environment variable of the Prometheus client
NEW_FILE_BYTES = 65_536  # bytes of a new file; a full file doubles its size
ENTRY_OVERHEAD_BYTES = 32  # maximum size of an entry in bytes, without its name

failures: list[OSError] = []  # errors because of which other workers cannot read these metrics


class ReservedDict(MmapedDict):
    """A metrics file with reserved disk space. Without space, it is replaced by private memory."""

    _is_shared = True

    def __init__(self, filename: str) -> None:
        try:
            _make(filename)
            super().__init__(filename)  # type: ignore[no-untyped-call]  # it has no types
        except OSError as error:
            self._stay_alone(error)
            self._positions = {}
            self._capacity = NEW_FILE_BYTES
            self._used = 8  # the header (8 bytes) holds the used size
            self._m = mmap.mmap(-1, NEW_FILE_BYTES)

    def _init_value(self, key: str) -> None:
        while self._used + len(key.encode()) + ENTRY_OVERHEAD_BYTES > self._capacity:
            self._grow(2 * self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]  # it has no types

    def _grow(self, size: int) -> None:
        grown = None
        if self._is_shared:
            try:
                _reserve(self._f.fileno(), size)
                grown = mmap.mmap(self._f.fileno(), size)
            except OSError as error:
                with suppress(OSError):  # other processes must not map space that is not reserved
                    self._f.truncate(self._capacity)
                self._f.close()
                self._stay_alone(error)
        if grown is None:
            grown = mmap.mmap(-1, size)
            grown[: self._used] = self._m[: self._used]
        self._m, self._capacity = grown, size

    def _stay_alone(self, error: OSError) -> None:
        failures.append(error)
        self._is_shared, self._f = False, BytesIO()  # the base class closes it like a file


def _make(path: str) -> None:
    """Create a file with reserved space, or reserve that of an existing file. Raises OSError."""
    if os.path.exists(path):
        with open(path, "r+b") as file:
            return _reserve(file.fileno(), max(NEW_FILE_BYTES, os.fstat(file.fileno()).st_size))
    new = f"{path}.new"  # other workers read all .db files, so a .db file must be complete
    try:
        with open(new, "wb", opener=private) as file:
            _reserve(file.fileno(), NEW_FILE_BYTES)
        os.rename(new, path)
    except OSError:
        with suppress(OSError):
            os.unlink(new)
        raise
    return None


def _reserve(file: int, size: int) -> None:
    """Extend a file to at least `size` bytes of reserved space. Raises OSError."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        present = os.fstat(file).st_size
        os.pwrite(file, bytes(size - present), present)


@contextmanager
def folder() -> Iterator[str | None]:
    """Create the workers' folder for the duration of the block. Yields None if that fails."""
    try:
        created = tempfile.TemporaryDirectory(prefix="octavo-metrics-", ignore_cleanup_errors=True)
    except OSError:
        yield None
    else:
        with created as path:
            yield path


def share(number: int) -> None:
    """Store this process's metrics in the workers' folder, under the worker's `number`.

    Call this before any metric is created. It applies to all applications of the process, because
    the Prometheus client has one global setting.
    """
    if FOLDER not in os.environ:
        failures.append(OSError(errno.ENOENT, "no temporary folder"))
        return
    values.MmapedDict = ReservedDict  # type: ignore[assignment, attr-defined]  # its seam
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]  # it has no types


def forget(folder: str | None, number: int) -> None:
    """Remove the gauges of a worker that has ended. folder: None if there is no folder."""
    if folder is not None:
        with suppress(OSError):
            multiprocess.mark_process_dead(number, folder)  # type: ignore[no-untyped-call]  # it has no types


def drop() -> None:
    """Remove the workers' folder, from a worker whose supervisor has ended."""
    if folder := os.environ.get(FOLDER):
        shutil.rmtree(folder, ignore_errors=True)
