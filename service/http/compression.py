"""Compress responses with zstd or gzip (content codings: RFC 9110, 8.4.1).

The ETag of a compressed response has the coding as a suffix (`"tag-gzip"`). If-None-Match accepts
each form of a tag, because all forms have the same content.
"""

import asyncio
import re
import sys
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, Protocol, TypeVar

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Coding = Literal["zstd", "gzip"]

CODINGS: tuple[Coding, ...] = ("zstd", "gzip")  # in the order of the server's preference
ALIASES = {"x-gzip": "gzip"}  # RFC 9110, 8.4.1.3
MIN_SIZE = 1_024  # bytes; a smaller body fits into one network packet without compression
THREAD_SIZE = 131_072  # bytes; a larger body takes gzip more than 3 ms, which is too long here
MAX_CACHE_SIZE = 8 * 1_048_576  # bytes of compressed bodies
MAX_FIELD_SIZE = 500  # bytes of Accept-Encoding that are parsed
# With these levels, a list of 28 KB takes 0.3 and 0.1 ms, and becomes 5.7 and 5.2 KB.
GZIP_LEVEL, ZSTD_LEVEL = 5, 3
GZIP_STREAM_LEVEL = 3  # half of the time of level 5, for a body that may have 300 MB
# A stream of unknown length would get a window of 2 MB. All clients support it (RFC 9659: 8 MB),
# but 512 KB save memory.
ZSTD_WINDOW_LOG = 19
GZIP_FORMAT = 31  # `wbits` of zlib: the format gzip, without a time, so that bytes do not differ
QVALUE = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")  # RFC 9110, 12.4.2
COMPRESSIBLE = re.compile(
    rb"text/[a-z-]+|application/(json|javascript|x-ndjson|[a-z.-]+\+json)|image/svg\+xml"
)
REPLACED = {b"content-length", b"etag"}  # headers that a compressed response has of its own
SECRET = "_octavo_secret"  # noqa: S105  (attribute of a view)

T = TypeVar("T", bound=Callable[..., Any])


class StreamCompressor(Protocol):
    """Compresses a body in parts."""

    def compress(self, data: bytes, /) -> bytes:
        """Add a part of the body. Return the compressed bytes that are ready; may be empty."""

    def flush(self) -> bytes:
        """Return the last compressed bytes."""


def secret_response(view: T) -> T:
    """Declare that the responses of a route contain tokens or keys, and are never compressed.

    The length of a compressed response shows how similar a secret is to data beside it (BREACH).
    """
    setattr(view, SECRET, True)
    return view


def negotiate(fields: Sequence[bytes]) -> Coding | None:
    """Return the coding that a client prefers; None: no coding (RFC 9110, 12.5.3).

    fields: the values of Accept-Encoding. At equal quality, zstd precedes gzip, and gzip precedes
    no coding. A response that has no acceptable form is sent without a coding. Invalid members,
    and a field of more than MAX_FIELD_SIZE bytes, are ignored.
    """
    value = b",".join(fields)
    return _negotiate(value) if len(value) <= MAX_FIELD_SIZE else None


@lru_cache(256)
def _negotiate(value: bytes) -> Coding | None:
    qualities: dict[str, float] = {}
    for member in value.decode("latin-1").lower().split(","):
        name, *parameters = (part.strip(" \t") for part in member.split(";"))
        quality = _quality(parameters)
        if name and quality is not None:
            qualities[ALIASES.get(name, name)] = quality
    others = qualities.get("*", 0.0)
    best = max(CODINGS, key=lambda coding: qualities.get(coding, others))
    quality = qualities.get(best, others)
    return best if quality > 0 and quality >= qualities.get("identity", others) else None


def _quality(parameters: Sequence[str]) -> float | None:
    """Return the quality of a member; None: the parameters are invalid."""
    if not parameters:
        return 1.0
    name, _, value = parameters[0].partition("=")
    is_valid = len(parameters) == 1 and name == "q" and QVALUE.fullmatch(value)
    return float(value) if is_valid else None


