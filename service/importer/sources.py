"""Read bytes and lines from a file or standard input, plain or gzip."""

import gzip
import io
import os
import re
import shutil
import stat
import sys
import tempfile
import zlib
from collections import deque
from collections.abc import Iterator
from typing import IO, AnyStr, BinaryIO, Generic, Literal, NamedTuple, cast

from typing_extensions import Buffer

Format = Literal["csv", "jsonl", "marc"]

MAX_RECORD = 4 * 1024 * 1024  # bytes (CSV: characters); a longer record counts as damaged
BUFFER = 256 * 1024
GZIP = b"\x1f\x8b"
BY_NAME: dict[str, Format] = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".mrc": "marc",
    ".marc": "marc",
}  # fmt: skip
LEADER = re.compile(rb"\s*[0-9]{5}[a-z ]{5}.{2}[0-9]{5}", re.DOTALL)


class SourceError(Exception):
    """The import cannot start, or cannot read the source to its end. The message is the reason."""


class Source(io.RawIOBase):
    """The bytes of a file (`-` is standard input). Gzip data are decompressed.

    size: bytes of the file; None if it is not a regular file. Raises SourceError, OSError.
    """

    def __init__(self, path: str) -> None:
        if path == "-" and sys.stdin is None:
            raise SourceError("Standard input is closed")
        opened = sys.stdin.buffer if path == "-" else open(path, "rb", buffering=BUFFER)  # noqa: SIM115  (closed by close)
        file = cast("io.BufferedReader", opened)
        status = os.fstat(file.fileno())
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else None
        self._packed = file.peek(2)[:2] == GZIP
        if self._packed and self.size is None:
            file = _copied(file)
        self._file = file
        self._bytes = gzip.GzipFile(fileobj=file) if self._packed else file
        self.name = path
        if self._packed:
            self._verify()

    @property
    def position(self) -> int:
        """Number of bytes read from the file (compressed bytes of gzip); 0 if unknown."""
        if self.size is None:
            return 0
        return self.size if self._file.closed else self._file.tell()

    def _verify(self) -> None:
        """Read gzip data to the end: only the checksum at the end detects all damage."""
        try:
            while self.read(BUFFER):
                pass
        except SourceError:
            self.close()
            raise
        self._bytes.seek(0)

    def close(self) -> None:
        """Close the file, but not standard input."""
        if not self.closed and self._file is not sys.stdin.buffer:
            self._bytes.close()
            self._file.close()
        super().close()

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Buffer) -> int:
        """Read some bytes. Raises SourceError if the file is damaged."""
        view = memoryview(buffer)
        try:
            data = self._bytes.read1(len(view))
        except (EOFError, zlib.error, OSError) as error:
            if self._packed:
                raise SourceError(f"The gzip data are damaged ({error}): none are used") from None
            raise SourceError(f"The file cannot be read: {error}") from None
        view[: len(data)] = data
        return len(data)


def _copied(stream: BinaryIO) -> "io.BufferedReader":
    """Copy a stream to a temporary file, so that it can be read twice."""
    file = tempfile.TemporaryFile(buffering=BUFFER)  # noqa: SIM115  (closed by the source)
    shutil.copyfileobj(stream, file, BUFFER)
    file.seek(0)
    return cast("io.BufferedReader", file)


def guess_format(name: str, head: bytes) -> Format:
    """Guess the format from the first bytes, else from the name, else CSV. Raises SourceError."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"{"):
        return "jsonl"
    if start.startswith(b"["):
        raise SourceError("A JSON array is not JSON Lines: write one object a line (jq -c '.[]')")
    if LEADER.match(head):
        return "marc"
    name = name.lower().removesuffix(".gz")
    return BY_NAME.get(os.path.splitext(name)[1], "csv")


class Line(NamedTuple, Generic[AnyStr]):
    """A line and its number, from 1. whole: false if the line was cut at MAX_RECORD."""

    number: int
    text: AnyStr
    whole: bool


class Lines(Generic[AnyStr]):
    """The lines of a stream; lines can be put back to be read again."""

    def __init__(self, stream: IO[AnyStr]) -> None:
        self._stream: IO[AnyStr] = stream
        self._back: deque[Line[AnyStr]] = deque()
        self._number = 0

    def __iter__(self) -> Iterator[Line[AnyStr]]:
        while (line := self.take()) is not None:
            yield line

    def take(self) -> Line[AnyStr] | None:
        """Return the next line, or None at the end."""
        if self._back:
            return self._back.popleft()
        text = self._read()
        if not text:
            return None
        self._number += 1
        rest = text
        while len(rest) == MAX_RECORD and not _ended(rest):
            rest = self._read()
        return Line(self._number, text, rest is text)

    def put_back(self, lines: list[Line[AnyStr]]) -> None:
        """Put lines back: `take` returns them again."""
        self._back.extendleft(reversed(lines))

    def _read(self) -> AnyStr:
        try:
            return self._stream.readline(MAX_RECORD)
        except UnicodeError as error:
            raise SourceError(
                f"The file cannot be read after line {self._number}: {error}"
            ) from None


def _ended(text: str | bytes) -> bool:
    return text[-1:] in {"\n", "\r", b"\n"}