def is_compressible(headers: Mapping[bytes, bytes], size: int) -> bool:
    """Return whether a response is worth compressing. size: of its body, in bytes.

    headers: names in lower case. A response that has a coding, or must not be changed
    (`no-transform`: RFC 9111, 5.2.2.6), stays as it is.
    """
    if size <= MIN_SIZE or b"content-encoding" in headers or b"content-range" in headers:
        return False
    media = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return (
        COMPRESSIBLE.fullmatch(media) is not None
        and b"no-transform" not in headers.get(b"cache-control", b"").lower()
    )


def tag_with(coding: Coding, tag: bytes) -> bytes:
    """Return the ETag of the compressed form of a response. tag: of the plain form, with quotes."""
    return b'%b-%b"' % (tag.removesuffix(b'"'), coding.encode())


def coded_headers(
    headers: Iterable[tuple[bytes, bytes]], coding: Coding, size: int, tag: bytes | None
) -> list[tuple[bytes, bytes]]:
    """Return the ASGI headers of a compressed response. size: of its body. tag: its ETag."""
    kept = [pair for pair in headers if pair[0] not in REPLACED]
    coded = [(b"content-encoding", coding.encode()), (b"content-length", b"%d" % size)]
    return [*kept, *coded, *([] if tag is None else [(b"etag", tag)])]


def compress(coding: Coding, body: bytes) -> bytes:
    """Compress a body. Equal bodies give equal bytes, as a strong ETag requires."""
    if coding == "gzip":
        return zlib.compress(body, GZIP_LEVEL, wbits=GZIP_FORMAT)
    return zstd.compress(body, ZSTD_LEVEL)


def stream_compressor(coding: Coding) -> StreamCompressor:
    """Return a compressor for a body that is sent in parts.

    100 KB take about 1 ms with gzip, and 0.2 ms with zstd.
    """
    if coding == "gzip":
        return zlib.compressobj(GZIP_STREAM_LEVEL, wbits=GZIP_FORMAT)
    return zstd.ZstdCompressor(
        options={
            zstd.CompressionParameter.compression_level: ZSTD_LEVEL,
            zstd.CompressionParameter.window_log: ZSTD_WINDOW_LOG,
        }
    )


class CompressedBodies:
    """An LRU cache of compressed bodies, of at most MAX_CACHE_SIZE bytes, by digest and coding.

    It spares repeated work after a write, when many clients request the same list, and for the
    pages of the documentation.
    """

    def __init__(self) -> None:
        self._bodies: OrderedDict[tuple[str | None, Coding], bytes] = OrderedDict()
        self._size = 0
        self._lock = asyncio.Lock()

    async def compress(self, coding: Coding, body: bytes, digest: str | None) -> bytes:
        """Return a compressed body. digest: the key in the cache; None: do not cache the body.

        A large body is compressed in a thread, one body at a time.
        """
        if len(body) <= THREAD_SIZE:
            return self.compress_small(coding, body, digest)
        async with self._lock:
            data = self._get(coding, digest)
            return data or self._put(
                coding, digest, await asyncio.to_thread(compress, coding, body)
            )

    def compress_small(self, coding: Coding, body: bytes, digest: str | None) -> bytes:
        """Return a compressed body. The body has at most THREAD_SIZE bytes."""
        return self._get(coding, digest) or self._put(coding, digest, compress(coding, body))

    def _get(self, coding: Coding, digest: str | None) -> bytes | None:
        if (data := self._bodies.get((digest, coding))) is not None:
            self._bodies.move_to_end((digest, coding))
        return data

    def _put(self, coding: Coding, digest: str | None, data: bytes) -> bytes:
        if digest is not None:
            self._bodies[digest, coding] = data
            self._size += len(data)
        while self._size > MAX_CACHE_SIZE:
            _, dropped = self._bodies.popitem(last=False)
            self._size -= len(dropped)
        return data
